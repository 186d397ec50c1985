"""One table says where every array lives: mesh axes × logical axes × strategy.

The mesh has three axes. ``replica`` and ``fsdp`` both split the batch; ``fsdp`` also splits
parameters, gradients and optimizer state as the strategy says; ``tensor`` splits heads, FFN and
vocabulary inside a layer. Strategies are rows of ``STRATEGIES`` and differ in nothing else.

Logical axes of weights: layers, width (D), heads (H), kv_heads (K), head_dim (N), ffn (F),
vocab (V), and table_width, the D axis of the two vocabulary tables: a table is split over its
vocabulary only, so that neither the embedding nor the head ever gathers it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from teukenjax.errors import UserError
from teukenjax.recipe import ShardingConfig

AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

Rule = Mapping[str, tuple[str, ...]]  # logical axis → mesh axes; what is not named is whole

WHOLE: Rule = {}
ROWS: Rule = {"width": ("fsdp",), "vocab": ("fsdp",)}
TENSOR: Rule = {"heads": ("tensor",), "kv_heads": ("tensor",), "ffn": ("tensor",)}
ROWS_TENSOR: Rule = {"width": ("fsdp",), "vocab": ("fsdp", "tensor"), **TENSOR}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One row of the table: where weights rest, where they are used, where the rest lives."""

    parameters: Rule  # between steps
    gradients: Rule  # after their reduction, and while they are accumulated
    optimizer: Rule
    compute: Rule = dataclasses.field(default_factory=dict)  # inside a layer
    needs: str | None = None  # a mesh axis that must be larger than one


STRATEGIES = {
    "ddp": Strategy(WHOLE, WHOLE, WHOLE),
    "zero1": Strategy(WHOLE, WHOLE, ROWS),
    "zero2": Strategy(WHOLE, ROWS, ROWS),
    "fsdp": Strategy(ROWS, ROWS, ROWS),
    "hsdp": Strategy(ROWS, ROWS, ROWS, needs="replica"),
    "fsdp_tp": Strategy(ROWS_TENSOR, ROWS_TENSOR, ROWS_TENSOR, compute=TENSOR, needs="tensor"),
}


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """What a weight is: its named axes, its role, and which axes it sums over and produces."""

    axes: tuple[str, ...]
    role: str  # input, hidden, output or gain
    fan_in: tuple[str, ...]
    fan_out: tuple[str, ...]

    def positions(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Where these axes stand in the array."""
        return tuple(self.axes.index(name) for name in names)

    def stacked(self, axis: str) -> "WeightSpec":
        """The same weight with one more leading axis."""
        return dataclasses.replace(self, axes=(axis, *self.axes))


def is_spec(node: Any) -> bool:
    """Where a tree of declarations ends."""
    return isinstance(node, WeightSpec)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and a strategy: everything needed to place an array.

    ``mesh`` may be abstract; then the layout can be printed and planned with, not run.
    """

    mesh: Mesh | AbstractMesh
    strategy: str

    @property
    def row(self) -> Strategy:
        """The strategy's row of the table."""
        return STRATEGIES[self.strategy]

    @property
    def batch_shards(self) -> int:
        """Into how many parts the batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    def sharding(self, axes: tuple[str | None, ...], rule: Rule) -> NamedSharding:
        """The placement of an array with these logical axes under one rule of the table."""
        return NamedSharding(self.mesh, partition(axes, rule))

    @property
    def device_kind(self) -> str:
        """What the devices call themselves; "" where there are none."""
        return "" if isinstance(self.mesh, AbstractMesh) else self.mesh.devices.flat[0].device_kind

    def batch(self, *, leading: int = 0, trailing: int) -> NamedSharding:
        """The placement of an array [*leading, B, *trailing]: split over the batch."""
        return NamedSharding(self.mesh, P(*[None] * leading, BATCH_AXES, *[None] * trailing))

    def replicated(self) -> NamedSharding:
        """The placement of a scalar."""
        return NamedSharding(self.mesh, P())

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """Pins the leading axis of an activation [B, …] to the batch axes of the mesh."""
        return jax.lax.with_sharding_constraint(x, self.batch(trailing=x.ndim - 1))

    def gather(self, weight: jax.Array, axes: tuple[str, ...], dtype) -> jax.Array:
        """A weight as a layer computes with it: cast, then gathered, which is half the bytes."""
        whole = self.sharding(axes, self.row.compute)
        return jax.lax.with_sharding_constraint(weight.astype(dtype), whole)

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        """Mesh axes that split the vocabulary tables."""
        return self.row.parameters.get("vocab", ())

    @property
    def travel_axes(self) -> tuple[str, ...]:
        """Those that split tables and batch: here tokens travel, so that tables need not."""
        return tuple(axis for axis in BATCH_AXES if axis in self.vocab_axes)

    @property
    def alike_axes(self) -> tuple[str, ...]:
        """Those that split the batch and no table: devices along them hold the same rows."""
        return tuple(axis for axis in BATCH_AXES if axis not in self.vocab_axes)

    @property
    def each_spec(self) -> P:
        """Where ``each`` puts a table [R, V, D]."""
        return P(self.alike_axes or None, self.vocab_axes or None, None)

    def each(self, table: jax.Array) -> jax.Array:
        """A table [V, D] → [R, V, D]: once for each of R groups of devices that hold all of it.

        Nothing moves. Its gradient is a sum over R, which the compiler may put off until the
        micro-batches are done; one written inside of a ``shard_map`` stays where it is.
        """
        groups = math.prod(self.mesh.shape[axis] for axis in self.alike_axes)
        copies = jnp.broadcast_to(table, (groups, *table.shape))
        placement = NamedSharding(self.mesh, self.each_spec)
        return jax.lax.with_sharding_constraint(copies, placement)

    # Three for use inside of a shard_map over tables as `each_spec` places them.

    def first_row(self, table: jax.Array) -> jax.Array | int:
        """The vocabulary index of the first row of this device's part of a table, [V/n, D]."""
        return jax.lax.axis_index(self.vocab_axes) * table.shape[0] if self.vocab_axes else 0

    def of_group(self, x: jax.Array) -> jax.Array:
        """[B, …] of this device's tokens → of all tokens of the devices that share a table."""
        axes = self.travel_axes
        return jax.lax.all_gather(x, axes, tiled=True) if axes else x

    def to_owners(self, partial: jax.Array) -> jax.Array:
        """Sums [n·B, …] of a group's tokens over a table's parts; each device gets its [B, …]."""
        if self.travel_axes:  # first, so that fewer tokens are summed over the rest
            partial = jax.lax.psum_scatter(
                partial, self.travel_axes, scatter_dimension=0, tiled=True
            )
        rest = tuple(axis for axis in self.vocab_axes if axis not in self.travel_axes)
        return jax.lax.psum(partial, rest) if rest else partial

    def reduce(self, gradient: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        """A weight's gradient, summed over the batch straight into its placement."""
        owned = self.sharding(axes, self.row.gradients)
        return jax.lax.with_sharding_constraint(gradient, owned)


def partition(axes: tuple[str | None, ...], rule: Rule) -> P:
    """Logical axes → PartitionSpec by one rule of the table."""
    names = [rule.get(axis, ()) if axis else () for axis in axes]
    return P(*(n[0] if len(n) == 1 else (n or None) for n in names))


def mesh_shape(config: ShardingConfig, devices: int) -> dict[str, int]:
    """Axis sizes for this many devices; one axis of -1 takes what the others leave.

    Raises:
      UserError: when the sizes do not multiply to ``devices`` or do not suit the strategy.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    written = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if [axis for axis, size in sizes.items() if size < 1 and size != -1]:
        raise UserError(f"sharding: {written}: sizes are positive, or -1 for the rest")
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1:
        raise UserError(f"sharding: {written}: only one axis may be -1")
    if open_axes:
        sizes[open_axes[0]] = devices // known
    if math.prod(sizes.values()) != devices:
        raise UserError(f"sharding: {written}: does not make a mesh of {devices} devices")
    return _suits(config.strategy, sizes)


def _suits(strategy: str, sizes: dict[str, int]) -> dict[str, int]:
    row = STRATEGIES[strategy]
    if row.needs and sizes[row.needs] == 1 and math.prod(sizes.values()) > 1:
        raise UserError(
            f"sharding.strategy={strategy} needs sharding.{row.needs} of at least 2, not 1"
        )
    if sizes["tensor"] > 1 and row.needs != "tensor":
        raise UserError(
            f"sharding.strategy={strategy} does not use the tensor axis, which has size "
            f"{sizes['tensor']}: set sharding.tensor=1 or sharding.strategy=fsdp_tp"
        )
    return sizes


def make_layout(config: ShardingConfig, devices: list[jax.Device] | None = None) -> Layout:
    """The layout on these devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(config, len(devices))
    mesh = jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )
    return Layout(mesh, config.strategy)


def abstract_layout(config: ShardingConfig, devices: int) -> Layout:
    """The layout that ``devices`` devices would have, without any."""
    sizes = mesh_shape(config, devices)
    mesh = AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mesh, config.strategy)


def tree_shardings(layout: Layout, specs: Any, shapes: Any, rule: Rule) -> Any:
    """The placement of each array of a tree, checked.

    Args:
      layout: mesh and strategy.
      specs: a tree of ``WeightSpec``.
      shapes: the same tree of arrays or ``ShapeDtypeStruct``.
      rule: one rule of the strategy's row, such as ``layout.row.parameters``.

    Raises:
      UserError: when a dimension does not divide, naming array, axis, sizes and the fix.
      ValueError: when two axes of one array are on the same mesh axis (a fault of the table).
    """

    def place(path, spec: WeightSpec, array) -> NamedSharding:
        name = ".".join(str(key.key) for key in path)
        _check(name, spec.axes, array.shape, rule, layout.mesh.shape)
        return layout.sharding(spec.axes, rule)

    return jax.tree_util.tree_map_with_path(place, specs, shapes, is_leaf=is_spec)


def _check(name, axes, shape, rule: Rule, mesh: Mapping[str, int]) -> None:
    taken: dict[str, str] = {}
    for axis, size in zip(axes, shape, strict=True):
        for mesh_axis in rule.get(axis, ()):
            if mesh_axis in taken:
                raise ValueError(
                    f"{name}: axes '{taken[mesh_axis]}' and '{axis}' are both on mesh axis "
                    f"'{mesh_axis}'; one of them must be whole in the sharding table"
                )
            taken[mesh_axis] = axis
        shards = math.prod(mesh[mesh_axis] for mesh_axis in rule.get(axis, ()))
        if size % shards:
            mesh_axes = "×".join(rule[axis])
            raise UserError(
                f"{name}: axis '{axis}' of size {size} does not divide over {mesh_axes}={shards}: "
                f"{_fix(axis, size, mesh_axes)}"
            )


def _fix(axis: str, size: int, mesh_axes: str) -> str:
    if axis == "vocab":
        return "set model.vocab_multiple to a multiple of it"
    return f"set sharding.{mesh_axes} to a divisor of {size}"
