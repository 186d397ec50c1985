"""The steepest unit step of every leaf: local where it can be, dealt out where it must be."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from teukenjax.optim.leaf import LeafSpec, Specs, leaf_name
from teukenjax.optim.lmo import OperatorNorm, Spectral
from teukenjax.optim.sharded import Piece, orthogonalise


def steepest(
    specs: Specs,
    norm_of: Callable[[LeafSpec], OperatorNorm],
    gradients: optax.Updates,
    before: Any = None,
    after: Any = None,
) -> optax.Updates:
    """map(G) of every leaf, of norm 1, in the dtype of the gradients; −map(G) is the lmo.

    Signs need no communication, and row and column norms only where the axis that they sum over
    is split, which a vocabulary table's need not be. Only a spectral norm wants whole matrices.

    Args:
      specs: a pytree shaped like the gradients, of ``LeafSpec``.
      norm_of: the norm of a leaf.
      gradients: a pytree; leaves that are None or masked are kept as they are.
      before: placements of the gradients, a pytree of ``NamedSharding``. None: the compiler's.
      after: placements of the result. None: as before.
    """
    paths_and_specs, treedef = jax.tree.flatten_with_path(specs)
    leaves = treedef.flatten_up_to(gradients)
    before = [None] * len(leaves) if before is None else treedef.flatten_up_to(before)
    after = before if after is None else treedef.flatten_up_to(after)
    result, spread = list(leaves), {}
    for i, (path, spec) in enumerate(paths_and_specs):
        if not jax.tree.leaves(leaves[i]):
            continue
        norm = norm_of(spec)
        if isinstance(norm, Spectral) and before[i] is not None and before[i].mesh.size > 1:
            name = leaf_name(path)
            spread[i] = _pieces(name, spec, norm, leaves[i], before[i], after[i])
        else:
            result[i] = spec.on_matrices(norm.map, leaves[i])
    if spread:
        factors = iter(orthogonalise([piece for pieces in spread.values() for piece in pieces]))
        for i, pieces in spread.items():
            mapped = [_scaled(piece, next(factors)) for piece in pieces]
            result[i] = paths_and_specs[i][1].join(mapped)
    return jax.tree.unflatten(treedef, result)


def _pieces(
    name: str,
    spec: LeafSpec,
    norm: Spectral,
    leaf: jax.Array,
    before: NamedSharding,
    after: NamedSharding,
) -> list[Piece]:
    """The leaf, or the matrices fused in it."""
    fused = spec.fan_out[0]
    if spec.parts and any(len(p.spec) > fused and p.spec[fused] for p in (before, after)):
        raise ValueError(
            f"{name}: parts={spec.parts}: axis {fused} is split over {before.spec[fused]!r}; "
            "a fused axis must be whole on each device: split another one"
        )
    return [Piece(name, part, spec, norm, before, after) for part in spec.split(leaf)]


def _scaled(piece: Piece, factor: jax.Array) -> jax.Array:
    shape = jax.eval_shape(piece.spec.to_matrices, piece.array).shape
    dtype = piece.array.dtype
    return (factor.astype(dtype) * piece.norm.scale(shape)).astype(dtype)
