"""Attention's forward pass: a program of two warpgroups owns 128 queries of one head.

A third warpgroup loads keys and values ahead. The two that multiply take turns at the tensor cores
(``turn``), so that one exponentiates while the other multiplies, as in FlashAttention-3 (Shah et
al. 2024, arXiv 2407.08608). The longest rows of blocks go first, and all heads of a KV head at a
time, so that its keys are met in the L2 cache.
"""

import math

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from teukenjax.kernels import hopper
from teukenjax.kernels.attention.api import BLOCK, HEAD_DIM
from teukenjax.kernels.attention.tiles import (
    BY_ROW,
    FAST,
    LOG2_E,
    LOWEST,
    ROWS,
    THREADS,
    WARPGROUPS,
    along,
    between,
    hide_if,
    load,
    operands,
    over_keys,
    own_queries,
    places,
    zeros,
)

SCALE = LOG2_E / math.sqrt(HEAD_DIM)  # of scores, whose exponentials are powers of 2


@jax.jit
def forward(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    starts: Int[Array, "B S"],
) -> tuple[Float[Array, "B S H N"], Float[Array, "B H S"]]:
    """The mixed values, and log₂ Σ 2^(SCALE · score) of each row in fp32."""
    B, S, H, _ = q.shape
    kernel = hopper.kernel(
        _body,
        name="attention_forward",
        out_type=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, H, S), jnp.float32),
        ],
        scratch_types={
            "q_smem": operands(WARPGROUPS, ROWS, HEAD_DIM),
            "loaded": plgpu.Barrier(num_barriers=WARPGROUPS),
            "tensor_cores": plgpu.Barrier(num_arrivals=WARPGROUPS),
        },
        grid=(H, B, S // BLOCK),
        grid_names=("head", "batch", "block"),
        compiler_params=FAST,
        **THREADS,
    )
    return tuple(kernel(starts, places(S), q, k, v))


def _body(
    starts_gmem, places_gmem, q_gmem, k_gmem, v_gmem, out_gmem, sums_gmem,
    *, q_smem, loaded, tensor_cores,
):  # fmt: skip
    head, batch, warpgroup, rows, keys = own_queries(starts_gmem, q_gmem, k_gmem)

    def turn():
        plgpu.barrier_arrive(tensor_cores)
        plgpu.barrier_wait(tensor_cores)

    def compute(run):
        own = q_smem.at[warpgroup]
        plgpu.copy_gmem_to_smem(q_gmem.at[batch, rows, head], own, loaded.at[warpgroup])
        sight = load(starts_gmem.at[batch, rows], BY_ROW), load(places_gmem.at[rows], BY_ROW)
        top, total = (
            plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), BY_ROW)
            for value in (LOWEST, 0)
        )
        plgpu.barrier_wait(loaded.at[warpgroup])
        pl.when(warpgroup == 1)(turn)
        mixed, top, total, _ = run((zeros(ROWS, HEAD_DIM), top, total, sight))
        pl.when(warpgroup == 0)(turn)
        own[...] = (mixed / along(total, mixed.shape, 0)).astype(own.dtype)
        sums_gmem[batch, head, rows] = top + jnp.log(total) * LOG2_E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own, out_gmem.at[batch, rows, head])
        plgpu.wait_smem_to_gmem(0)

    def step(indices, k_smem, v_smem, k_consumed, v_consumed, carry):
        mixed, top, total, sight = carry
        at = keys.first + indices[0]

        def multiply(sums):
            hopper.multiply_add(*sums, q_smem.at[warpgroup], k_smem.T)
            turn()

        begin = hide_if(
            keys.masked(at),
            zeros(ROWS, BLOCK),
            lambda: between(*sight, places_gmem.at[pl.ds(at * BLOCK, BLOCK)]),
        )
        (scores,) = hopper.with_sums([begin], multiply)
        plgpu.barrier_arrive(k_consumed)
        higher = jnp.maximum(top, scores.max(axis=1) * SCALE)
        shrink = jnp.exp2(top - higher)
        weights = jnp.exp2(scores * SCALE - along(higher, scores.shape, 0))
        mixed *= along(shrink, mixed.shape, 0)
        total = total * shrink + weights.sum(axis=1)
        weights = weights.astype(v_smem.dtype)
        # All of this is computed before the other warpgroup's turn ends, not after.
        mixed, total, higher, weights = lax.optimization_barrier((mixed, total, higher, weights))
        turn()
        (mixed,) = hopper.with_sums(
            [mixed], lambda sums: hopper.multiply_add(*sums, weights, v_smem)
        )
        plgpu.barrier_arrive(v_consumed)
        return mixed, higher, total, sight

    over_keys(step, compute, k_gmem, v_gmem, keys)
