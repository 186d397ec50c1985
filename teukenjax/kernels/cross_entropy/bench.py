"""The head of Teuken-7B: loss and both gradients of 8192 tokens."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from teukenjax.kernels.case import Case, first_device
from teukenjax.kernels.cross_entropy.api import linear_cross_entropy

TOKENS, WIDTH, VOCAB, PADDED, CHUNK = 8192, 4096, 250_680, 250_880, 2048


def cases(shrink: int) -> Iterator[Case]:
    """Forward and backward together, as a train step runs them; ``shrink`` divides the sizes."""
    sizes = TOKENS, WIDTH, VOCAB, PADDED, CHUNK
    tokens, width, vocab, padded, chunk = (size // shrink for size in sizes)
    yield Case(
        kernel="cross_entropy",
        what=f"loss and gradients, {tokens} × {width} × {vocab}, chunks of {chunk}",
        inputs=functools.partial(_inputs, tokens, width, vocab, padded),
        call=functools.partial(_gradients, vocab=vocab, chunk=chunk),
        flops=6 * tokens * width * padded,
        bytes=2 * 2 * tokens * width + 2 * 4 * padded * width,
        shape={"T": chunk, "D": width, "V": vocab},
    )


def _inputs(tokens: int, width: int, vocab: int, padded: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (1, tokens, width), jnp.bfloat16)
    table = 0.02 * jax.random.normal(keys[1], (padded, width), jnp.float32)
    labels = jax.random.randint(keys[2], (1, tokens), 0, vocab)
    return hidden, table, labels, jnp.full((1, tokens), 1 / tokens)


def _gradients(hidden, table, labels, weights, *, vocab: int, chunk: int, implementation: str):
    layout = first_device()

    def loss(hidden, table):
        return linear_cross_entropy(
            hidden,
            layout.each(table),
            labels,
            weights,
            vocab_size=vocab,
            chunk=chunk,
            layout=layout,
            implementation=implementation,
        )

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, table)
