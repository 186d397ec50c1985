"""Logits that are never written: a Hopper product whose epilogue is the softmax of its tile.

What leaves a tile is exp(logit − top) in 16 bits, where top is the largest logit of that row in the
tile's half, and the two statistics of the half. Rounding this costs 2⁻⁹ of a probability, which its
gradient is rounded to anyway; rounding the logits would cost 2⁻⁹ of a *logit*, ten times as much.
"""

import functools

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from teukenjax.kernels import hopper
from teukenjax.kernels.hopper import CHUNK, PART, TILE, WARPGROUPS

LOWEST = -1e30  # of a top: rows without a valid column have exponentials 0, not NaN


@functools.partial(jax.jit, static_argnames="keep")
def exponentials(
    hidden: Float[Array, "C D"],
    table: Float[Array, "V D"],
    valid: Int[Array, ""],
    *,
    keep: bool = True,
) -> tuple[Float[Array, "C V"] | None, Float[Array, "P C"], Float[Array, "P C"]]:
    """exp(logits − top) and its statistics by parts of 128 columns; C a multiple of 128.

    Args:
      hidden: bfloat16 (or float16) hidden states.
      table: rows of the vocabulary, same dtype. If V is no multiple of 64 it is copied, padded.
      valid: rows of ``table`` from here on are padding.
      keep: whether the exponentials are wanted, or the statistics alone.

    Returns:
      exp(logit − top of its row and part), in the dtype of ``hidden``; top, and the sum of the
      exponentials, in fp32, for each of the P = ⌈V/128⌉ parts.
    """
    C, V = len(hidden), len(table)
    table = jnp.pad(table, ((0, -V % CHUNK), (0, 0)))
    valid, parts = jnp.minimum(valid, V), -(-V // PART)
    statistic = jax.ShapeDtypeStruct((parts, C), jnp.float32)
    kept = [jax.ShapeDtypeStruct((C, len(table)), hidden.dtype)] if keep else []
    kernel = hopper.kernel(
        functools.partial(_body, keep=keep),
        name="head_exponentials",
        out_type=[statistic, statistic, *kept],
        grid=(hopper.processors(),),
        grid_names=("sm",),
        **hopper.THREADS,
    )
    top, total, *kept = kernel(valid.reshape(1), hidden[None], table[None])
    return kept[0][:, :V] if keep else None, top, total


def _body(valid_gmem, hidden_gmem, table_gmem, top_gmem, sum_gmem, *kept, keep):
    C, V = hidden_gmem.shape[1], table_gmem.shape[1]
    rows = C // PART

    def locate(index):
        # Rows change first: all hidden states stay in the L2 cache, the table passes once.
        return jnp.int32(0), lax.rem(index, rows), lax.div(index, rows)

    def finish(sums, _, row, part, kept_smem=None):
        columns = plgpu.broadcasted_iota(jnp.int32, (PART, PART), 1, layout=plgpu.Layout.WGMMA)
        logits = jnp.where(columns + part * PART < valid_gmem[0], sums, -jnp.inf)
        top = jnp.maximum(logits.max(axis=1), LOWEST)
        powers = jnp.exp(logits - lax.broadcast_in_dim(top, logits.shape, [0]))
        total = powers.sum(axis=1)

        @pl.when(part * PART < V)
        def _():
            here = part, pl.ds(row * PART, PART)
            top_gmem[here] = top
            sum_gmem[here] = total

        if keep:
            own = kept_smem.at[lax.axis_index("warpgroup")]
            store(powers.astype(hidden_gmem.dtype), row, part, own, *kept)

    def store(powers, row, part, kept_smem, kept_gmem):
        for n, r in enumerate(range(0, PART, CHUNK)):
            for c in range(0, PART, CHUNK):
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                slot = kept_smem.at[(2 * n + c // CHUNK) % 2]
                slot[...] = powers[r : r + CHUNK, c : c + CHUNK]
                plgpu.commit_smem()
                here = pl.ds(row * PART + r, CHUNK), pl.ds(part * PART + c, CHUNK)

                @pl.when(part * PART < V)
                def _(slot=slot, here=here):
                    plgpu.copy_smem_to_gmem(slot, kept_gmem.at[here])

    scratch = {}
    if keep:
        shape = (WARPGROUPS, 2, CHUNK, CHUNK)
        scratch["kept_smem"] = plgpu.SMEM(shape, hidden_gmem.dtype, transforms=hopper.SWIZZLED)
    hopper.for_each_tile(
        hidden_gmem,
        table_gmem,
        count=rows * -(-V // TILE[1]),
        locate=locate,
        finish=finish,
        scratch=scratch,
    )
