"""What the model calls: one causal attention."""

import contextlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from teukenjax.precision import precision_of
from teukenjax.sharding import BATCH_AXES, Layout

HEADS = P(BATCH_AXES, None, "tensor", None)  # of queries, keys and values
BLOCK, HEAD_DIM = 128, 128  # what pallas has at a time: positions (it pads), and N
PALLAS_SAVED = "attention and sums"  # what its backward needs, for remat policies


def cudnn_refusal(*, dtype: str, head_dim: int, segments: bool) -> str | None:
    """Why cuDNN cannot run on a GPU; None when it can.

    Args:
      dtype: of activations; cuDNN has bfloat16 only (of the two that a recipe may ask for).
      head_dim: N; cuDNN takes multiples of 8 up to 128.
      segments: whether attention stays inside documents, which cuDNN is not asked to do.
    """
    if dtype != "bfloat16":
        return f"compute.dtype is {dtype}, not bfloat16"
    if head_dim % 8 or head_dim > 128:
        return f"head_dim={head_dim} is not a multiple of 8 up to 128"
    if segments:
        return "attention stays inside documents (data.segments or data.packing=best_fit)"
    return None


def pallas_refusal(*, dtype: str, head_dim: int) -> str | None:
    """Why our kernel cannot run on a Hopper GPU; None when it can; arguments as above."""
    if dtype != "bfloat16":
        return f"compute.dtype is {dtype}, not bfloat16"
    return None if head_dim == HEAD_DIM else f"head_dim={head_dim} is not {HEAD_DIM}"


def attention(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    segments: Int[Array, "B S"] | None = None,
    *,
    implementation: str,
    layout: Layout | None = None,
) -> Float[Array, "B S H N"]:
    """Causal attention, scale 1/√N, softmax in fp32; query head h reads KV head h // (H/K).

    With segments a position sees only those of its own number. Numbers that are equal must stand
    together, as documents in a packed window do.

    Args:
      q, k, v: queries, keys and values.
      segments: numbers of documents; None: one document.
      implementation: ``reference`` is XLA's, with a mask of S² for segments; ``cudnn`` takes no
        segments (see ``cudnn_refusal``); ``pallas`` works on documents alone, on a Hopper GPU
        (see ``pallas_refusal``).
      layout: mesh, which splits B and the heads; ``pallas`` alone asks, None: one device.

    Raises:
      ValueError: for what ``pallas`` does not take.
    """
    if implementation == "pallas":
        return _by_pallas(q, k, v, segments, layout)
    if implementation == "cudnn":
        assert segments is None
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    same = None if segments is None else segments[:, None, :, None] == segments[:, None, None, :]
    return _by_xla(q, k, v, mask=same, is_causal=True)


def _by_xla(q, k, v, **masks):
    # Of its products the gradients' take over the precision.
    is_exact = precision_of(q.dtype) is not None
    with jax.default_matmul_precision("highest") if is_exact else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, **masks, implementation="xla")


def _by_pallas(q, k, v, segments, layout: Layout | None):
    from teukenjax.kernels.attention import pallas

    S = q.shape[1]
    why = pallas_refusal(dtype=str(q.dtype), head_dim=q.shape[3])
    if why is not None:
        raise ValueError(f"attention: pallas cannot run: {why}")
    starts = pallas.starts_of(jnp.zeros(q.shape[:2], jnp.int32) if segments is None else segments)
    if pad := -S % BLOCK:  # evaluation has sequences of all lengths; what is added comes later
        q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
        starts = jnp.pad(starts, ((0, 0), (0, pad)), constant_values=S)
    run = pallas.attention
    if layout is not None:
        run = jax.shard_map(
            run,
            mesh=layout.mesh,
            in_specs=(HEADS, HEADS, HEADS, P(BATCH_AXES, None)),
            out_specs=HEADS,
            check_vma=False,
        )
    return run(q, k, v, starts)[:, :S]


def cached_attention(
    q: Float[Array, "B T H N"],
    k: Float[Array, "B C K N"],
    v: Float[Array, "B C K N"],
    start: Int[Array, " B"],
) -> Float[Array, "B T H N"]:
    """Attention of each row's T new queries, from position ``start`` on, over C keys and values.

    Cache entries after a query's own position count for nothing, whatever finite values they hold.
    """
    positions_BT = start[:, None] + jnp.arange(q.shape[1])[None]
    visible = jnp.arange(k.shape[1])[None, None] <= positions_BT[:, :, None]
    return _by_xla(q, k, v, mask=visible[:, None])
