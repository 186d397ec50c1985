"""Linear + cross-entropy as its definition, with whole logits: the specification."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def reference_cross_entropy(
    hidden: Float[Array, "B S D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    vocab_size: int,
) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
    """Σ weight · −log softmax(hidden tableᵀ)[label] over the first ``vocab_size`` rows, in fp32."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, table[:vocab_size])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    losses = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return jnp.sum(losses * weights), losses
