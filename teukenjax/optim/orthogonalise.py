"""The nearest semi-orthogonal matrix, by matrix products alone.

A step in the spectral norm needs the polar factor U Vᵀ of X = U diag(σ) Vᵀ. A singular value
decomposition is slow on accelerators, so odd polynomials are applied instead: with A = X Xᵀ,

    X ← a X + (b A + c A²) X        maps every σ to  p(σ) = a σ + b σ³ + c σ⁵

and leaves U and V alone. A few such steps push all σ in (0, 1] towards 1. The coefficient sets
differ in how fast small values grow and how close to 1 the result comes; five steps give on
σ in [0.01, 1]:

    kj             0.68 … 1.13   Muon, Scion, "Optimal Scaling Needs Optimal Norm"
    you            0.98 … 1.03   the same cost; called "quintic" in Megatron-LM
    polar_express  0.87 … 1.12   arXiv 2505.16932; lifts the smallest values fastest
    cans           0.88 … 1.12   Chebyshev-optimal, as fast
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from teukenjax.errors import UserError, nearest

Triple = tuple[float, float, float]


def _with_safety(triples: tuple[Triple, ...], factor: float) -> tuple[Triple, ...]:
    """p(σ) → p(σ/factor) in all but the last: rounding may lift σ above 1, where p diverges."""
    shrunk = [(a / factor, b / factor**3, c / factor**5) for a, b, c in triples[:-1]]
    return (*shrunk, triples[-1])


# (a, b, c) of each step; the last one repeats for as long as there are iterations.
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "kj": ((3.4445, -4.7750, 2.0315),),
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": _with_safety(
        (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
            (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            (1.875, -1.25, 0.375),
        ),
        factor=1.01,
    ),
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
}


def newton_schulz(
    x: Float[Array, "*stack m n"],
    *,
    coefficients: str = "kj",
    iterations: int = 5,
    dtype: DTypeLike = jnp.bfloat16,
    epsilon: float = 1e-7,
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
      iterations: number of steps; each costs 4 m² n + 2 m³ FLOPs for m <= n.
      dtype: of the products' operands and results. Sums inside a product are float32 at least.
      epsilon: added to the Frobenius norm, so that a zero matrix stays zero.

    Returns:
      Matrices with the shape and dtype of ``x``. NaN or infinity in a matrix makes it all NaN.

    Raises:
      UserError: for an unknown name of coefficients.

    Source: Jordan et al., "Muon" (2024); Scion, arXiv 2502.07529, section 4.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x  # the Gram matrix is then the smaller one
    y = _normalise(y, dtype, epsilon)
    for a, b, c in triples(coefficients, iterations):
        y = quintic(y, a, b, c)
    y = round_to_bfloat16(y.astype(x.dtype)) if y.dtype == jnp.bfloat16 else y.astype(x.dtype)
    return y.mT if tall else y


def quintic(
    x: Float[Array, "*stack m n"], a: float, b: float, c: float
) -> Float[Array, "*stack m n"]:
    """a X + (b A + c A²) X with A = X Xᵀ, each product and sum rounded to the dtype of X.

    The grouping (c A) A and the places of rounding are those of the authors' code, bit for bit.
    """
    gram = _matmul(x, x.mT)
    polynomial = _scale(b, gram) + _matmul(_scale(c, gram), gram)
    return _scale(a, x) + _matmul(polynomial, x)


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


def triples(name: str, iterations: int) -> Iterator[Triple]:
    """The (a, b, c) of each iteration; raises ``UserError`` for an unknown name."""
    if name not in COEFFICIENTS:
        raise UserError(f"coefficients='{name}': {nearest(name, COEFFICIENTS)}")
    table = COEFFICIENTS[name]
    return (table[min(step, len(table) - 1)] for step in range(iterations))


def _normalise(x: Array, dtype: DTypeLike, epsilon: float) -> Array:
    """X/(‖X‖_F + ε) in the work dtype, so that all singular values are in [0, 1]."""
    x = x.astype(_wide(x))
    if jnp.dtype(dtype).itemsize == 2:
        x = round_to_bfloat16(x)
    return (x / (euclidean_norm(x, axis=(-2, -1)) + epsilon)).astype(dtype)


def _matmul(x: Array, y: Array) -> Array:
    # GPUs would run a float32 product in TF32; whoever asks for float32 here wants float32.
    precision = None if x.dtype.itemsize == 2 else jax.lax.Precision.HIGHEST
    product = jnp.matmul(x, y, precision=precision, preferred_element_type=_wide(x))
    return product.astype(x.dtype)


def _scale(factor: float, x: Array) -> Array:
    # A Python number takes the dtype of the array that it meets: 3.4445 would become the bfloat16
    # 3.4375, and the result would be off by 4 to 6 percent. So multiply first and round after.
    return (factor * x.astype(_wide(x))).astype(x.dtype)


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
