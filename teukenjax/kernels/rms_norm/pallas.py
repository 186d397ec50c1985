"""RMSNorm on a Hopper GPU: each pass reads its arrays once, straight into registers.

A program of one warpgroup takes every G-th row. Backward, it also sums its own part of the gain's
gradient in registers and writes it once; the G parts are added afterwards. Neither pass needs
anything kept from the other: both of backward's row sums come from one reading of x and dy.
"""

import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from teukenjax.kernels import hopper

VECTOR = 8  # neighbours that a thread loads at once: 16 bytes
FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 6, 2  # on each SM at a time, as registers allow


@functools.partial(jax.jit, static_argnames="epsilon")
def forward(
    x: Float[Array, "T D"], gain: Float[Array, " D"], epsilon: float
) -> Float[Array, "T D"]:
    """x / rms(x) · gain."""
    body = functools.partial(_forward, epsilon=epsilon)
    out_type = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _kernel(body, "rms_norm_forward", out_type, FORWARD_PROGRAMS)(x, gain)


@functools.partial(jax.jit, static_argnames="epsilon")
def backward(
    h: Float[Array, "T D"],
    gain: Float[Array, " D"],
    dh: Float[Array, "T D"] | None,
    dy: Float[Array, "T D"],
    epsilon: float,
) -> tuple[Float[Array, "T D"], Float[Array, " D"]]:
    """The cotangent of h, to which ``dh`` of its other uses is added, and the gain's."""
    programs = BACKWARD_PROGRAMS * hopper.processors()
    kernel = _kernel(
        functools.partial(_backward, epsilon=epsilon, adds=dh is not None),
        "rms_norm_backward",
        [
            jax.ShapeDtypeStruct(h.shape, h.dtype),
            jax.ShapeDtypeStruct((programs, h.shape[1]), jnp.float32),
        ],
        BACKWARD_PROGRAMS,
    )
    dx, parts = kernel(h, dy, *(() if dh is None else (dh,)), gain)
    return dx, parts.sum(axis=0)


def _kernel(body, name: str, out_type, programs: int):
    return hopper.kernel(
        body,
        name=name,
        out_type=out_type,
        grid=(programs * hopper.processors(),),
        grid_names=("program",),
    )


def _strided(D: int):
    return plgpu.Layout.WG_STRIDED((D,), vec_size=VECTOR)


def _load(gmem, *at):
    return plgpu.load(gmem.at[at] if at else gmem, layout=_strided(gmem.shape[-1])).astype(
        jnp.float32
    )


def _forward(x_gmem, gain_gmem, y_gmem, *, epsilon):
    T, D = x_gmem.shape
    gain = _load(gain_gmem)

    @plgpu.nd_loop((T,), collective_axes="program")
    def _row(loop: plgpu.NDLoopInfo):
        (row,) = loop.index
        x = _load(x_gmem, row)
        scale = lax.rsqrt(jnp.sum(x * x) / D + epsilon)
        y_gmem[row] = (x * scale * gain).astype(y_gmem.dtype)


def _backward(h_gmem, dy_gmem, *rest, epsilon, adds):
    dh_gmem, gain_gmem, dx_gmem, parts_gmem = rest if adds else (None, *rest)
    T, D = h_gmem.shape
    gain = _load(gain_gmem)
    start = plgpu.layout_cast(jnp.zeros((D,), jnp.float32), _strided(D))

    @plgpu.nd_loop((T,), collective_axes="program", init_carry=start)
    def d_gain(loop: plgpu.NDLoopInfo, carry):
        (row,) = loop.index
        h, dy = _load(h_gmem, row), _load(dy_gmem, row)
        scale = lax.rsqrt(jnp.sum(h * h) / D + epsilon)
        pull = dy * gain
        along = jnp.sum(pull * h) * scale * scale / D
        dx = scale * (pull - h * along)
        if adds:
            dx += _load(dh_gmem, row)
        dx_gmem[row] = dx.astype(dx_gmem.dtype)
        return carry + dy * h * scale

    parts_gmem[lax.axis_index("program")] = d_gain
