"""What the forward and the backward kernels of attention have in common."""

import math
from collections.abc import Callable

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from teukenjax.kernels import hopper
from teukenjax.kernels.attention.api import BLOCK

WARPGROUPS = 2  # that multiply
ROWS = 64  # of a block that one warpgroup owns, as wgmma has them
assert BLOCK == WARPGROUPS * ROWS  # positions that a program owns, and keys of a step
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # of a maximum: a row that a block masks as a whole has weights 0, not NaN
THREADS = {"num_threads": WARPGROUPS + 1, "thread_name": "warpgroup"}
FAST = plgpu.CompilerParams(approx_math=True)
BY_ROW, BY_COLUMN = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))
MEMORY_REGISTERS = 40


def operands(*shape: int):
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


def load(gmem, layout):
    """Numbers of rows or columns, each in the registers of all threads that have some of it."""
    return plgpu.load(gmem, layout=layout, optimized=False)


def hide_if(needed, begin, sees: Callable):
    """What the sums of scores begin with: −∞ where a query does not see a key.

    Masking what a product begins with, not what it ends with, happens while few registers are in
    use; so none are spilled. ``sees`` is traced into a branch.
    """
    return lax.cond(needed, lambda b: jnp.where(sees(), b, -jnp.inf), lambda b: b, begin)


def places(length: int):
    """Positions as an array: as an iota the compiler would keep them in registers, and spill."""
    return jnp.arange(length, dtype=jnp.int32)


def between(starts, ends, places_gmem):
    """[queries, keys]: which of the keys at these places lie from starts to ends of a query."""
    shape = *starts.shape, *places_gmem.shape
    keys = along(load(places_gmem, BY_COLUMN), shape, 1)
    return (keys >= along(starts, shape, 0)) & (keys <= along(ends, shape, 0))
