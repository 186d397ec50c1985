"""What the forward and the backward kernels of attention have in common."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
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


class Keys(NamedTuple):
    """The blocks of keys that a block of queries meets, of one sequence and KV head."""

    batch: jax.Array
    head: jax.Array
    first: jax.Array
    whole_from: jax.Array  # from here up to the diagonal no position needs a mask
    diagonal: jax.Array
    steps: jax.Array  # how many

    def masked(self, at):
        """Whether some query does not see all of a block."""
        return (at == self.diagonal) | (at < self.whole_from)


def own_queries(starts_gmem, q_gmem, k_gmem):
    """What a warpgroup owns: (query head, sequence, warpgroup, rows), and the ``Keys`` it meets.

    The last blocks, which meet the most keys, go first: no long program begins when others end.
    """
    head, batch = lax.axis_index("head"), lax.axis_index("batch")
    block = lax.axis_size("block") - 1 - lax.axis_index("block")
    warpgroup = lax.axis_index("warpgroup")
    kv_head = lax.div(head, q_gmem.shape[2] // k_gmem.shape[2])
    first = lax.div(starts_gmem[batch, block * BLOCK], BLOCK)
    whole_from = lax.div(starts_gmem[batch, block * BLOCK + BLOCK - 1] + BLOCK - 1, BLOCK)
    keys = Keys(batch, kv_head, first, whole_from, block, block + 1 - first)
    return head, batch, warpgroup, pl.ds(block * BLOCK + warpgroup * ROWS, ROWS), keys


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


def over_keys(step, compute, k_gmem, v_gmem, keys: Keys) -> None:
    """``pipelined`` over blocks of keys and values, which a step releases one by one."""
    block = plgpu.BlockSpec(
        (BLOCK, HEAD_DIM), lambda step: (keys.first + step, 0), transforms=hopper.SWIZZLED
    )
    run = pipelined(
        step,
        compute,
        grid=(keys.steps,),
        in_specs=[block, block],
        stages=KV_STAGES,
        manual_consumed_barriers=True,
    )
    run(*(gmem.at[keys.batch, :, keys.head] for gmem in (k_gmem, v_gmem)))


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
