"""Symmetric products as their definition, by ordinary products."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reference_product(
    x: Float[Array, "*stack m k"],
    y: Float[Array, "*stack k m"],
    addend: Float[Array, "*stack m m"] | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Float[Array, "*stack m m"]:
    """alpha · X Y + beta · addend, summed in fp32 at least and rounded once to the dtype of X."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # GPUs would run a float32 product in TF32; whoever asks for float32 here wants float32.
    precision = None if x.dtype.itemsize == 2 else jax.lax.Precision.HIGHEST
    out = alpha * jnp.matmul(x, y, precision=precision, preferred_element_type=wide)
    if addend is not None:
        out += beta * addend.astype(wide)
    return out.astype(x.dtype)
