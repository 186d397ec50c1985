"""What the forward and the backward kernels of attention have in common."""

import math

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from teukenjax.kernels import hopper

HEAD_DIM = 128  # N
WARPGROUPS = 2  # that multiply
ROWS = 64  # of a block that one warpgroup owns, as wgmma has them
BLOCK = WARPGROUPS * ROWS  # positions that a program owns, and keys of a step
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # of a maximum: a row that a block masks as a whole has weights 0, not NaN
THREADS = {"num_threads": WARPGROUPS + 1, "thread_name": "warpgroup"}
FAST = plgpu.CompilerParams(approx_math=True)
BY_ROW, BY_COLUMN = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))
MEMORY_REGISTERS = 40


def operands(*shape: int) -> plgpu.SMEM:
    """Shared memory for blocks of a product's operands."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=hopper.SWIZZLED)


def zeros(*shape: int):
    """Sums of a product before its first step."""
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def kv_steps(starts_gmem, batch, block):
    """Blocks of keys that a block of queries meets: the first, where masks of starts end, how many.

    Between the second number and the diagonal no position needs a mask.
    """
    first = lax.div(starts_gmem[batch, block * BLOCK], BLOCK)
    whole_from = lax.div(starts_gmem[batch, block * BLOCK + BLOCK - 1] + BLOCK - 1, BLOCK)
    return first, whole_from, block + 1 - first


def along(vector, shape: tuple[int, int], axis: int):
    """A vector as a matrix, the same along the other axis than ``axis``."""
    return lax.broadcast_in_dim(vector, shape, [axis])


def masked(scores, *, queries: int, q0, k0, starts):
    """Scores with −∞ where a query does not see a key.

    Args:
      scores: of queries by keys, or transposed.
      queries: the axis of the queries.
      q0, k0: position of the first of each.
      starts: of the queries.
    """
    q_at, k_at = (
        plgpu.broadcasted_iota(jnp.int32, scores.shape, axis, layout=plgpu.Layout.WGMMA) + at
        for axis, at in ((queries, q0), (1 - queries, k0))
    )
    seen = (k_at <= q_at) & (k_at >= along(starts, scores.shape, queries))
    return jnp.where(seen, scores, -jnp.inf)


def masked_if(needed, scores, **where):
    """``masked``, at the cost of a branch where it is not needed."""
    return lax.cond(needed, lambda s: masked(s, **where), lambda s: s, scores)


