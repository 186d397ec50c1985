r"""What checkpoints cost: seconds that a save keeps the run waiting, seconds to restore, bytes.

    uv run python tools/bench_checkpoint.py configs/recipes/teuken-7b.yaml OUT \
        model.vocab_size=250680 --step-s 5.9

OUT is a new folder on the disk to be measured; there has to be room for one checkpoint. The state
has the recipe's shapes, is sharded over all devices as the recipe says, and holds random numbers:
zeros, as a fresh momentum has them, would be compressed to nothing. A save keeps the run waiting
until the arrays are on the host, and goes on beside it; sums of bits are included. Before a restore
the files are dropped from the system's cache.

The first save also compiles, and the medians leave it out where there are others. The share of
saving is that of the wait at the recipe's ``checkpoint.every``, for steps of ``--step-s``.
"""

import functools
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import typer

from teukenjax.checkpoint import FOLDER, Checkpoints
from teukenjax.cli.ending import run_script
from teukenjax.recipe import CheckpointConfig, load
from teukenjax.sharding import make_layout
from teukenjax.train.state import Program


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe with model.vocab_size.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    step_s: Annotated[float | None, typer.Option(min=0, help="Of a step, for the share.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Saves and restores, at most.")] = 5,
    seconds: Annotated[float, typer.Option(help="For all saves, and again for restores.")] = 600,
) -> None:
    """Saves and restores as often as the time allows, at least once each; prints one object."""
    config = load(recipe, overrides or [])
    device = jax.devices()[0]
    program = Program(config, make_layout(config.sharding), platform=device.platform)
    state = filled(program.abstract_state)
    print(f"{jax.device_count()} × {device.device_kind}, {os.cpu_count()} CPUs, {platform.node()}")
    print(f"jax {jax.__version__}, orbax {ocp.__version__}", flush=True)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    saves = repeated("save", functools.partial(save, state, out), repeats, seconds)
    sizes = [path.stat().st_size for path in newest(out).rglob("*") if path.is_file()]
    del state
    again = functools.partial(restore, program.abstract_state, out)
    restores = repeated("restore", again, repeats, seconds)
    waits, beside = zip(*(saves[1:] or saves), strict=True)
    result = {
        "state_gib": round(size / 2**30, 2),
        "written_gib": round(sum(sizes) / 2**30, 2),
        "files": len(sizes),
        "save_waits_s": spread(waits),
        "save_goes_on_s": spread(beside),
        "restore_s": spread(restores),
    }
    if step_s is not None:
        wait, between = statistics.median(waits), step_s * config.checkpoint.every
        result |= {"every": config.checkpoint.every, "step_s": step_s}
        result |= {"share_of_saving": round(wait / (between + wait), 5)}
    print(json.dumps(result))


def filled(abstract: Any) -> Any:
    """A state of these shapes and placements, of random numbers."""

    def leaf(x: jax.ShapeDtypeStruct) -> jax.Array:
        random = jnp.issubdtype(x.dtype, jnp.floating)
        make = jax.random.normal if random else lambda _, *kind: jnp.zeros(*kind)
        fill = jax.jit(lambda key: make(key, x.shape, x.dtype), out_shardings=x.sharding)
        return fill(jax.random.key(x.size % 1009))

    return jax.block_until_ready(jax.tree.map(leaf, abstract))


def repeated[T](what: str, measure: Callable[[], T], repeats: int, seconds: float) -> list[T]:
    """Once, and then as often as it fits; each result is shown as it comes."""
    results, began = [], time.perf_counter()
    for _ in range(repeats):
        start = time.perf_counter()
        results.append(measure())
        print(f"{what}: {results[-1]}", flush=True)
        now = time.perf_counter()
        if now - began + (now - start) > seconds:
            break
    return results


def save(state: Any, out: Path) -> tuple[float, float]:
    """Seconds until a save returns, and until it is written after that; the last one goes."""
    if newest(out).exists():
        shutil.rmtree(newest(out))
    checkpoints = Checkpoints(out, CheckpointConfig())
    start = time.perf_counter()
    checkpoints.save(1, state, {})
    returned = time.perf_counter()
    checkpoints.wait()
    written = time.perf_counter()
    checkpoints.close()
    return returned - start, written - returned


def restore(abstract: Any, out: Path) -> float:
    """Seconds until the newest save is on the devices again, and compared with its sums."""
    for path in newest(out).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    checkpoints = Checkpoints(out)
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(1, abstract))
    seconds = time.perf_counter() - start
    checkpoints.close()
    return seconds


def newest(out: Path) -> Path:
    """Where the only save is."""
    return out / FOLDER / "1"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest; how many."""
    numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(x, 2) for name, x in numbers.items()} | {"of": len(values)}


if __name__ == "__main__":
    run_script(main)
