"""The product of an activation with a weight that is spread over the mesh.

Left to automatic differentiation, a weight's gradient would be a bf16 matrix, summed over the
devices in bf16 and only then widened. Teuken was trained with gradients reduced in fp32, so the
backward pass is written out: the gradient's own product accumulates into fp32, and that is what
is reduced, straight to the shard that owns it. The gathered weight is not kept between the passes
but gathered again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from teukenjax.sharding import Layout


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def product(
    equation: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    axes: tuple[str, ...],
    layout: Layout,
) -> Float[Array, "..."]:
    """einsum(equation, x, weight) in the dtype of ``x``, accumulated in fp32.

    Args:
      equation: of two operands, such as "bsd,df->bsf"; each letter stands in at least two terms.
      x: activation, in the compute dtype.
      weight: fp32, placed as parameters are. Its gradient is fp32, placed as gradients are.
      axes: the weight's logical axes.
      layout: mesh and strategy.
    """
    return jnp.einsum(equation, x, layout.gather(weight, axes, x.dtype))


def _forward(equation, x, weight, axes, layout):
    return product(equation, x, weight, axes, layout), (x, weight)


def _backward(equation, axes, layout, residuals, dy):
    x, weight = residuals
    operands, out = equation.split("->")
    of_x, of_weight = operands.split(",")
    gathered = layout.gather(weight, axes, x.dtype)
    dx = jnp.einsum(f"{out},{of_weight}->{of_x}", dy, gathered)
    equation = f"{of_x},{out}->{of_weight}"
    dw = jnp.einsum(equation, x, dy, preferred_element_type=jnp.float32)
    return dx, layout.reduce(dw, axes)


product.defvjp(_forward, _backward)
