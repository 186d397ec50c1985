"""Products by tiles on a Hopper GPU: what our matrix kernels have in common, in Pallas Mosaic GPU.

A persistent program an SM takes tiles of ``TILE`` rows of X times ``TILE`` rows of Y, both with k
last. One warpgroup loads ahead by TMA; the two others multiply one half of the tile's columns each
and hand their fp32 sums to the kernel's own epilogue.
"""

import functools
from collections.abc import Callable

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

PART = 128  # rows, and columns, of what one warpgroup multiplies
WARPGROUPS = 2  # that multiply
TILE = (PART, WARPGROUPS * PART)  # rows of X, rows of Y
DEPTH = 64  # of a step along k
STAGES = 4  # steps that are loaded ahead
CHUNK = 64  # rows and columns that an epilogue writes at a time
SWIZZLED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # of 16-bit numbers
THREADS = {"num_threads": WARPGROUPS + 1, "thread_name": "warpgroup"}


def processors() -> int:
    """Streaming multiprocessors of the GPU that is traced for."""
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device.num_cores
    return jax.devices()[0].core_count


def kernel(body: Callable, *, name: str, **how) -> Callable:
    """``plgpu.kernel`` of a body that compilers and profiles know by a name.

    Call it under ``jax.jit``: Mosaic takes kernels from two calls for the same one, and compiles it
    once, only if the same traced function made both.
    """
    named = functools.partial(body)
    named.__name__ = name
    return plgpu.kernel(named, **how)


def with_sums(values, body: Callable) -> list:
    """fp32 sums in registers, after a body that was given accumulators which start with them."""
    return pl.run_state(body)([plgpu.ACC.init(value) for value in values])


def multiply_add(sums, x, y_smem):
    """Starts sums += x Y, for x in registers or in shared memory."""
    plgpu.wgmma(sums, x, y_smem)


def read(sums, *, pending: int = 0):
    """The sums, once no more than the last ``pending`` products that were started still run."""
    return lax.optimization_barrier(plgpu.wgmma_accumulator_load(sums, wait_n=pending))


def for_each_tile(x_gmem, y_gmem, *, count: int, locate: Callable, finish: Callable, scratch: dict):
    """Multiplies the tiles 0 … count − 1, spread over the grid axis "sm".

    Args:
      x_gmem, y_gmem: [Z, m, k] and [Z, n, k].
      count: tiles of all Z.
      locate: tile → (z, row, column), in units of ``TILE``.
      finish: called in a warpgroup as ``finish(sums, z, row, part, **scratch)`` with fp32 sums
        [PART, PART] of rows ``row * PART`` … and columns ``part * PART`` ….
      scratch: memory of the epilogue, by name.
    """
    k = x_gmem.shape[-1]

    def pipeline(step, context):
        return plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(k // DEPTH,),
            memory_registers=40,
            in_specs=[
                plgpu.BlockSpec((rows, DEPTH), lambda step: (0, step), transforms=SWIZZLED)
                for rows in TILE
            ],
            wg_axis="warpgroup",
            num_compute_wgs=WARPGROUPS,
            max_concurrent_steps=STAGES,
            compute_context=context,
        )

    def with_memory(allocations, **memory):
        warpgroup = lax.axis_index("warpgroup")

        @plgpu.nd_loop((count,), collective_axes="sm")
        def _tile(loop: plgpu.NDLoopInfo):
            z, row, column = locate(loop.index[0])

            def multiply(_, x_smem, y_smem, sums):
                part = y_smem.at[pl.ds(warpgroup * PART, PART)]
                plgpu.wgmma(sums, x_smem, part.T)
                plgpu.wgmma_wait(0)
                return sums

            def whole(run):
                @functools.partial(pl.run_scoped, sums=plgpu.ACC((PART, PART), jnp.float32))
                def _(sums):
                    run(sums)
                    finish(sums[...], z, row, column * WARPGROUPS + warpgroup, **memory)

            rows, columns = (
                pl.ds(at * size, size) for at, size in zip((row, column), TILE, strict=True)
            )
            multiply_all = pipeline(multiply, whole)
            multiply_all(x_gmem.at[z, rows], y_gmem.at[z, columns], allocations=allocations)

    def nothing(*_, **__):
        return None

    # What memory a pipeline needs does not depend on what it computes.
    allocations = pipeline(nothing, nothing).get_allocations(x_gmem.at[0], y_gmem.at[0])
    pl.run_scoped(with_memory, allocations, collective_axes="warpgroup", **scratch)
    plgpu.wait_smem_to_gmem(0)
