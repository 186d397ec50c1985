"""What the model calls: one causal attention, with an implementation chosen in the open."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from teukenjax.errors import UserError


def choose(
    requested: str, *, dtype: str, head_dim: int, platform: str, segments: bool = False
) -> tuple[str, str]:
    """The implementation to run and the reason, as printed when a run starts.

    Args:
      requested: ``auto``, ``cudnn`` or ``xla`` (recipe key ``compute.attention``).
      dtype: of activations; cuDNN has bfloat16 only (of the two that a recipe may ask for).
      head_dim: N; cuDNN takes multiples of 8 up to 128.
      platform: ``jax.devices()[0].platform``.
      segments: whether attention stays inside documents, which cuDNN is not asked to do.

    Raises:
      UserError: when ``cudnn`` is asked for and cannot run: never a silent fallback.
    """
    refusal = None
    if platform not in ("gpu", "cuda"):
        refusal = f"the device is a {platform}, not a GPU"
    elif dtype != "bfloat16":
        refusal = f"compute.dtype is {dtype}, not bfloat16"
    elif head_dim % 8 or head_dim > 128:
        refusal = f"head_dim={head_dim} is not a multiple of 8 up to 128"
    elif segments:
        refusal = "attention stays inside documents (data.segments or data.packing=best_fit)"
    if requested == "xla":
        return "xla", "asked for"
    if refusal is None:
        return "cudnn", "asked for" if requested == "cudnn" else "the fastest for plain causal"
    if requested == "cudnn":
        raise UserError(f"compute.attention=cudnn cannot run: {refusal}; allowed here: auto, xla")
    return "xla", f"cuDNN cannot run: {refusal}"


def attention(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    segments: Int[Array, "B S"] | None = None,
    *,
    implementation: str,
) -> Float[Array, "B S H N"]:
    """Causal attention, scale 1/√N, softmax in fp32; query head h reads KV head h // (H/K).

    With segments a position sees only those of its own number. Numbers that are equal must stand
    together, as documents in a packed window do.
    """
    if segments is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    assert implementation == "xla", "choose() gives segments to no other"
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=same, is_causal=True, implementation=implementation
    )


def cached_attention(
    q: Float[Array, "B T H N"],
    k: Float[Array, "B C K N"],
    v: Float[Array, "B C K N"],
    start: Array,
) -> Float[Array, "B T H N"]:
    """Attention of T new queries, at positions ``start`` …, over a cache of C keys and values.

    Cache entries after a query's own position count for nothing, whatever finite values they hold.
    """
    positions_T = start + jnp.arange(q.shape[1])
    visible = jnp.arange(k.shape[1])[None, :] <= positions_T[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=visible[None, None], implementation="xla")
