"""How long collectives take on the devices at hand, by kind and size of the message."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from teukenjax.planner.profile import Timing
from teukenjax.planner.stopwatch import seconds

TRIES = 3  # programs that are timed


@dataclass(frozen=True)
class Kind:
    """A collective over the axis "all".

    Attributes:
      run: what each device calls.
      before, after: placements of operand and result.
      in_place: the compiler writes the result over the operand.
    """

    run: Callable
    before: P
    after: P
    in_place: bool = False


KINDS = {
    "all-gather": Kind(partial(jax.lax.all_gather, axis_name="all", tiled=True), P("all"), P()),
    "reduce-scatter": Kind(
        partial(jax.lax.psum_scatter, axis_name="all", tiled=True), P(), P("all")
    ),
    "all-reduce": Kind(partial(jax.lax.psum, axis_name="all"), P(), P(), in_place=True),
    "all-to-all": Kind(
        partial(jax.lax.all_to_all, axis_name="all", split_axis=0, concat_axis=0, tiled=True),
        P("all"),
        P("all"),
    ),
}


def collective_times(messages: tuple[int, ...], repeats: int) -> Iterator[Timing]:
    """Each kind at each size of the whole array, over all local devices; nothing on one."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return
    mesh = jax.make_mesh((len(devices),), ("all",), (AxisType.Auto,), devices=devices)
    for name, kind in KINDS.items():
        run = jax.jit(
            jax.shard_map(
                partial(repeated, kind, repeats),
                mesh=mesh,
                in_specs=kind.before,
                out_specs=kind.after,
                check_vma=False,
            )
        )
        for size in messages:
            placed = NamedSharding(mesh, kind.before)
            x = jnp.zeros(size // 2, jnp.bfloat16, device=placed)
            taken = seconds(run, x, repeats=TRIES) / repeats
            yield Timing(kind=name, bytes=size, seconds=taken)


def repeated(kind: Kind, repeats: int, x):
    """The last of so many runs, each waiting for the one before.

    They are one program, so that the time of a small message is the device's and not Python's. A
    number of each result goes into the next operand; read from the compiled program, nothing else
    is copied between them.
    """

    def again(_, carry):
        x, result = carry
        if kind.in_place:
            return x, kind.run(result)
        x = x.at[0].set(result[0])
        return x, kind.run(x)

    return jax.lax.fori_loop(1, repeats, again, (x, kind.run(x)))[1]
