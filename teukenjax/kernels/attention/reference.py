"""Attention as its definition: the specification that every fast form is tested against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reference_attention(
    q: Float[Array, "B S H N"], k: Float[Array, "B S K N"], v: Float[Array, "B S K N"]
) -> Float[Array, "B S H N"]:
    """softmax(q kᵀ / √N, causal) v in fp32; query head h reads KV head h // (H/K)."""
    _, S, H, N = q.shape
    groups = H // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), groups, axis=2) for x in (k, v))
    scores = jnp.einsum("bqhn,bkhn->bhqk", q.astype(jnp.float32), k) / jnp.sqrt(N)
    causal = jnp.tril(jnp.ones((S, S), bool))[None, None]
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhn->bqhn", weights, v).astype(q.dtype)
