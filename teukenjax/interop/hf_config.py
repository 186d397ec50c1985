"""config.json and generation_config.json: the model as stock ``LlamaForCausalLM``.

The fields are those of Teuken-7B-instruct-commercial-v0.4 without its remote code, plus
``head_dim``. They are written out rather than taken from ``transformers``, which the export does
not need.
"""

from typing import Any

from teukenjax.errors import UserError
from teukenjax.recipe import ModelConfig

BOS, EOS, PAD, EOD = 1, 2, 3, 4  # ids that Teuken's tokenizers fix


def model_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The content of ``config.json``; ``dtype`` is that of the weights beside it.

    Raises:
      UserError: for a model that no stock architecture computes.
    """
    _check_is_llama(config)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "initializer_range": config.init_std,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,  # transformers 4 reads this name only, 5 reads it too
        "transformers_version": "4.43.2",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def generation_config() -> dict[str, Any]:
    """The content of ``generation_config.json``.

    Generation stops at both ends that Teuken knows: ``</s>`` closes an answer of a chat,
    ``<eod>`` a document of pretraining.
    """
    return {
        "bos_token_id": BOS,
        "eos_token_id": [EOS, EOD],
        "pad_token_id": PAD,
        "transformers_version": "4.43.2",
    }


def _check_is_llama(config: ModelConfig) -> None:
    """Refuses what Llama's forward pass would silently compute differently."""
    if config.norms != "pre":
        raise UserError(
            f"model.norms={config.norms}: no stock Hugging Face architecture has a norm before "
            "every linear map; only norms=pre can be exported"
        )
    if not config.norm_gain:
        raise UserError(
            "model.norm_gain=false: no stock Hugging Face architecture has RMSNorm without a "
            "gain; only norm_gain=true can be exported"
        )
