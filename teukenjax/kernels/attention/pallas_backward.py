"""Attention's backward pass: one kernel for dQ by blocks of queries, one for dK and dV by keys.

Both compute the weights P = 2^(SCALE · scores − log_sums) again. With delta, the sum of
out · d_out of a query, dS = P ∘ (d_out vᵀ − delta); then dQ = dS k/√N, dK = dSᵀ q/√N and
dV = Pᵀ d_out. The second kernel holds everything transposed, so that P and dS are already in the
registers that a product reads its left side from.
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
from teukenjax.kernels.attention.pallas_forward import SCALE
from teukenjax.kernels.attention.tiles import (
    BY_COLUMN,
    BY_ROW,
    FAST,
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
    pipelined,
    places,
    zeros,
)

Q_STAGES = 4  # blocks of queries that are loaded ahead
PROGRAMS_PER_SM = 6  # of the kernel for dK and dV, at least: they differ in length


@jax.jit
def backward(
    q: Float[Array, "B S H N"],
    k: Float[Array, "B S K N"],
    v: Float[Array, "B S K N"],
    starts: Int[Array, "B S"],
    out: Float[Array, "B S H N"],
    log_sums: Float[Array, "B H S"],
    d_out: Float[Array, "B S H N"],
) -> tuple[Float[Array, "B S H N"], Float[Array, "B S K N"], Float[Array, "B S K N"]]:
    """The cotangents of q, k and v."""
    delta = jnp.einsum("bshn,bshn->bhs", out, d_out, preferred_element_type=jnp.float32)
    rows = (q, k, v, d_out, log_sums / SCALE, delta)
    return _backward_q(starts, *rows), *_backward_kv(starts, *rows)


def _backward_q(starts, q, k, v, d_out, log_sums, delta):
    B, S, H, _ = q.shape
    kernel = hopper.kernel(
        _q_body,
        name="attention_backward_q",
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        scratch_types={
            "q_smem": operands(WARPGROUPS, ROWS, HEAD_DIM),
            "d_out_smem": operands(WARPGROUPS, ROWS, HEAD_DIM),
            "loaded": plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
        },
        grid=(H, B, S // BLOCK),
        grid_names=("head", "batch", "block"),
        compiler_params=FAST,
        **THREADS,
    )
    return kernel(starts, places(S), q, k, v, d_out, log_sums, delta)


def _q_body(
    starts_gmem, places_gmem, q_gmem, k_gmem, v_gmem, d_out_gmem, sums_gmem, delta_gmem, dq_gmem,
    *, q_smem, d_out_smem, loaded,
):  # fmt: skip
    head, batch, warpgroup, rows, keys = own_queries(starts_gmem, q_gmem, k_gmem)
    own_q, own_d_out = q_smem.at[warpgroup], d_out_smem.at[warpgroup]

    def compute(run):
        arrived = loaded.at[warpgroup]
        plgpu.copy_gmem_to_smem(q_gmem.at[batch, rows, head], own_q, arrived)
        plgpu.copy_gmem_to_smem(d_out_gmem.at[batch, rows, head], own_d_out, arrived)
        sight = load(starts_gmem.at[batch, rows], BY_ROW), load(places_gmem.at[rows], BY_ROW)
        log_sums, delta = (
            load(gmem.at[batch, head, rows], BY_ROW) for gmem in (sums_gmem, delta_gmem)
        )
        plgpu.barrier_wait(arrived)
        dq, *_ = run((zeros(ROWS, HEAD_DIM), sight, -log_sums, -delta))
        own_q[...] = (dq / math.sqrt(HEAD_DIM)).astype(own_q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_q, dq_gmem.at[batch, rows, head])
        plgpu.wait_smem_to_gmem(0)

    def step(indices, k_smem, v_smem, k_consumed, v_consumed, carry):
        dq, sight, *begin = carry
        at = keys.first + indices[0]
        scores, d_weights = (along(numbers, (ROWS, BLOCK), 0) for numbers in begin)
        scores = hide_if(
            keys.masked(at),
            scores,
            lambda: between(*sight, places_gmem.at[pl.ds(at * BLOCK, BLOCK)]),
        )

        def multiply_all(sums):
            dq, scores, d_weights = sums
            hopper.multiply_add(scores, own_q, k_smem.T)
            hopper.multiply_add(d_weights, own_d_out, v_smem.T)
            weights = jnp.exp2(hopper.read(scores, pending=1) * SCALE)
            ds = weights * hopper.read(d_weights)
            plgpu.barrier_arrive(v_consumed)
            hopper.multiply_add(dq, ds.astype(k_smem.dtype), k_smem)

        dq, *_ = hopper.with_sums([dq, scores, d_weights], multiply_all)
        plgpu.barrier_arrive(k_consumed)
        return dq, sight, *begin

    over_keys(step, compute, k_gmem, v_gmem, keys)


def parts_of_group(group: int, programs: int) -> int:
    """Into how many parts the query heads of a KV head are split, to fill the processors.

    Args:
      group: G = H/K.
      programs: of one part: blocks of keys, of all KV heads and sequences.
    """
    wanted = PROGRAMS_PER_SM * hopper.processors()
    divisors = (parts for parts in range(1, group) if group % parts == 0)
    return next((parts for parts in divisors if parts * programs >= wanted), group)


def _ends(starts: Int[Array, "B S"]) -> Int[Array, "B blocks 2"]:
    """Up to where queries see the first, and the last, key of each block."""
    B, S = starts.shape
    keys = jnp.arange(S, dtype=jnp.int32).reshape(-1, BLOCK)[:, :: BLOCK - 1]
    ends = jax.vmap(lambda row: jnp.searchsorted(row, keys.reshape(-1), side="right"))(starts)
    return ends.reshape(B, -1, 2).astype(jnp.int32)


def _backward_kv(starts, q, k, v, d_out, log_sums, delta):
    B, S, K, N = k.shape
    parts = parts_of_group(q.shape[2] // K, B * K * S // BLOCK)
    sums = jax.ShapeDtypeStruct((parts, B, S, K, N), jnp.float32)
    kernel = hopper.kernel(
        _kv_body,
        name="attention_backward_kv",
        out_type=[sums, sums],
        scratch_types={
            "k_smem": operands(WARPGROUPS, ROWS, HEAD_DIM),
            "v_smem": operands(WARPGROUPS, ROWS, HEAD_DIM),
            "loaded": plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
        },
        grid=(parts, K, B, S // BLOCK),
        grid_names=("part", "kv_head", "batch", "block"),
        compiler_params=FAST,
        **THREADS,
    )
    dk, dv = kernel(starts, _ends(starts), places(S), q, k, v, d_out, log_sums, delta)
    return tuple(d.sum(axis=0).astype(k.dtype) for d in (dk, dv))


def _kv_body(
    starts_gmem, ends_gmem, places_gmem, q_gmem, k_gmem, v_gmem, d_out_gmem, sums_gmem, delta_gmem,
    dk_gmem, dv_gmem, *, k_smem, v_smem, loaded,
):  # fmt: skip
    part, kv_head, batch, block, warpgroup = map(
        lax.axis_index, ("part", "kv_head", "batch", "block", "warpgroup")
    )
    heads = q_gmem.shape[2] // k_gmem.shape[2] // dk_gmem.shape[0]  # of this program
    head0 = (kv_head * dk_gmem.shape[0] + part) * heads
    own = block * WARPGROUPS + warpgroup  # in units of ROWS, as are first and stop
    first = block * WARPGROUPS
    stop = lax.div(ends_gmem[batch, block, 1] + ROWS - 1, ROWS)
    whole_until = lax.div(ends_gmem[batch, block, 0], ROWS)
    own_k, own_v = k_smem.at[warpgroup], v_smem.at[warpgroup]

    def compute(run):
        rows, arrived = pl.ds(own * ROWS, ROWS), loaded.at[warpgroup]
        plgpu.copy_gmem_to_smem(k_gmem.at[batch, rows, kv_head], own_k, arrived)
        plgpu.copy_gmem_to_smem(v_gmem.at[batch, rows, kv_head], own_v, arrived)
        plgpu.barrier_wait(arrived)
        dk, dv = run((zeros(ROWS, HEAD_DIM), zeros(ROWS, HEAD_DIM)))
        dk_gmem[part, batch, rows, kv_head] = dk / math.sqrt(HEAD_DIM)
        dv_gmem[part, batch, rows, kv_head] = dv

    def step(indices, q_smem, d_out_smem, sums_smem, delta_smem, carry):
        at = first + indices[1]

        def sees():
            here = pl.ds(at * ROWS, ROWS)
            starts, ends = (
                along(load(gmem, BY_COLUMN), shape, 1)
                for gmem in (starts_gmem.at[batch, here], places_gmem.at[here])
            )
            keys = along(load(places_gmem.at[pl.ds(own * ROWS, ROWS)], BY_ROW), shape, 0)
            return (keys >= starts) & (keys <= ends)

        shape = (ROWS, ROWS)
        scores, d_weights = (
            along(-load(smem, BY_COLUMN), shape, 1) for smem in (sums_smem, delta_smem)
        )
        scores = hide_if((at <= own) | (at >= whole_until), scores, sees)

        def multiply_all(sums):
            dk, dv, scores, d_weights = sums
            hopper.multiply_add(scores, own_k, q_smem.T)
            hopper.multiply_add(d_weights, own_v, d_out_smem.T)
            weights = jnp.exp2(hopper.read(scores, pending=1) * SCALE)
            hopper.multiply_add(dv, weights.astype(d_out_smem.dtype), d_out_smem)
            ds = weights * hopper.read(d_weights, pending=1)
            hopper.multiply_add(dk, ds.astype(q_smem.dtype), q_smem)

        return tuple(hopper.with_sums([*carry, scores, d_weights], multiply_all)[:2])

    rows = plgpu.BlockSpec(
        (ROWS, None, HEAD_DIM),
        lambda head, step: (first + step, head0 + head, 0),
        transforms=hopper.SWIZZLED,
    )
    numbers = plgpu.BlockSpec((None, ROWS), lambda head, step: (head0 + head, first + step))
    run = pipelined(
        step,
        compute,
        grid=(heads, stop - first),
        in_specs=[rows, rows, numbers, numbers],
        stages=Q_STAGES,
    )
    run(*(gmem.at[batch] for gmem in (q_gmem, d_out_gmem, sums_gmem, delta_gmem)))
