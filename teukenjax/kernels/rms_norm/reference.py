"""RMSNorm as its definition."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def reference_rms_norm(
    x: Float[Array, "... D"], gain: Float[Array, " D"] | None, epsilon: float
) -> Float[Array, "... D"]:
    """x / rms(x) · gain over the last axis; statistics and gain in fp32, then rounded once.

    Rounding after the gain is what Teuken was trained with (facts of the Apex kernel); Hugging
    Face rounds before it, which differs in the last bit of bf16 and not at all in fp32.
    """
    with jax.named_scope("norm"):
        wide = x.astype(jnp.float32)
        wide *= lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
        if gain is not None:
            wide *= gain.reshape((1,) * (wide.ndim - 1) + gain.shape)
        return wide.astype(x.dtype)
