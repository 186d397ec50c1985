"""Orthogonalisation of matrices whose shards lie on many devices.

A matrix must be whole to be orthogonalised. Gathering every matrix on every device would have all
of them do all the work; a product of sharded matrices inside Newton–Schulz, left to the compiler,
sends more than the matrices themselves in each of its five steps. So here the matrices of one
shape are stacked, and the stack is dealt out: one all-to-all turns a piece of every matrix on
each device into some whole matrices on each, they are orthogonalised where they are, and one
all-to-all turns them back. Devices that hold the same shards (replicas) share the work: they take
their matrices without asking, and give them back by an all-gather. With P parameters on M
devices, each way sends P/M · (M − 1)/M numbers of 16 bits from each device.

The all-to-all is of the stack, and of nothing else: rows may arrive in another order than they
have in the leaf, because orthogonalisation commutes with permutations and with transposition.
Stacks that do not divide are padded with zeros; beyond as many devices as there are matrices of
one shape, more devices do not make it faster.

Source: the all-to-all of "Optimal Scaling Needs Optimal Norm", arXiv 2510.03871, algorithm 4;
stacking by shape, sharing among replicas and the fused orders are ours.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, Float

from teukenjax.optim.leaf import LeafSpec
from teukenjax.optim.lmo import Spectral

Axes = tuple[str, ...]  # of the mesh
TRAVELS_AS = jnp.bfloat16  # what Newton–Schulz rounds its input and its result to anyway


@dataclass(frozen=True)
class Piece:
    """A stack of matrices, and where its shards rest.

    Attributes:
      name: for messages.
      array: the leaf, or one part of a fused leaf.
      spec: which of its axes are which.
      norm: whose ``factor`` is asked for.
      before: placement of the array.
      after: placement of the result: as ``before``, or with fewer axes of the mesh.
    """

    name: str
    array: Array
    spec: LeafSpec
    norm: Spectral
    before: NamedSharding
    after: NamedSharding


@dataclass(frozen=True, order=True)
class Side:
    """The rows or the columns of a matrix: how many, and the mesh axes that split them."""

    size: int
    before: Axes
    after: Axes


@dataclass(frozen=True)
class Route:
    """How matrices come together and go back. Pieces of one route travel as one stack."""

    norm: Spectral
    rows: Side  # the smaller side
    columns: Side
    mine: Axes  # mesh axes that number copies of the shards
    dropped: Axes  # that split matrices before, but not after
    kept: Axes  # that split them before and after

    @property
    def owners(self) -> Axes:
        """The mesh axes over which the stack is dealt out, in the order of the deal."""
        return self.mine + self.dropped + self.kept


def orthogonalise(pieces: list[Piece]) -> list[Float[Array, "..."]]:
    """``norm.factor`` of every matrix, each computed on one device.

    To be called under jit; all placements must be on one mesh.

    Returns:
      Arrays like those of the pieces, placed as their ``after``, in bfloat16.

    Raises:
      ValueError: for a result that is split over more of the mesh than the array was, or
        otherwise, along rows that do not come back in order; naming the leaf and the axes.
    """
    mesh = pieces[0].before.mesh
    routes, transposed = zip(*(_route(piece, mesh) for piece in pieces), strict=True)
    groups = sorted(range(len(pieces)), key=lambda i: routes.index(routes[i]))

    def local(*shards):
        results = [None] * len(pieces)
        for route, group in itertools.groupby(groups, key=lambda i: routes[i]):
            members = list(group)
            stacks = [_to_stack(pieces[i], shards[i], transposed[i]) for i in members]
            factors = _round_trip(route, jnp.concatenate(stacks), mesh)
            ends = list(itertools.accumulate(len(stack) for stack in stacks))
            for i, factor in zip(members, jnp.split(factors, ends[:-1]), strict=True):
                shape = pieces[i].after.shard_shape(pieces[i].array.shape)
                factor = factor.mT if transposed[i] else factor
                results[i] = pieces[i].spec.from_matrices(factor, shape)
        return results

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=tuple(piece.before.spec for piece in pieces),
        out_specs=[piece.after.spec for piece in pieces],
        check_vma=False,
    )(*(piece.array for piece in pieces))


def _to_stack(piece: Piece, shard: Array, transposed: bool) -> Array:
    """The local blocks [k, rows, columns], as they travel."""
    matrices = piece.spec.to_matrices(shard).astype(TRAVELS_AS)
    matrices = matrices.reshape(-1, *matrices.shape[-2:])
    return matrices.mT if transposed else matrices


def _round_trip(route: Route, blocks: Array, mesh: Mesh | AbstractMesh) -> Array:
    """Blocks [k, rows, columns] of matrices → the same blocks of their factors."""
    count = len(blocks)
    devices = _product(mesh, route.owners)
    blocks = jnp.pad(blocks, ((0, -count % devices), (0, 0), (0, 0)))
    factors = route.norm.factor(_gather(route, blocks, mesh)).astype(TRAVELS_AS)
    return _scatter(route, factors, mesh)[:count]


def _gather(route: Route, blocks: Array, mesh: Mesh | AbstractMesh) -> Array:
    """Blocks [k, a, b] of all matrices → this device's matrices [k / devices, rows, columns]."""
    if route.mine:
        share = len(blocks) // _product(mesh, route.mine)
        start = lax.axis_index(route.mine) * share
        blocks = lax.dynamic_slice_in_dim(blocks, start, share)
    split = route.dropped + route.kept
    if not split:
        return blocks
    blocks = lax.all_to_all(blocks, split, split_axis=0, concat_axis=0, tiled=True)
    sources = [mesh.shape[axis] for axis in split]
    blocks = blocks.reshape(*sources, -1, *blocks.shape[1:])
    order = _order(split, route.rows.before, route.columns.before)
    return blocks.transpose(order).reshape(-1, route.rows.size, route.columns.size)


def _scatter(route: Route, matrices: Array, mesh: Mesh | AbstractMesh) -> Array:
    """This device's matrices → blocks [k, a, b] of all matrices; undoes ``_gather``."""
    rows, columns = route.rows.after, route.columns.after
    if route.kept:
        a, b = (side.size // _product(mesh, side.after) for side in (route.rows, route.columns))
        sizes = [[mesh.shape[axis] for axis in axes] for axes in (rows, columns)]
        order = _order(route.kept, rows, columns)
        blocks = matrices.reshape(-1, *sizes[0], a, *sizes[1], b)
        blocks = blocks.transpose([order.index(i) for i in range(len(order))]).reshape(-1, a, b)
        matrices = lax.all_to_all(blocks, route.kept, split_axis=0, concat_axis=0, tiled=True)
    if copies := route.mine + route.dropped:
        matrices = lax.all_gather(matrices, copies, tiled=True)
    return matrices


def _order(split: Axes, rows: Axes, columns: Axes) -> list[int]:
    """Transposes [*split, k, a, b] to [k, *rows, a, *columns, b]."""
    k = len(split)
    return [k, *map(split.index, rows), k + 1, *map(split.index, columns), k + 2]


def _route(piece: Piece, mesh: Mesh | AbstractMesh) -> tuple[Route, bool]:
    """The piece's route, and whether it travels transposed."""
    spec = piece.spec
    sides = [_side(piece, fan) for fan in (spec.fan_in, spec.fan_out)]
    before = sides[0].before + sides[1].before
    after = sides[0].after + sides[1].after
    on_fans = {*spec.fan_in, *spec.fan_out}
    stack_axes = [axis for axis in range(piece.array.ndim) if axis not in on_fans]
    stack = _axes(piece.before, stack_axes)
    if stack != _axes(piece.after, stack_axes) or not set(after) <= set(before):
        raise ValueError(
            f"{piece.name}: placed as {piece.before.spec} before and {piece.after.spec} after "
            "orthogonalisation: the second may only leave out axes of its matrices"
        )
    transposed = sides[0] > sides[1]
    rows, columns = sorted(sides)
    route = Route(
        norm=piece.norm,
        rows=rows,
        columns=columns,
        mine=tuple(a for a, n in mesh.shape.items() if n > 1 and a not in before + stack),
        dropped=tuple(axis for axis in rows.before + columns.before if axis not in after),
        kept=tuple(axis for axis in rows.before + columns.before if axis in after),
    )
    return route, transposed


def _side(piece: Piece, fan: tuple[int, ...]) -> Side:
    size = math.prod(piece.array.shape[axis] for axis in fan)
    before, after = (_axes(placement, fan) for placement in (piece.before, piece.after))
    if before != after and _axes(piece.before, fan[1:]):
        raise ValueError(
            f"{piece.name}: {piece.before.spec} splits axis {fan[1]}, which is not the first of "
            f"{fan}: then the update must be placed alike, not as {piece.after.spec}"
        )
    return Side(size, before, after)


def _axes(placement: NamedSharding, dimensions) -> Axes:
    """The mesh axes of more than one device that split these dimensions, in their order."""
    spec = (*placement.spec, *[None] * (max(dimensions, default=-1) + 1 - len(placement.spec)))
    named = (spec[d] if isinstance(spec[d], tuple) else (spec[d],) for d in dimensions)
    return tuple(
        axis for names in named for axis in names if axis and placement.mesh.shape[axis] > 1
    )


def _product(mesh: Mesh | AbstractMesh, axes: Axes) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
