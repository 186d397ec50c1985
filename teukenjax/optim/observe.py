"""What is measured of a leaf when ``track_norms`` takes a look.

For each matrix of each leaf, after the step; the update is what is added, with the learning rate
in it. The norms are those of ``lmo``, in each leaf's own direction (fan-in to fan-out), padding
rows of a table included.

    hidden          rms_to_rms           √(d_in/d_out) σ, where σ <= σ_max is found by power
                                         iteration from the vector of the last observation
                    rms_to_rms_residual  √(d_in/d_out) r: ``singular`` says what it bounds
                    frobenius            ‖W‖_F
                    stable_rank          ‖W‖_F²/σ²; too high by twice σ's relative error
    input, output   one_to_rms, rms_to_inf, sign, frobenius
                    A tied table is an output; as an embedding its 1→RMS is rms_to_inf/D.
    gain            rms

The Frank–Wolfe gap of a leaf is how much the linearised loss could still fall within its ball,

    max over ‖X‖ <= ρ of ⟨d, W − X⟩ = ⟨d, W⟩ + ρ‖d‖_dual = −⟨d, ΔW⟩/γ,

for the constrained form, and ρ‖d‖_dual for the unconstrained one: no more than an inner product,
with d the averaged gradient. The last equality takes the map to be exact. By Newton–Schulz the dual
norm comes out lower: with kj by 4 % on spectra that fall off as i^-½ or i^-1, by 13 % on a square
Gaussian matrix. The gap of a product of balls is the sum of theirs, so a role has the sum where it
has the largest of every norm. With Nesterov the map saw another average than d, and the number is
a lower bound. AdamW minimises over no ball and has no gap.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from teukenjax.optim.leaf import LeafSpec, Role
from teukenjax.optim.lmo import BiasRMS, ColNorm, RowNorm, Sign, Spectral
from teukenjax.optim.orthogonalise import euclidean_norm
from teukenjax.optim.singular import Singular, largest_singular

KINDS = ("weight", "update")
TABLE = ("one_to_rms", "rms_to_inf", "sign", "frobenius")
MEASURES: Mapping[Role, tuple[str, ...]] = {
    "hidden": ("rms_to_rms", "rms_to_rms_residual", "frobenius", "stable_rank"),
    "input": TABLE,
    "output": TABLE,
    "gain": ("rms",),
}


def column_count(role: Role, *, gap: bool) -> int:
    """How many numbers ``observe`` gives for each matrix."""
    return len(KINDS) * len(MEASURES[role]) + gap


def observe(spec: LeafSpec, iterations: int, vectors, numbers, arrays, step):
    """The numbers of one leaf, and the vectors to go on from.

    Args:
      spec: of the leaf.
      iterations: of the power method.
      vectors: [2, *stack, d_out], to start from, for weight and update; None unless hidden.
      numbers: the last ones, which these replace.
      arrays: weight after the step, update, and d if the gap is wanted.
      step: γ times the leaf's multiplier; None without a gap.

    Returns:
      New vectors, and numbers [*stack, columns]: the measures of the weight, those of the update,
      and the gap.
    """
    weight, change, *average = (spec.to_matrices(x) for x in arrays)
    if spec.role == "hidden":
        columns, found = [], []
        for matrices, start in zip((weight, change), vectors, strict=True):
            singular = largest_singular(matrices, start, iterations=iterations)
            columns += _of_hidden(matrices, singular)
            found.append(singular.vector)
        vectors = jnp.stack(found).astype(vectors.dtype)
    else:
        measure = _of_gain if spec.role == "gain" else _of_table
        columns = [*measure(weight), *measure(change)]
    if average:
        d = average[0].astype(numbers.dtype)
        columns.append(-jnp.sum(d * change, axis=(-2, -1)) / step)
    return vectors, jnp.stack(columns, axis=-1).astype(numbers.dtype)


def weight_norms(
    spec: LeafSpec, weight: Array, *, key: Array, iterations: int = 64
) -> dict[str, Array]:
    """The measures of one leaf's weights, each [*stack], without anything remembered.

    Args:
      spec: of the leaf, without parts.
      weight: the leaf.
      key: of the power method's random start.
      iterations: of it; 64 from a random start left 32 matrices of 256 × 256 and 256 × 704 whose
        singular values crowd at the top (Gaussian; orthogonal and noise) at most 1.7 % low.
    """
    matrices = spec.to_matrices(weight)
    if spec.role == "hidden":
        start = jax.random.normal(key, (*matrices.shape[:-2], matrices.shape[-1]), jnp.float32)
        start = start / euclidean_norm(start, axis=-1)
        columns = _of_hidden(matrices, largest_singular(matrices, start, iterations=iterations))
    else:
        columns = (_of_gain if spec.role == "gain" else _of_table)(matrices)
    return dict(zip(MEASURES[spec.role], columns, strict=True))


def _of_hidden(matrices, singular: Singular) -> list[Array]:
    unit = Spectral().scale(matrices.shape)
    frobenius, sigma = _frobenius(matrices), singular.value
    rank = jnp.square(frobenius / jnp.where(sigma == 0, 1, sigma))
    return [sigma / unit, singular.residual / unit, frobenius, rank]


def _of_table(matrices) -> list[Array]:
    norms = (ColNorm(), RowNorm(), Sign())
    return [*(norm.norm(matrices) for norm in norms), _frobenius(matrices)]


def _of_gain(matrices) -> list[Array]:
    return [BiasRMS().norm(matrices)]


def _frobenius(matrices) -> Array:
    return euclidean_norm(matrices, axis=(-2, -1))[..., 0, 0]
