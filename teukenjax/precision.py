"""A float32 product in float32: GPUs run it in TF32, with 10 bits of mantissa, unless told."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """What to give a product of that dtype: HIGHEST for float32 and wider, else the default."""
    return None if jnp.dtype(dtype).itemsize <= 2 else jax.lax.Precision.HIGHEST


def einsum_fp32(
    equation: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """einsum of two arrays, summed and given in float32 whatever the dtype of ``x``."""
    how = {"precision": precision_of(x.dtype), "preferred_element_type": jnp.float32}
    return jnp.einsum(equation, x, y, **how)
