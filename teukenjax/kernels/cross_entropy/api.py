"""What the model calls: the loss of hidden states against a vocabulary table.

Why not logits and a softmax: with V = 250,680 the logits of one 4096-token sequence are 4 GB in
fp32. So tokens go through in chunks, and the gradients of a chunk are computed in the forward
pass while its probabilities are at hand: they only need scaling by the loss's own cotangent
later, and no logits are kept or computed twice.

Why a ``shard_map``: when the table is split over its vocabulary, each device keeps its rows and
sees every token of its group. Per chunk, hidden states are gathered, the softmax's maximum and
sum and the label's logit are combined, and d-hidden goes back to the token's owner. The table
and its gradient never move.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from teukenjax.kernels.cross_entropy.softmax import FORMS, label_logits
from teukenjax.kernels.hopper import PART
from teukenjax.precision import einsum_fp32
from teukenjax.sharding import BATCH_AXES, Layout


@dataclasses.dataclass(frozen=True)
class Head:
    """What is static about a call."""

    vocab_size: int  # rows of the table beyond this are padding: probability zero
    chunk: int  # tokens per device whose logits exist at one time
    dtype: str  # of the products; statistics are fp32
    layout: Layout
    z_loss: float
    implementation: str


def linear_cross_entropy(
    hidden: Float[Array, "B S D"],
    tables: Float[Array, "R V D"],
    labels: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    vocab_size: int,
    chunk: int,
    layout: Layout,
    z_loss: float = 0.0,
    implementation: str = "reference",
) -> tuple[Float[Array, ""], Float[Array, "B S"]]:
    """Weighted cross-entropy of next tokens.

    Args:
      hidden: final hidden states; their dtype is that of the products.
      tables: fp32 output table as ``layout.each`` gives it; rows from ``vocab_size`` on are
        padding.
      labels: in [0, vocab_size).
      weights: of each token in the sum; 0 masks it.
      vocab_size: V without padding.
      chunk: tokens per device whose logits exist at one time.
      layout: mesh and strategy.
      z_loss: factor of log²(Σ exp logits), which is added to a token's loss in the sum.
      implementation: of the softmax: ``reference``, or ``pallas`` on a Hopper GPU for 16 bits.

    Returns:
      Σ weight · loss in nats, differentiable in ``hidden`` and ``tables``; and the loss of each
      token in nats (before weighting, without z-loss), which carries no gradient.

    Raises:
      ValueError: for what ``pallas`` does not take.
    """
    if implementation == "pallas" and hidden.dtype.itemsize != 2:
        raise ValueError(f"linear_cross_entropy: {hidden.dtype}: pallas takes 16-bit floats")
    head = Head(vocab_size, chunk, str(hidden.dtype), layout, z_loss, implementation)
    return _loss(hidden, tables, labels, weights, head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(hidden, tables, labels, weights, head: Head):
    total, losses, _ = _sharded(head, hidden, tables, labels, weights, gradients=False)
    return total, losses


def _loss_forward(hidden, tables, labels, weights, head: Head):
    total, losses, gradients = _sharded(head, hidden, tables, labels, weights, gradients=True)
    return (total, losses), gradients


def _loss_backward(head: Head, gradients, cotangents):
    scale, _ = cotangents
    d_hidden, d_tables = gradients
    return (d_hidden * scale.astype(d_hidden.dtype), d_tables * scale, None, None)


_loss.defvjp(_loss_forward, _loss_backward)


def _sharded(head: Head, hidden, tables, labels, weights, *, gradients: bool):
    tokens = P(BATCH_AXES, None)
    states = P(BATCH_AXES, None, None)
    each = head.layout.each_spec
    body = functools.partial(_local, head, gradients=gradients)
    return jax.shard_map(
        body,
        mesh=head.layout.mesh,
        in_specs=(states, each, tokens, tokens),
        out_specs=(P(), tokens, (states, each) if gradients else None),
        check_vma=False,
    )(hidden, tables, labels, weights)


def _local(head: Head, hidden_BSD, table_1VD, labels_BS, weights_BS, *, gradients: bool):
    """One device's part: chunks of its own tokens, joined by those of its group."""
    B, S, D = hidden_BSD.shape
    tokens = B * S
    chunk = min(head.chunk, tokens)
    if head.implementation == "pallas":
        chunk += -chunk % PART
    padding = -tokens % chunk

    def chunks(x):
        flat = x.reshape(tokens, *x.shape[2:])
        flat = jnp.pad(flat, ((0, padding), *((0, 0) for _ in flat.shape[1:])))
        return flat.reshape(-1, chunk, *flat.shape[1:])

    table = table_1VD[0].astype(head.dtype)
    step = functools.partial(_chunk, head, table, gradients=gradients)
    start = jnp.zeros((), jnp.float32), jnp.zeros(table.shape if gradients else (), jnp.float32)
    inputs = (chunks(hidden_BSD), chunks(labels_BS), chunks(weights_BS))
    (total, d_table), (losses, d_hidden) = lax.scan(step, start, inputs)

    losses = losses.reshape(-1)[:tokens].reshape(B, S)
    total = lax.psum(total, BATCH_AXES)
    if not gradients:
        return total, losses, None
    d_hidden = d_hidden.reshape(-1, D)[:tokens].reshape(B, S, D)
    return total, losses, (d_hidden, d_table[None])


def _chunk(head: Head, table_VD, sums, inputs, *, gradients: bool):
    """Loss, and gradients when asked for, of one chunk of C tokens (after the gather)."""
    layout, (total, d_table) = head.layout, sums
    hidden_CD, labels_C, weights_C = (layout.of_group(x) for x in inputs)
    labels_C = labels_C - layout.first_row(table_VD)  # in this device's rows
    own_C = (labels_C >= 0) & (labels_C < len(table_VD))
    valid = jnp.asarray(head.vocab_size - layout.first_row(table_VD), jnp.int32)
    softmax = FORMS[head.implementation].of(hidden_CD, table_VD, valid, keep=gradients)

    top_C = _across(lax.pmax, softmax.top, layout.vocab_axes)
    log_sum_C = top_C + jnp.log(_across(lax.psum, softmax.total(top_C), layout.vocab_axes))
    label_C = label_logits(hidden_CD, table_VD, labels_C, own_C)
    losses_C = log_sum_C - _across(lax.psum, label_C, layout.vocab_axes)
    losses = _own(layout, losses_C)
    total += jnp.sum(_own(layout, weights_C * (losses_C + head.z_loss * jnp.square(log_sum_C))))
    if not gradients:
        return (total, d_table), (losses, None)

    scale_C = weights_C * (1 + 2 * head.z_loss * log_sum_C)
    is_label_CV = jnp.where(own_C, labels_C, -1)[:, None] == jnp.arange(len(table_VD))[None]
    # The label's own entry is a difference of two numbers near one: it is taken before rounding.
    at_label_C = scale_C * jnp.exp(label_C - log_sum_C) - weights_C
    d_logits_CV = softmax.scaled(log_sum_C, scale_C)
    d_logits_CV = jnp.where(is_label_CV, at_label_C[:, None], d_logits_CV).astype(head.dtype)
    d_table += einsum_fp32("cv,cd->vd", d_logits_CV, hidden_CD)
    d_hidden_CD = einsum_fp32("cv,vd->cd", d_logits_CV, table_VD)
    return (total, d_table), (losses, layout.to_owners(d_hidden_CD).astype(head.dtype))


def _across(reduce, x: Array, axes: tuple[str, ...]) -> Array:
    return reduce(x, axes) if axes else x


def _own(layout: Layout, x_C: Array) -> Array:
    """This device's tokens out of a gathered chunk."""
    if not layout.travel_axes:
        return x_C
    size = x_C.shape[0] // math.prod(layout.mesh.shape[axis] for axis in layout.travel_axes)
    return lax.dynamic_slice_in_dim(x_C, lax.axis_index(layout.travel_axes) * size, size)
