"""What a block calls: a sum of the residual stream, and its norm.

The stream goes through here and out again, so that a kernel can add, backward, what its other use
sends back (dh), in the pass that it makes anyway.
"""

import functools

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from teukenjax.kernels.rms_norm.reference import reference_rms_norm
from teukenjax.sharding import BATCH_AXES, Layout

STATES = P(BATCH_AXES, None, None)
WIDTHS = 1024  # pallas takes multiples of it


def refusal(*, dtype: str, width: int, gain: bool) -> str | None:
    """Why ``pallas`` cannot run on a Hopper GPU; None when it can."""
    if dtype != "bfloat16":
        return f"compute.dtype is {dtype}, not bfloat16"
    if width % WIDTHS:
        return f"width={width} is not a multiple of {WIDTHS}"
    return None if gain else "the norms have no gain"


def add_rms_norm(
    x: Float[Array, "B S D"],
    residual: Float[Array, "B S D"] | None,
    gain: Float[Array, " D"] | None,
    epsilon: float,
    *,
    layout: Layout,
    saved_as: str = "",
    implementation: str = "reference",
) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    """h = x + residual, and h / rms(h) · gain.

    Args:
      x: the residual stream.
      residual: what a layer adds to it; None: nothing, and h is x.
      gain: fp32; None: 1.
      epsilon: added to the mean square.
      layout: mesh, whose batch axes split B.
      saved_as: the name of h for remat policies; "": none.
      implementation: ``reference``, or ``pallas`` on a Hopper GPU (see ``refusal``).

    Returns:
      h and its norm, in the dtype of ``x``, the sum rounded to it first.

    Raises:
      ValueError: for what ``pallas`` does not take.
    """
    h = x if residual is None else layout.constrain_batch(x + residual)
    # A kernel that also added would run again for its norm, and the residual's product before it.
    h = checkpoint_name(h, saved_as) if saved_as else h
    if implementation == "reference":
        return h, reference_rms_norm(h, gain, epsilon)
    why = refusal(dtype=str(h.dtype), width=h.shape[-1], gain=gain is not None)
    if why is not None:
        raise ValueError(f"add_rms_norm: pallas cannot run: {why}")
    return _keep_norm(h, gain, epsilon, layout)


def rms_norm(
    x: Float[Array, "B S D"], gain: Float[Array, " D"] | None, epsilon: float, **how
) -> Float[Array, "B S D"]:
    """The norm alone, where the stream ends; arguments as ``add_rms_norm``."""
    if how["implementation"] == "reference":
        return reference_rms_norm(x, gain, epsilon)
    return _norm(x, gain, epsilon, how["layout"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _norm(x, gain, epsilon, layout):
    return _forward(x, gain, epsilon, layout)


def _norm_forward(x, gain, epsilon, layout):
    return _norm(x, gain, epsilon, layout), (x, gain)


def _norm_backward(epsilon, layout, saved, dy):
    return _backward(*saved, None, dy, epsilon, layout)


_norm.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _keep_norm(x, gain, epsilon, layout):
    return x, _forward(x, gain, epsilon, layout)


def _keep_norm_forward(x, gain, epsilon, layout):
    return _keep_norm(x, gain, epsilon, layout), (x, gain)


def _keep_norm_backward(epsilon, layout, saved, cotangents):
    return _backward(*saved, *cotangents, epsilon, layout)


_keep_norm.defvjp(_keep_norm_forward, _keep_norm_backward)


def _forward(x, gain, epsilon, layout: Layout):
    from teukenjax.kernels.rms_norm import pallas

    def local(x, gain):
        return pallas.forward(x.reshape(-1, x.shape[-1]), gain, epsilon).reshape(x.shape)

    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(STATES, P()),
        out_specs=STATES,
        check_vma=False,
    )(x, gain)


def _backward(h, gain, dh, dy, epsilon, layout: Layout):
    from teukenjax.kernels.rms_norm import pallas

    def local(h, gain, dh, dy):
        h, dh, dy = (None if a is None else a.reshape(-1, a.shape[-1]) for a in (h, dh, dy))
        dx, d_gain = pallas.backward(h, gain, dh, dy, epsilon)
        return dx.reshape(shape), lax.psum(d_gain, BATCH_AXES)

    shape = layout.batch(trailing=2).shard_shape(h.shape)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(STATES, P(), STATES, STATES),
        out_specs=(STATES, P()),
        check_vma=False,
    )(h, gain, dh, dy)
