"""config.json and generation_config.json: the model as stock ``LlamaForCausalLM``, both ways.

The fields are those of Teuken-7B-instruct-commercial-v0.4 without its remote code, plus
``head_dim``. They are written out rather than taken from ``transformers``, which neither way
needs. Fields of an imported config that mean nothing here are kept for its export.
"""

import json
from pathlib import Path
from typing import Any

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import ModelConfig, validate

BOS, EOS, PAD, EOD = 1, 2, 3, 4  # ids that Teuken's tokenizers fix
REMOTE = ("auto_map", "tokenizer_class", "_name_or_path")  # lead to code that an export has not
# Each of our keys and the field that it is.
FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "context": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
}
# Fields that change the computation, and the only value that our model computes.
FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
    "quantization_config": None,
}


def model_config(
    config: ModelConfig, *, dtype: str, kept: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The content of ``config.json``; ``dtype`` is that of the weights beside it.

    Args:
      config: the model.
      dtype: full name.
      kept: the config that the model was imported with. As long as it describes the model it
        stands as it was, but for what needs remote code; else our fields are put into it.

    Raises:
      UserError: for a model that no stock architecture computes.
    """
    _check_is_llama(config)
    described = _described(config, dtype)
    if kept is None:
        return described
    kept = {key: value for key, value in kept.items() if key not in REMOTE}
    if _described(from_hf(kept, "config.json"), dtype) != described:
        return kept | described
    name = "dtype" if "dtype" in kept and "torch_dtype" not in kept else "torch_dtype"
    return kept | {name: dtype}


def from_hf(fields: dict[str, Any], origin: str) -> ModelConfig:
    """The model that a ``config.json`` describes; ``origin`` names it in errors.

    Raises:
      UserError: for another architecture, a field that is missing or of another type, or one
        that asks for what our model does not compute.
    """
    kind = fields.get("model_type")
    if kind != "llama":
        raise UserError(f"{origin}: model_type is {json.dumps(kind)}: allowed: llama")
    for key, allowed in FIXED.items():
        if key in fields and fields[key] != allowed:
            raise UserError(f"{origin}: {key} is {json.dumps(fields[key])}: allowed: {allowed}")
    values: dict[str, Any] = {"tied": fields.get("tie_word_embeddings", False)}
    for key, field in FIELDS.items():
        if field not in fields:
            raise UserError(f"{origin}: {field} is missing: {nearest(field, fields)}")
        values[key] = fields[field]
    values["kv_heads"] = fields.get("num_key_value_heads") or values["heads"]
    values["head_dim"] = fields.get("head_dim") or _head_dim(values, origin)
    values["rope_theta"] = _rope_theta(fields, origin)
    values["init_std"] = fields.get("initializer_range", 0.02)
    return validate(ModelConfig, values, origin)


def generation_config(kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of ``generation_config.json``.

    Generation stops at both ends that Teuken knows: ``</s>`` closes an answer of a chat,
    ``<eod>`` a document of pretraining. Whatever else an imported one said is kept.
    """
    kept = {key: value for key, value in (kept or {}).items() if key != "_from_model_config"}
    ours = {"bos_token_id": BOS, "eos_token_id": [EOS, EOD], "pad_token_id": PAD}
    return {"transformers_version": "4.43.2"} | kept | ours


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object")
    return content


def _described(config: ModelConfig, dtype: str) -> dict[str, Any]:
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


def _head_dim(values: dict[str, Any], origin: str) -> int:
    try:
        return values["width"] // values["heads"]
    except (TypeError, ZeroDivisionError):
        raise UserError(
            f"{origin}: hidden_size is {values['width']!r} and num_attention_heads "
            f"{values['heads']!r}: allowed: positive integers"
        ) from None


def _rope_theta(fields: dict[str, Any], origin: str) -> Any:
    """transformers 5 writes it into ``rope_parameters``; a number, if the config is right."""
    rope = fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{origin}: rope_parameters is {json.dumps(rope):.60}: allowed: an object")
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise UserError(f"{origin}: rope_parameters.rope_type is '{kind}': allowed: default")
    return rope.get("rope_theta", fields.get("rope_theta", 10_000.0))


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
