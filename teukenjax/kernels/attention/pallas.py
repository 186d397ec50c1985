"""Causal attention inside documents on a Hopper GPU, as a function that can be differentiated.

Documents stand together, so all that a mask says is where each position's document starts
(``starts``): position i sees start[i] … i. That is two numbers for a block: from the first and the
last of its starts follow which blocks of keys it meets at all, and which of those need no mask.
Forward keeps the logarithm of each softmax's sum (in base 2), from which backward has the weights
again. Each sum of backward has one owner and one order: dQ belongs to blocks of queries, dK and dV
to blocks of keys and a part of the query heads, and the parts are added afterwards. So results are
the same bit for bit, at the price of computing the scores twice (7 products instead of 5).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from teukenjax.kernels.attention import pallas_backward, pallas_forward
from teukenjax.kernels.attention.api import PALLAS_SAVED


def starts_of(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Where the run of equal numbers that a position is in begins."""
    S = segments.shape[1]
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :S]
    return lax.cummax(jnp.where(begins, jnp.arange(S, dtype=jnp.int32)[None], 0), axis=1)


@jax.custom_vjp
def attention(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    starts: Int[Array, "B S"],
) -> Float[Array, "B S H N"]:
    """softmax(q kᵀ / √N over starts[i] … i) v; bfloat16, see ``api``.

    Args:
      q, k, v: query head h reads KV head h // (H/K).
      starts: int32; never decreasing, and starts[i] ≤ i.
    """
    return pallas_forward.forward(q, k, v, starts)[0]


def _forward(q, k, v, starts):
    out, log_sums = (
        checkpoint_name(x, PALLAS_SAVED) for x in pallas_forward.forward(q, k, v, starts)
    )
    return out, (q, k, v, starts, out, log_sums)


def _backward(saved, d_out):
    return *pallas_backward.backward(*saved, d_out), None


attention.defvjp(_forward, _backward)
