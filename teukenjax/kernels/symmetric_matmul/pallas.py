"""The symmetric product on a Hopper GPU: half the tiles, each stored twice.

Only tiles that reach into the upper triangle are multiplied. What lies above the diagonal is
written as it is and, mirrored, below; so the result is symmetric bit for bit.
"""

import functools

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from teukenjax.kernels import hopper
from teukenjax.kernels.hopper import CHUNK, PART, TILE, WARPGROUPS

MULTIPLES = (TILE[1], hopper.DEPTH)  # of m and of k
CHUNKS = PART // CHUNK
BAND = 16  # tile rows that are walked down together, so that panels of Y are met in the L2 cache


@functools.partial(jax.jit, static_argnames=("alpha", "beta"))
def symmetric_product(
    x: Float[Array, "Z m k"],
    y: Float[Array, "Z m k"],
    addend: Float[Array, "Z m m"] | None,
    *,
    alpha: float,
    beta: float,
) -> Float[Array, "Z m m"]:
    """alpha · X Yᵀ + beta · addend for m in multiples of 256 and k of 64; see ``api``."""
    Z, m, _ = x.shape
    tiles = jnp.asarray(_upper_tiles(m))
    kernel = hopper.kernel(
        functools.partial(_body, alpha=alpha, beta=beta, adds=addend is not None),
        name="symmetric_product",
        out_type=jax.ShapeDtypeStruct((Z, m, m), x.dtype),
        grid=(hopper.processors(),),
        grid_names=("sm",),
        **hopper.THREADS,
    )
    return kernel(tiles, x, y, *(() if addend is None else (addend,)))


def _upper_tiles(m: int) -> np.ndarray:
    """[tiles, 2]: row and column of the tiles that reach into the upper triangle, in bands."""
    rows, columns = (m // size for size in TILE)
    found = [
        (row, column)
        for band in range(0, rows, BAND)
        for column in range(columns)
        for row in range(band, min(band + BAND, rows))
        if (column + 1) * WARPGROUPS > row
    ]
    return np.array(found, np.int32)


def _body(tiles_gmem, x_gmem, y_gmem, *rest, alpha, beta, adds):
    addend_gmem, out_gmem = rest if adds else (None, *rest)
    tiles = tiles_gmem.shape[0]

    def locate(index):
        tile = lax.rem(index, tiles)
        return lax.div(index, tiles), tiles_gmem[tile, 0], tiles_gmem[tile, 1]

    def finish(sums, z, row, part, out_smem):
        for r in range(0, PART, CHUNK):
            for c in range(0, PART, CHUNK):
                here = pl.ds(row * PART + r, CHUNK), pl.ds(part * PART + c, CHUNK)
                chunk = alpha * sums[r : r + CHUNK, c : c + CHUNK]
                if adds:
                    old = addend_gmem.at[(z, *here)]
                    old = plgpu.load(old, layout=plgpu.Layout.WGMMA, optimized=False)
                    chunk += beta * old.astype(jnp.float32)
                block = row * CHUNKS + r // CHUNK, part * CHUNKS + c // CHUNK
                store(chunk.astype(out_gmem.dtype), z, here, block, out_smem)

    def store(chunk, z, here, block, out_smem):
        straight, mirrored = (out_smem.at[lax.axis_index("warpgroup"), i] for i in range(2))
        up, left = block
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        straight[...] = chunk
        mirrored.T[...] = plgpu.layout_cast(chunk, plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()

        # On the diagonal both sides were multiplied, and rounded apart: Newton–Schulz would let
        # such a difference grow. Their mean is symmetric.
        @pl.when(left == up)
        def _():
            other = plgpu.load(mirrored, layout=plgpu.Layout.WGMMA, optimized=False)
            mean = 0.5 * (chunk.astype(jnp.float32) + other.astype(jnp.float32))
            straight[...] = mean.astype(chunk.dtype)
            plgpu.commit_smem()

        @pl.when(left >= up)
        def _():
            plgpu.copy_smem_to_gmem(straight, out_gmem.at[(z, *here)])

        @pl.when(left > up)
        def _():
            plgpu.copy_smem_to_gmem(mirrored, out_gmem.at[(z, *here[::-1])])

    out_smem = plgpu.SMEM((WARPGROUPS, 2, CHUNK, CHUNK), out_gmem.dtype, transforms=hopper.SWIZZLED)
    hopper.for_each_tile(
        x_gmem,
        y_gmem,
        count=x_gmem.shape[0] * tiles,
        locate=locate,
        finish=finish,
        scratch={"out_smem": out_smem},
    )
