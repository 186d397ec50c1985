"""Attention of Teuken-7B: 4 sequences of 4096, one document each or four."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from teukenjax.kernels.attention.api import attention
from teukenjax.kernels.case import Case

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM, DOCUMENTS = 4, 4096, 32, 2, 128, 4


def cases(shrink: int) -> Iterator[Case]:
    """Forward alone, and with backward; ``shrink`` divides the length."""
    S = LENGTH // shrink
    of_pair = 4 * HEADS * HEAD_DIM  # FLOPs of the forward pass
    for documents, implementations, letter in (
        (1, ("reference", "cudnn", "pallas"), "S"),
        (DOCUMENTS, ("reference", "pallas"), "packed_S"),
    ):
        flops = of_pair * BATCH * S * S / documents / 2  # the causal half of each document
        what = f"{BATCH} × {S}, {documents} documents each"
        common = {"kernel": "attention", "inputs": functools.partial(_inputs, S, documents)}
        common |= {"implementations": implementations}
        yield Case(what=what, call=_forward, flops=flops, **common)
        yield Case(
            what=f"{what}, and gradients",
            call=_gradients,
            flops=3.5 * flops,
            shape={letter: S},
            **common,
        )


def _inputs(S: int, documents: int) -> tuple:
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    shapes = [(BATCH, S, count, HEAD_DIM) for count in heads]
    arrays = [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]
    numbers = jnp.arange(S, dtype=jnp.int32) * documents // S
    return *arrays, None if documents == 1 else jnp.tile(numbers, (BATCH, 1))


def _forward(q, k, v, d_out, segments, *, implementation: str):
    return attention(q, k, v, segments, implementation=implementation)


def _gradients(q, k, v, d_out, segments, *, implementation: str):
    def mixed(q, k, v):
        return _forward(q, k, v, d_out, segments, implementation=implementation)

    out, pull_back = jax.vjp(mixed, q, k, v)
    return out, *pull_back(d_out)
