"""What the forward and the backward kernels of attention have in common."""

import math
from collections.abc import Callable

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from teukenjax.kernels import hopper
from teukenjax.kernels.attention.api import BLOCK, HEAD_DIM

WARPGROUPS = 2  # that multiply
ROWS = 64  # of a block that one warpgroup owns, as wgmma has them
assert BLOCK == WARPGROUPS * ROWS  # positions that a program owns, and keys of a step
LOG2_E = math.log2(math.e)
LOWEST = -1e30  # of a maximum: a row that a block masks as a whole has weights 0, not NaN
THREADS = {"num_threads": WARPGROUPS + 1, "thread_name": "warpgroup"}
FAST = plgpu.CompilerParams(approx_math=True)
BY_ROW, BY_COLUMN = (plgpu.Layout.WGMMA.reduce(axis) for axis in (1, 0))
MEMORY_REGISTERS = 40
KV_STAGES = 2  # blocks of keys and values that are loaded ahead


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


def pipelined(step, compute, *, grid, in_specs, stages: int, **how):
    """``step`` in the multiplying warpgroups, over blocks that the third one loads ahead."""
    return plgpu.emit_pipeline_warp_specialized(
        step,
        grid=grid,
        memory_registers=MEMORY_REGISTERS,
        in_specs=in_specs,
        wg_axis="warpgroup",
        num_compute_wgs=WARPGROUPS,
        max_concurrent_steps=stages,
        compute_context=compute,
        **how,
    )


def over_keys(step, compute, k_gmem, v_gmem, *, first, steps) -> None:
    """``pipelined`` over blocks of keys and values, which a step releases one by one."""
    block = plgpu.BlockSpec(
        (BLOCK, HEAD_DIM), lambda step: (first + step, 0), transforms=hopper.SWIZZLED
    )
    run = pipelined(
        step,
        compute,
        grid=(steps,),
        in_specs=[block, block],
        stages=KV_STAGES,
        manual_consumed_barriers=True,
    )
    run(k_gmem, v_gmem)


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
