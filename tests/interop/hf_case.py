"""A small model with fixed weights, for the tests and for the golden made with transformers."""

import numpy as np

from teukenjax.interop.hf_weights import LAYER
from teukenjax.recipe import ModelConfig

PADDING = 1e3  # in the padding rows of the tables: wherever one is used, it shows


def small_config(*, tied: bool, vocab_size: int = 300, **changes) -> ModelConfig:
    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 105}
    return ModelConfig(vocab_size=vocab_size, tied=tied, **(shape | {"context": 64} | changes))


def random_parameters(config: ModelConfig) -> dict:
    """fp32 NumPy parameters of ``config`` from seed 0; large enough that every part matters."""
    rng = np.random.default_rng(0)
    L, D, F = config.layers, config.width, config.ffn
    H, K, N = config.heads, config.kv_heads, config.head_dim

    def matrix(*shape, fan_in):
        return (rng.standard_normal((L, *shape)) * 1.5 / fan_in**0.5).astype(np.float32)

    def gain(*shape):
        return (1 + 0.3 * rng.standard_normal(shape)).astype(np.float32)

    def table():
        rows = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        values = np.full((rows, D), PADDING, np.float32)
        values[: config.vocab_size] = rng.standard_normal((config.vocab_size, D)) / D**0.5
        return {"table": values}

    params = {
        "embed": table(),
        "layers": {
            "attention_norm": {"gain": gain(L, D)},
            "attention": {
                "query": matrix(D, H, N, fan_in=D),
                "key": matrix(D, K, N, fan_in=D),
                "value": matrix(D, K, N, fan_in=D),
                "output": matrix(H, N, D, fan_in=H * N),
            },
            "mlp_norm": {"gain": gain(L, D)},
            "mlp": {
                "gate": matrix(D, F, fan_in=D),
                "up": matrix(D, F, fan_in=D),
                "down": matrix(F, D, fan_in=F),
            },
        },
        "final_norm": {"gain": gain(D)},
    }
    return params if config.tied else params | {"head": table()}


def by_definition(config, params) -> dict[str, np.ndarray]:
    """Every Hugging Face tensor by its definition: [out, in] of one layer, no padding rows."""
    tensors = {"model.norm.weight": params["final_norm"]["gain"]}
    tables = {"model.embed_tokens.weight": "embed", "lm_head.weight": "head"}
    for name, table in tables.items():
        if table in params:
            tensors[name] = params[table]["table"][: config.vocab_size]
    for layer in range(config.layers):
        for path, hf, inputs in LAYER:
            leaf = params["layers"][path[0]][path[1]][layer]
            if inputs is not None:
                leaf = leaf.reshape(np.prod(leaf.shape[:inputs]), -1).T
            tensors[f"model.layers.{layer}.{hf}"] = leaf
    return tensors


def random_tokens(config: ModelConfig, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(config.vocab_size, size=shape, dtype=np.int32)
