"""Norms of a micro-batch of Teuken-7B: 16384 tokens."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from teukenjax.kernels.case import Case, first_device
from teukenjax.kernels.rms_norm.api import add_rms_norm

TOKENS, WIDTH, EPSILON = 16_384, 4096, 1e-5


def cases(shrink: int) -> Iterator[Case]:
    """Forward alone, and with backward; ``shrink`` divides the number of tokens."""
    tokens = TOKENS // shrink
    states = 2 * tokens * WIDTH  # bytes
    inputs = functools.partial(_inputs, tokens)
    yield Case("rms_norm", f"norm, {tokens} × {WIDTH}", inputs, _norm, bytes=2 * states)
    yield Case(
        kernel="rms_norm",
        what=f"norm and its gradients, {tokens} × {WIDTH}",
        inputs=inputs,
        call=functools.partial(_gradients, adds=False),
        bytes=6 * states,
    )
    yield Case(
        kernel="rms_norm",
        what=f"sum, norm and gradients, {tokens} × {WIDTH}",
        inputs=inputs,
        call=functools.partial(_gradients, adds=True),
        bytes=8 * states,
        shape={"T": tokens, "D": WIDTH},
    )


def _inputs(tokens: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    states = [jax.random.normal(key, (1, tokens, WIDTH), jnp.bfloat16) for key in keys]
    return *states, jnp.ones(WIDTH)


def _norm(x, residual, dh, dy, gain, *, implementation: str):
    how = {"layout": first_device(), "implementation": implementation}
    return add_rms_norm(x, None, gain, EPSILON, **how)[1]


def _gradients(x, residual, dh, dy, gain, *, adds: bool, implementation: str):
    """As in a layer: the stream is used again, and what comes back from there is added."""
    how = {"layout": first_device(), "implementation": implementation}

    def norm(x, gain):
        return add_rms_norm(x, residual if adds else None, gain, EPSILON, **how)

    (h, y), pull_back = jax.vjp(norm, x, gain)
    return (h, y, *pull_back((dh, dy))) if adds else (y, *pull_back((dh, dy)))
