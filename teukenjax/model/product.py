"""The product of an activation with a weight that is spread over the mesh.

Left to automatic differentiation, a weight's gradient would be a bf16 matrix, summed over the
devices in bf16 and only then widened. Teuken was trained with gradients reduced in fp32, so the
backward pass is written out: the gradient's own product accumulates into fp32, and that is what
is reduced, straight to the shard that owns it. The gathered weight is not kept between the passes
but gathered again, unless it comes ``WithCopy``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from teukenjax.precision import einsum_fp32, precision_of
from teukenjax.sharding import Layout


class WithCopy(NamedTuple):
    """A weight, and what it is computed with: cast and gathered before, for several products.

    The gradient is the owner's alone. Of stacked layers, the copy may be a tuple of theirs.
    """

    owner: Float[Array, "..."]
    copy: Float[Array, "..."] | tuple[Float[Array, "..."], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def product(
    equation: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."] | WithCopy,
    axes: tuple[str, ...],
    layout: Layout,
    scanned: bool,
) -> Float[Array, "..."]:
    """einsum(equation, x, weight) in the dtype of ``x``, accumulated in fp32.

    Args:
      equation: of two operands, such as "bsd,df->bsf"; each letter stands in at least two terms.
      x: activation, in the compute dtype.
      weight: fp32, placed as parameters are. Its gradient is fp32, placed as gradients are.
      axes: the weight's logical axes.
      layout: mesh and strategy.
      scanned: the layer is the body of a scan, so its backward pass ends before the next begins.
    """
    whole = _whole(weight, axes, x.dtype, layout)
    return jnp.einsum(equation, x, whole, precision=precision_of(x.dtype))


def _whole(weight, axes, dtype, layout):
    return weight.copy if isinstance(weight, WithCopy) else layout.gather(weight, axes, dtype)


def _forward(equation, x, weight, axes, layout, scanned):
    return product(equation, x, weight, axes, layout, scanned), (x, weight)


def _backward(equation, axes, layout, scanned, residuals, dy):
    x, weight = residuals
    operands, out = equation.split("->")
    of_x, of_weight = operands.split(",")
    whole = _whole(weight, axes, x.dtype, layout)
    dx = jnp.einsum(f"{out},{of_weight}->{of_x}", dy, whole, precision=precision_of(x.dtype))
    dw = einsum_fp32(f"{of_x},{out}->{of_weight}", x, dy)
    if not scanned:
        # XLA would put all layers' gradients off to the end, and keep their factors until then.
        dx, dw = jax.lax.optimization_barrier((dx, dw))
    dw = layout.reduce(dw, axes)
    return dx, WithCopy(dw, None) if isinstance(weight, WithCopy) else dw


product.defvjp(_forward, _backward)
