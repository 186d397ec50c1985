"""The one table of names and layouts: our weights as Hugging Face tensors.

Two things differ between the layouts. A ``torch.nn.Linear`` holds [out, in] where we hold
[in, out], with heads and head dimension as axes of their own; and we stack the layers and pad
the vocabulary, which Hugging Face does not. Heads need no permutation: both sides rotate halves
in RoPE, and in both query head i reads KV head i // (H/K).

A tensor travels in pieces that fit any memory: a matrix of one layer, or some rows of a table.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from teukenjax.errors import UserError, nearest
from teukenjax.model import padded_vocab
from teukenjax.recipe import ModelConfig

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
BLOCK_BYTES = 64 * 2**20  # of a table, in fp32


class Name(NamedTuple):
    """One weight's two names and how its layout changes."""

    path: tuple[str, ...]  # ours
    hf: str
    inputs: int | None  # how many leading axes are summed over; none: the layout is the same


# Layouts are those of one layer; in "layers" our arrays have a leading L.
LAYER = (
    Name(("attention_norm", "gain"), "input_layernorm.weight", None),  # [D]
    Name(("attention", "query"), "self_attn.q_proj.weight", 1),  # [D, H, N] → [HN, D]
    Name(("attention", "key"), "self_attn.k_proj.weight", 1),  # [D, K, N] → [KN, D]
    Name(("attention", "value"), "self_attn.v_proj.weight", 1),
    Name(("attention", "output"), "self_attn.o_proj.weight", 2),  # [H, N, D] → [D, HN]
    Name(("mlp_norm", "gain"), "post_attention_layernorm.weight", None),
    Name(("mlp", "gate"), "mlp.gate_proj.weight", 1),  # [D, F] → [F, D]
    Name(("mlp", "up"), "mlp.up_proj.weight", 1),
    Name(("mlp", "down"), "mlp.down_proj.weight", 1),  # [F, D] → [D, F]
)
EMBEDDING = Name(("embed", "table"), "model.embed_tokens.weight", None)  # [V, D]
FINAL_NORM = Name(("final_norm", "gain"), "model.norm.weight", None)
HEAD = Name(("head", "table"), "lm_head.weight", None)  # [V, D]; absent when tied


class Tensor(NamedTuple):
    """One Hugging Face tensor and the piece of our array that holds it."""

    name: str
    path: tuple[str, ...]  # of our array
    layer: int | None  # its place on the leading axis, when there is one
    ours: tuple[int, ...]  # shape of that piece, padding rows included
    theirs: tuple[int, ...]
    inputs: int | None  # as in ``Name``

    def blocks(self) -> list[tuple[slice, slice]]:
        """Rows of our piece and the rows of the tensor that they are; padding rows are none.

        A matrix whose layout changes is one block.
        """
        rows, kept = self.ours[0], self.theirs[0]
        if self.inputs is not None or self.ours == self.theirs[:1]:
            return [(slice(0, rows), slice(0, kept))]
        step = max(1, BLOCK_BYTES // (4 * math.prod(self.ours[1:])))
        return [
            (slice(at, min(at + step, rows)), slice(min(at, kept), min(at + step, kept)))
            for at in range(0, rows, step)
        ]

    def to_hf(self, block: np.ndarray, rows: slice) -> np.ndarray:
        """A block of ours as the tensor's ``rows``."""
        if self.inputs is None:
            return block[: rows.stop - rows.start]
        return block.reshape(math.prod(self.ours[: self.inputs]), -1).T

    def from_hf(self, block: np.ndarray, rows: slice) -> np.ndarray:
        """The tensor's block as ``rows`` of ours; padding rows are zero."""
        if self.inputs is not None:
            return block.T.reshape(self.ours)
        missing = (rows.stop - rows.start) - block.shape[0]
        return np.pad(block, [(0, missing), *[(0, 0)] * (block.ndim - 1)]) if missing else block


def dtype_name(name: str) -> str:
    """The full name of a dtype that weights can have; a UserError for another."""
    full = SHORT.get(name, name)
    if full not in DTYPES:
        raise UserError(f"dtype '{name}': {nearest(name, DTYPES | SHORT)}")
    return full


def hf_tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of ``LlamaForCausalLM``, in its order; ``config`` has ``vocab_size`` set."""
    table = (padded_vocab(config), config.width), (config.vocab_size, config.width)
    yield Tensor(EMBEDDING.hf, EMBEDDING.path, None, *table, None)
    shapes = _layer_shapes(config)
    for layer in range(config.layers):
        for name in LAYER:
            ours = shapes[name.path[-1]] if name.inputs else (config.width,)
            path, hf = ("layers", *name.path), f"model.layers.{layer}.{name.hf}"
            yield Tensor(hf, path, layer, ours, _theirs(ours, name.inputs), name.inputs)
    gain = (config.width,)
    yield Tensor(FINAL_NORM.hf, FINAL_NORM.path, None, gain, gain, None)
    if not config.tied:
        yield Tensor(HEAD.hf, HEAD.path, None, *table, None)


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    D, H, K, N, F = config.width, config.heads, config.kv_heads, config.head_dim, config.ffn
    shapes = {"query": (D, H, N), "key": (D, K, N), "value": (D, K, N), "output": (H, N, D)}
    return shapes | {"gate": (D, F), "up": (D, F), "down": (F, D)}


def _theirs(ours: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    if inputs is None:
        return ours
    return math.prod(ours[inputs:]), math.prod(ours[:inputs])
