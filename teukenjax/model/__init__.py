"""The model: a Llama-class decoder in Flax NNX with Teuken's shapes and initialisation."""

from teukenjax.model.initialisation import leaf_spec
from teukenjax.model.teuken import (
    Functional,
    Model,
    Teuken,
    flops_per_token,
    logits,
    padded_vocab,
    parameter_count,
    single_device,
)

__all__ = [
    "Functional",
    "Model",
    "Teuken",
    "flops_per_token",
    "leaf_spec",
    "logits",
    "padded_vocab",
    "parameter_count",
    "single_device",
]
