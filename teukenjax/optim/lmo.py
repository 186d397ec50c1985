"""Operator norms, and the steepest step in each.

Scion asks every layer for the update of fixed size that lowers the linearised loss most,

    lmo(G) = argmin over ‖X‖ <= 1 of ⟨G, X⟩ = − map(G)

(a *linear minimisation oracle*). Each class here is one norm with the four faces of
``OperatorNorm``. Matrices are laid out as JAX kernels, [*stack, d_in, d_out] with y = x @ W, the
transpose of the papers' W. Leading axes are a stack (layers, experts): each matrix is treated on
its own. ‖v‖_RMS = ‖v‖₂/√d measures a vector by its typical entry.

ε is added to the norm that divides, after scaling, as in the authors' code. The arithmetic is
float32 at least. A gradient of zero gives a step of zero. NaN or infinity makes NaN of all that is
divided by the same norm: a row, a column, with the spectral norms the whole matrix; Sign alone
keeps NaN to its entry and knows the sign of infinity. Nothing is caught here.

Source: Scion, arXiv 2502.07529, tables 2 to 4 and appendix B.3 (initialisation);
the names are those of the authors' code.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, override

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from teukenjax.errors import UserError
from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.orthogonalise import (
    GRAM_PAYS_FROM,
    euclidean_norm,
    gram_newton_schulz,
    newton_schulz,
    round_to_bfloat16,
)

Shape = tuple[int, ...]

# Matrices of a stack to orthogonalise at once. More are no faster, hold more memory, and XLA's
# autotuner times every candidate on all of them.
AT_ONCE = 8


class OperatorNorm(abc.ABC):
    """A norm on stacks of matrices.

    All of them are a greatest length (of a row, a column, an entry; a singular value) over a
    ``scale`` that depends on the shape. The dual norm is then the sum of the lengths times it.
    """

    @abc.abstractmethod
    def scale(self, shape: Shape) -> float:
        """The greatest length in a matrix [.., d_in, d_out] of norm 1."""

    @abc.abstractmethod
    def lengths(self, x: Float[Array, "*stack d_in d_out"]) -> Float[Array, "*stack a b"]:
        """The lengths in each matrix, on two axes."""

    @abc.abstractmethod
    def map(self, g: Float[Array, "*stack d_in d_out"]) -> Float[Array, "*stack d_in d_out"]:
        """The X with ‖X‖ = 1 that maximises ⟨G, X⟩, in the dtype of G; 0 where G is 0."""

    @abc.abstractmethod
    def boundary_init(self, key: Array, shape: Shape) -> Float[Array, "*stack d_in d_out"]:
        """A random float32 start with ‖W‖ = 1, to be multiplied by the radius."""

    def norm(self, w: Float[Array, "*stack d_in d_out"]) -> Float[Array, "*stack"]:
        """‖W‖ of each matrix."""
        return jnp.max(self.lengths(_widen(w)), axis=(-2, -1)) / self.scale(w.shape)

    def dual_norm(self, g: Float[Array, "*stack d_in d_out"]) -> Float[Array, "*stack"]:
        """⟨G, map(G)⟩ of each matrix, for the exact map."""
        return jnp.sum(self.lengths(_widen(g)), axis=(-2, -1)) * self.scale(g.shape)


class _SliceNorm(OperatorNorm):
    """Norms whose lengths are Euclidean: of rows, of columns, of the whole array."""

    axes: ClassVar[Shape]  # what a slice extends over
    epsilon: float

    @override
    def lengths(self, x):
        return euclidean_norm(x, self.axes)

    @override
    def map(self, g):
        wide = _widen(g)
        norms = self.lengths(wide) / self.scale(g.shape)
        return (wide / (norms + self.epsilon)).astype(g.dtype)

    @override
    def boundary_init(self, key, shape):
        return self.map(jax.random.normal(key, shape))


@dataclass(frozen=True)
class ColNorm(_SliceNorm):
    """1→RMS, for one-hot inputs: an embedding table [vocabulary, width].

    norm: max over inputs i of ‖W_i‖_RMS, where W_i is the vector [d_out] of one input.
    map:  G_i ↦ G_i/‖G_i‖_RMS.

    A row without gradient gets no step. Under momentum a row stays alive for long after its last
    gradient, and moves by a full step each time: the map does not see that it has faded.

    Attributes:
      normalised: divide the map by d_in (scaled 1→RMS), for layers whose input is dense.
      epsilon: added to ‖G_i‖_RMS (times d_in if normalised).
    """

    axes: ClassVar[Shape] = (-1,)
    normalised: bool = False
    epsilon: float = 1e-8

    @override
    def scale(self, shape):
        return math.sqrt(shape[-1]) / (shape[-2] if self.normalised else 1)


@dataclass(frozen=True)
class RowNorm(_SliceNorm):
    """RMS→∞, for the output: a head [width, vocabulary], where each logit counts on its own.

    norm: √d_in · max over outputs j of ‖W_:j‖₂, where W_:j is the vector [d_in] of one output.
    map:  G_:j ↦ G_:j/(√d_in ‖G_:j‖₂).

    Attributes:
      normalised: False leaves out √d_in on both sides (2→∞), for one-hot inputs.
      epsilon: added to √d_in ‖G_:j‖₂.
    """

    axes: ClassVar[Shape] = (-2,)
    normalised: bool = True
    epsilon: float = 1e-8

    @override
    def scale(self, shape):
        return 1 / math.sqrt(shape[-2]) if self.normalised else 1.0


@dataclass(frozen=True)
class BiasRMS(_SliceNorm):
    """RMS of a vector, for biases and gains: [*stack, 1, d].

    norm: ‖b‖_RMS.  map: b ↦ b/‖b‖_RMS.

    Attributes:
      epsilon: added to ‖b‖_RMS.
    """

    axes: ClassVar[Shape] = (-2, -1)
    epsilon: float = 1e-8

    @override
    def scale(self, shape):
        return math.sqrt(shape[-2] * shape[-1])

    @override
    def boundary_init(self, key, shape):
        """Zeros: the one start inside the ball. A gain is no bias: its model sets it to one."""
        return jnp.zeros(shape)


@dataclass(frozen=True)
class Sign(OperatorNorm):
    """1→∞ over d_in, for a head, above all one that is also the embedding.

    norm: d_in · max|W_ij|.  map: G ↦ sign(G)/d_in, with sign(0) = 0.

    Attributes:
      normalised: False leaves out d_in on both sides (1→∞ proper), for one-hot inputs.
    """

    normalised: bool = True

    @override
    def scale(self, shape):
        return 1 / shape[-2] if self.normalised else 1.0

    @override
    def lengths(self, x):
        return jnp.abs(x)

    @override
    def map(self, g):
        return (jnp.sign(_widen(g)) * self.scale(g.shape)).astype(g.dtype)

    @override
    def boundary_init(self, key, shape):
        return jax.random.rademacher(key, shape, jnp.float32) * self.scale(shape)


@dataclass(frozen=True)
class Spectral(OperatorNorm):
    """RMS→RMS, for hidden layers: how much a matrix can lengthen a typical vector.

    norm: √(d_in/d_out) σ_max(W), by an exact decomposition: dear, for analysis and tests.
    map:  G ↦ √(d_out/d_in) U Vᵀ for G = U diag(σ) Vᵀ, by Newton–Schulz; ``kj`` leaves singular
    values of 0.68 to 1.13 instead of 1, and of up to 1.20 where σ is near 0.004 ‖G‖_F; so ‖map(G)‖
    can exceed 1 by as much, and a constrained weight its radius.

    Attributes:
      normalised: False takes √d_out for the scale (2→RMS), for one-hot inputs.
      least_scale: the scale is at least this: 1 for a first layer on dense input such as images.
        Muon as commonly written has √max(1, d_out/d_in), the same, in every layer.
      epsilon: added to ‖G‖_F before Newton–Schulz.
      coefficients: of Newton–Schulz, see ``coefficients``.
      iterations: of Newton–Schulz; None: as many as the set of coefficients has.
      symmetric_matmul: the kernel of symmetric products: ``reference`` or ``pallas``.
      method: gram takes ``gram_newton_schulz`` for matrices at least 1.5 times as long as wide;
        the others would cost more by it, and stay with the standard form.
    """

    normalised: bool = True
    least_scale: float = 0.0
    epsilon: float = 1e-7
    coefficients: str = "kj"
    iterations: int | None = None
    method: Literal["standard", "gram"] = "standard"
    symmetric_matmul: str = "reference"

    def __post_init__(self):
        steps_of(self.coefficients)  # an unknown name is an error here, not later

    @override
    def scale(self, shape):
        return max(math.sqrt(shape[-1] / (shape[-2] if self.normalised else 1)), self.least_scale)

    @override
    def lengths(self, x):
        return jnp.linalg.svd(x, compute_uv=False)[..., None]

    @override
    def map(self, g):
        return (self.factor(_widen(g)) * self.scale(g.shape)).astype(g.dtype)

    def factor(self, g: Float[Array, "*stack d_in d_out"]) -> Float[Array, "*stack d_in d_out"]:
        """The map without its scale: U Vᵀ, near enough, in the dtype of G.

        G may be bfloat16, rounded from what it was, and so is then the result: the numbers are
        the same bit for bit as for the wider G. So matrices can travel in bfloat16 to the device
        that orthogonalises them, and the factor back.
        """
        options = {
            "coefficients": self.coefficients,
            "iterations": self.iterations,
            "epsilon": self.epsilon,
            "symmetric_matmul": self.symmetric_matmul,
        }
        short, long = sorted(g.shape[-2:])
        if self.method == "gram" and long >= GRAM_PAYS_FROM * short:
            return _in_groups(lambda x: round_to_bfloat16(gram_newton_schulz(x, **options)), g)
        return _in_groups(lambda x: newton_schulz(x, **options), g)

    @override
    def boundary_init(self, key, shape):
        """A uniformly random semi-orthogonal matrix times the scale: all singular values equal."""
        *stack, rows, columns = shape
        return jax.random.orthogonal(key, rows, tuple(stack), m=columns) * self.scale(shape)


@dataclass(frozen=True)
class SpectralConv(Spectral):
    """RMS→RMS tap by tap, for a convolution as a matrix [taps · c_in, c_out].

    norm: σ_max(W) · taps/√(c_out/c_in), for the whole matrix.
    map:  G ↦ √(c_out/c_in)/taps · U Vᵀ.

    No tap of a matrix has a singular value above its own σ_max. So each tap lengthens a typical
    vector at most by ‖W‖/taps, and the sum of them by ‖W‖: the convolution's RMS→RMS norm, with
    padding that repeats the signal, is at most ‖W‖.
    The authors start each tap semi-orthogonal, which can put the whole at ‖W‖ = √taps; here the
    whole is, with ‖W‖ = 1.

    Attributes:
      taps: of the kernel: k for a Conv1d, k² for a Conv2d. Divides d_in; the order of taps and
        channels within d_in is free.
    """

    taps: int = field(kw_only=True)

    @override
    def scale(self, shape):
        if shape[-2] % self.taps:
            raise UserError(f"taps={self.taps}: does not divide d_in={shape[-2]} = taps · c_in")
        return super().scale((shape[-2] // self.taps, shape[-1])) / self.taps


def _in_groups(function: Callable[[Array], Array], stack: Array) -> Array:
    """``function`` of a stack of matrices, a group after the other."""
    count = math.prod(stack.shape[:-2])
    together = max(k for k in range(1, AT_ONCE + 1) if count % k == 0)
    if together == count:
        return function(stack)
    groups = stack.reshape(-1, together, *stack.shape[-2:])
    return jax.lax.map(function, groups).reshape(stack.shape)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
