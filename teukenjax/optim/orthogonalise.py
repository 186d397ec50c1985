"""The nearest semi-orthogonal matrix, by matrix products alone.

A step in the spectral norm needs the polar factor U Vᵀ of X = U diag(σ) Vᵀ. A singular value
decomposition is slow on accelerators, so odd polynomials are applied instead: with A = X Xᵀ,

    X ← a X + (b A + c A²) X        maps every σ to  p(σ) = a σ + b σ³ + c σ⁵

and leaves U and V alone. A few such steps push all σ in (0, 1] towards 1; ``coefficients`` has the
named sets. ``newton_schulz`` does just that, ``gram_newton_schulz`` the same on A alone, cheaper
where X is long and narrow; ``polar`` is the exact factor.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from teukenjax.kernels.symmetric_matmul import PALLAS_PAYS_FROM, gram, symmetric_product
from teukenjax.optim.coefficients import Triple, steps_of
from teukenjax.precision import precision_of

# n/m from which the Gram form needs fewer FLOPs; see there.
GRAM_PAYS_FROM = 1.5


def newton_schulz(
    x: Float[Array, "*stack m n"],
    *,
    coefficients: str = "kj",
    iterations: int | None = None,
    dtype: DTypeLike = jnp.bfloat16,
    epsilon: float = 1e-7,
    symmetric_matmul: str = "reference",
) -> Float[Array, "*stack m n"]:
    """An approximate polar factor U diag(p(σ/‖X‖_F)) Vᵀ of each matrix in a stack.

    With a 16-bit ``dtype`` the matrices are first rounded to bfloat16, as in the authors' PyTorch:
    so they may have travelled between devices in it, and the result is the same bit for bit. Ours
    differs from theirs in one place: the division by the Frobenius norm is done in float32 and
    then rounded, not in bfloat16. ``optax.contrib.muon`` works in the leaf's dtype; here the
    products run in ``dtype`` whatever the leaf's.

    Args:
      x: matrices on the last two axes; the leading axes are a batch.
      coefficients: a name in ``COEFFICIENTS``.
      iterations: number of steps, by default the set's own; each costs 4 m² n + 2 m³ FLOPs for
        m <= n.
      dtype: of the products' operands and results. Sums inside a product are float32 at least.
      epsilon: added to the Frobenius norm, so that a zero matrix stays zero.
      symmetric_matmul: ``pallas`` multiplies the halves of symmetric products (of matrices large
        enough to gain by it) and rounds b A + c A² once: nearer to the polynomial, but no longer
        the authors' bits.

    Returns:
      Matrices with the shape and dtype of ``x``. NaN or infinity in a matrix makes it all NaN.

    Raises:
      UserError: for an unknown name of coefficients.

    Source: Jordan et al., "Muon" (2024); Scion, arXiv 2502.07529, section 4.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x  # the Gram matrix is then the smaller one
    y = _normalise(y, dtype, epsilon)
    for a, b, c in steps_of(coefficients, iterations):
        y = quintic(y, a, b, c, _worthwhile(symmetric_matmul, y))
    y = round_to_bfloat16(y.astype(x.dtype)) if y.dtype == jnp.bfloat16 else y.astype(x.dtype)
    return y.mT if tall else y


def gram_newton_schulz(
    x: Float[Array, "*stack m n"],
    *,
    coefficients: str = "kj",
    iterations: int | None = None,
    dtype: DTypeLike = jnp.float16,
    epsilon: float = 1e-7,
    symmetric_matmul: str = "reference",
) -> Float[Array, "*stack m n"]:
    """The same factor as ``newton_schulz``, with nearly all products of size m × m.

    Each step multiplies X by a polynomial in R = X Xᵀ (m <= n), so the steps can be taken on R,
    and their product Q be gathered, before X is met again:

        Z = b R + c R²,   Q ← Q (a + Z),   R ← (a + Z) R (a + Z),   at last X ← Q X.

    Q and R lose touch as small σ grow, so after two steps, and every three from there, X ← Q X
    and R is made anew. With r = n/m, five steps take (8 r + 28) m³ FLOPs, those of the standard
    form (20 r + 10) m³: fewer from r = 1.5 on, with any number of steps but one; 28 % fewer for
    Teuken's FFN of 4096 × 13,440, 53 % for its keys and values. Nearer to square it is the dearer
    form: 36 m³ against 30 m³ at r = 1.

    It wants float16, whose range suffices for what is at most 1, or float32. In bfloat16 R is too
    coarse for long schedules, which then diverge on ill-conditioned matrices. Relative error on
    Gaussian matrices, beside the polynomial in float64 (256 × 1024, kj): 0.0015 in float16 and
    0.013 in bfloat16; the standard form has 0.003 and 0.026. Where X lacks full rank, rounding
    the input already lifts the missing directions off zero, in either form.

    Args, returns, raises: as ``newton_schulz``. There is no authors' arithmetic to keep to: sums
    are rounded once, and the result is not rounded to ``dtype``.

    Source: Dao-AILab's gram-newton-schulz (2026), idea and place of the first restart.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = _normalise(x.mT if tall else x, dtype, epsilon)
    for steps in _between_restarts(steps_of(coefficients, iterations)):
        y = y.astype(dtype)
        kernel = _worthwhile(symmetric_matmul, y)
        y = _product(_gathered(gram(y, implementation=kernel), steps, kernel), y)
    return (y.mT if tall else y).astype(x.dtype)


def _between_restarts(steps: list[Triple]) -> Iterator[list[Triple]]:
    yield steps[:2]
    for start in range(2, len(steps), 3):
        yield steps[start : start + 3]


def _gathered(
    r: Float[Array, "*stack m m"], steps: list[Triple], kernel: str
) -> Float[Array, "*stack m m"]:
    """Q with Q X = the steps applied to X, from R = X Xᵀ.

    All factors are polynomials in R, so they commute and each product is symmetric.
    """
    product = functools.partial(symmetric_product, implementation=kernel)
    q = None
    for step, (a, b, c) in enumerate(steps):
        z = product(r, r, r, alpha=c, beta=b) if c else _scale(b, r)
        q = _combine(z, a, _eye(z)) if q is None else product(q, z, q, beta=a)
        if step + 1 < len(steps):
            r_z = product(r, z, r, beta=a)
            r = product(z, r_z, r_z, beta=a)
    return q


def quintic(
    x: Float[Array, "*stack m n"], a: float, b: float, c: float, kernel: str = "reference"
) -> Float[Array, "*stack m n"]:
    """a X + (b A + c A²) X with A = X Xᵀ, each product and sum rounded to the dtype of X.

    The grouping (c A) A and the places of rounding are those of the authors' code, bit for bit;
    with the ``pallas`` kernel b A + c A² is rounded once.
    """
    if kernel == "pallas" and c:
        r = gram(x, implementation=kernel)
        polynomial = symmetric_product(r, r, r, alpha=c, beta=b, implementation=kernel)
        return _scale(a, x) + _matmul(polynomial, x)
    r = _matmul(x, x.mT)
    polynomial = _scale(b, r)
    if c:
        polynomial += _matmul(_scale(c, r), r)
    return _scale(a, x) + _matmul(polynomial, x)


def _worthwhile(kernel: str, x: Array) -> str:
    """The kernel for the products of a stack X (m <= n)."""
    fits = x.dtype.itemsize == 2 and x.shape[-2] >= PALLAS_PAYS_FROM
    return kernel if fits else "reference"


def polar(x: Float[Array, "*stack m n"]) -> Float[Array, "*stack m n"]:
    """The exact polar factor U Vᵀ by singular value decomposition: what Newton–Schulz aims at.

    Slow on accelerators; for tests and small problems. Where X lacks full rank, the factor is not
    unique and this returns one of them, whereas Newton–Schulz leaves those directions at zero.
    """
    u, _, vh = jnp.linalg.svd(x, full_matrices=False)
    return jnp.matmul(u, vh, precision=jax.lax.Precision.HIGHEST)


def euclidean_norm(x: Float[Array, "..."], axis: int | tuple[int, ...]) -> Float[Array, "..."]:
    """√Σx² over ``axis``, kept as axes of length 1, without underflow or overflow of the squares.

    Gradient rows of a large vocabulary can be below 1e-20, whose square float32 cannot hold.
    """
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    safe = jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(jnp.square(x / safe), axis=axis, keepdims=True))


def round_to_bfloat16(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest bfloat16 numbers, in the dtype of ``x``.

    Not a cast there and back, which XLA may drop under jit as excess precision.
    """
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _normalise(x: Array, dtype: DTypeLike, epsilon: float) -> Array:
    """X/(‖X‖_F + ε) in the work dtype, so that all singular values are in [0, 1]."""
    x = x.astype(_wide(x))
    if jnp.dtype(dtype).itemsize == 2:
        x = round_to_bfloat16(x)
    return (x / (euclidean_norm(x, axis=(-2, -1)) + epsilon)).astype(dtype)


def _matmul(x: Array, y: Array) -> Array:
    return _product(x, y).astype(x.dtype)


def _product(x: Array, y: Array) -> Array:
    """X Y, not rounded."""
    return jnp.matmul(x, y, precision=precision_of(x.dtype), preferred_element_type=_wide(x))


def _combine(x: Array, factor: float, y: Array) -> Array:
    """X + factor · Y, rounded once, to the dtype of Y."""
    return (x.astype(_wide(y)) + factor * y.astype(_wide(y))).astype(y.dtype)


def _eye(x: Array) -> Array:
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def _scale(factor: float, x: Array) -> Array:
    # A Python number takes the dtype of the array that it meets: 3.4445 would become the bfloat16
    # 3.4375, and the result would be off by 4 to 6 percent. So multiply first and round after.
    return (factor * x.astype(_wide(x))).astype(x.dtype)


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
