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
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
    """Σ weight · (loss + z_loss · log²Σ exp logits), and loss = −log softmax(logits)[label].

    Logits are hidden tableᵀ over the first ``vocab_size`` rows, in fp32.
    """
    logits = jnp.einsum("bsd,vd->bsv", hidden, table[:vocab_size]).astype(jnp.float32)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    losses = log_sum - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (losses + z_loss * jnp.square(log_sum))), losses
