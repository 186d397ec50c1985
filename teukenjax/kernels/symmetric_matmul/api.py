"""Products that are known to be symmetric, at half the work where a kernel can do that.

X Xᵀ is one, and so is the product of two polynomials in one symmetric matrix: nearly all of what
Newton–Schulz multiplies. The kernel multiplies the upper triangle alone and mirrors it, so what it
returns is symmetric bit for bit.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from teukenjax.kernels.symmetric_matmul.reference import reference_product

# Below, a matrix has too few tiles for a GPU's processors, and cuBLAS is as fast (BUILD_NOTES).
PALLAS_PAYS_FROM = 1024


def gram(
    x: Float[Array, "*stack m k"], *, implementation: str = "reference"
) -> Float[Array, "*stack m m"]:
    """X Xᵀ, summed in fp32 at least and rounded once; arguments as ``symmetric_product``."""
    if implementation == "reference":
        return reference_product(x, x.mT)
    return _by_pallas(x, x, None, 1.0, 0.0)


def symmetric_product(
    x: Float[Array, "*stack m m"],
    y: Float[Array, "*stack m m"],
    addend: Float[Array, "*stack m m"] | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    implementation: str = "reference",
) -> Float[Array, "*stack m m"]:
    """alpha · X Y + beta · addend of symmetric matrices that commute.

    Args:
      x, y: stacks of matrices of one dtype, 16 bits for ``pallas``. It reads rows of Y for
        columns, so Y must be symmetric to the last bit, as what it returns is.
      addend: symmetric, of the same dtype.
      alpha, beta: factors.
      implementation: ``reference``, or ``pallas`` on a Hopper GPU; neither is differentiated.

    Returns:
      Sums in fp32 at least, rounded once to the dtype of ``x``.

    Raises:
      ValueError: a dtype that ``pallas`` does not take.
    """
    if implementation == "reference":
        return reference_product(x, y, addend, alpha=alpha, beta=beta)
    return _by_pallas(x, y, addend, alpha, beta)


def _by_pallas(x, y, addend, alpha: float, beta: float):
    from teukenjax.kernels.symmetric_matmul import pallas

    if x.dtype not in (jnp.bfloat16, jnp.float16) or y.dtype != x.dtype:
        raise ValueError(
            f"symmetric_product: {x.dtype} times {y.dtype}: pallas takes two arrays of bfloat16, "
            "or two of float16"
        )
    *stack, m, _ = x.shape
    rows, depth = pallas.MULTIPLES

    def padded(matrices, *multiples):
        pads = [(-size) % unit for size, unit in zip(matrices.shape[-2:], multiples, strict=True)]
        matrices = matrices.reshape(math.prod(stack), *matrices.shape[-2:])
        return jnp.pad(matrices, ((0, 0), *((0, pad) for pad in pads)))

    if addend is not None:
        addend = padded(addend, rows, rows)
    x, y = padded(x, rows, depth), padded(y, rows, depth)
    out = pallas.symmetric_product(x, y, addend, alpha=alpha, beta=beta)
    return out[:, :m, :m].reshape(*stack, m, m)
