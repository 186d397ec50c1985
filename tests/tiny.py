"""The smallest real models, with weights large enough that every part of them shows."""

import jax
import jax.numpy as jnp
import numpy as np

from teukenjax.model import Functional
from teukenjax.model.teuken import REFERENCE
from teukenjax.recipe import ComputeConfig, ModelConfig, ShardingConfig
from teukenjax.sharding import Layout, WeightSpec, make_layout, tree_shardings

POISON = 1e30  # in the padding rows of the tables: wherever one is used, it shows
MESHES = {
    "ddp": {},
    "zero1": {},
    "zero2": {},
    "fsdp": {},
    "hsdp": {"replica": 2},
    "fsdp_tp": {"tensor": 2},
}


def tiny_config(**changes) -> ModelConfig:
    """Teuken's form: tied, pre-norm, grouped queries; 37 of 40 rows of the table are used."""
    shape = {"width": 16, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 24}
    vocabulary = {"vocab_size": 37, "vocab_multiple": 8}
    return ModelConfig(**(shape | vocabulary | {"context": 12} | changes))


def proxy_config(**changes) -> ModelConfig:
    """The form of the norm-transfer paper: untied, norms everywhere, no gains."""
    return tiny_config(**({"tied": False, "norms": "everywhere", "norm_gain": False} | changes))


def eight_devices(strategy: str) -> Layout:
    return make_layout(ShardingConfig(strategy=strategy, **MESHES[strategy]))


def one_device() -> Layout:
    return make_layout(ShardingConfig(strategy="ddp"), jax.devices()[:1])


def model_of(config: ModelConfig, layout: Layout | None = None, **compute) -> Functional:
    """In fp32 without remat unless ``compute`` says otherwise."""
    defaults = {"dtype": "float32", "remat": "none", "kernels": REFERENCE, "head_chunk": 5}
    return Functional(config, ComputeConfig(**(defaults | compute)), layout or one_device())


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """In fp32; gains around 1, matrices that keep the scale of their input."""
    rng = np.random.default_rng(seed)
    model = model_of(config)

    def draw(spec: WeightSpec, array) -> jax.Array:
        values = rng.standard_normal(array.shape)
        if spec.role == "gain":
            values = 1 + 0.3 * values
        elif "vocab" in spec.axes:
            values = values / config.width**0.5
            values[config.vocab_size :] = POISON
        else:
            values *= (1.5 / np.prod([array.shape[i] for i in spec.positions(spec.fan_in)])) ** 0.5
        return jnp.asarray(values, jnp.float32)

    is_spec = lambda node: isinstance(node, WeightSpec)  # noqa: E731
    return jax.tree.map(draw, model.specs, model.abstract, is_leaf=is_spec)


def random_tokens(config: ModelConfig, shape: tuple[int, ...], seed: int = 1) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(config.vocab_size, size=shape, dtype=np.int32))


def place(model: Functional, params: dict) -> dict:
    """Parameters where the model's layout wants them."""
    rule = model.layout.row.parameters
    shardings = tree_shardings(model.layout, model.specs, model.abstract, rule)
    return jax.device_put(params, shardings)


# Two meshes sum in another order. That is fp32 rounding (6e-8) in the first step; the sign map and
# Newton–Schulz carry it on, about tenfold a step at these sizes.
OTHER_MESH_RTOL = 2e-4
