"""Newton–Schulz's products, at the size of Teuken-7B's feed-forward matrices."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from teukenjax.kernels.case import Case
from teukenjax.kernels.symmetric_matmul.api import gram, symmetric_product


def cases(shrink: int) -> Iterator[Case]:
    """One matrix, and eight stacked; ``shrink`` divides the sides."""
    m, n = 4096 // shrink, 13_440 // shrink
    for stack in (1, 8):
        yield Case(
            kernel="symmetric_matmul",
            what=f"X Xᵀ, {stack} × {m} × {n}",
            inputs=functools.partial(_normal, stack, m, n),
            call=gram,
            flops=2 * stack * m * m * n,
            bytes=2 * stack * (m * n + m * m),
            shape={"m": m} if stack == 8 else {},
        )
        yield Case(
            kernel="symmetric_matmul",
            what=f"b A + c A², {stack} × {m} × {m}",
            inputs=functools.partial(_symmetric, stack, m),
            call=_quadratic,
            flops=2 * stack * m**3,
            bytes=4 * stack * m * m,
        )


def _normal(*shape: int) -> tuple[jax.Array]:
    return (0.02 * jax.random.normal(jax.random.key(0), shape, jnp.bfloat16),)


def _symmetric(stack: int, m: int) -> tuple[jax.Array]:
    (x,) = _normal(stack, m, m)
    return ((x + x.mT) / 2,)


def _quadratic(a, *, implementation: str):
    return symmetric_product(a, a, a, alpha=2.0, beta=-4.8, implementation=implementation)
