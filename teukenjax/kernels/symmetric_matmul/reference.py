"""Symmetric products as their definition, by ordinary products."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from teukenjax.precision import precision_of


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
    out = alpha * jnp.matmul(x, y, precision=precision_of(x.dtype), preferred_element_type=wide)
    if addend is not None:
        out += beta * addend.astype(wide)
    return out.astype(x.dtype)
