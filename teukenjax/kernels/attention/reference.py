"""Attention as its definition: the specification that every fast form is tested against."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from teukenjax.precision import precision_of


def reference_attention(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    segments: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H N"]:
    """softmax(q kᵀ / √N, causal, own segment) v in fp32; head h reads KV head h // (H/K)."""
    _, S, H, N = q.shape
    groups = H // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), groups, axis=2) for x in (k, v))
    einsum = functools.partial(jnp.einsum, precision=precision_of(q.dtype))
    scores = einsum("bqhn,bkhn->bhqk", q.astype(jnp.float32), k) / jnp.sqrt(N)
    visible = jnp.tril(jnp.ones((S, S), bool))[None, None]
    if segments is not None:
        visible &= segments[:, None, :, None] == segments[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return einsum("bhqk,bkhn->bqhn", weights, v).astype(q.dtype)
