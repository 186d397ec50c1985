"""A float32 product in float32: GPUs run it in TF32, with 10 bits of mantissa, unless told."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """What to give a product of that dtype: HIGHEST for float32 and wider, else the default."""
    return None if jnp.dtype(dtype).itemsize <= 2 else jax.lax.Precision.HIGHEST
