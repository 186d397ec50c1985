"""Strategies × remat × micro-batch for real, on whatever devices exist: three columns of truth.

Each case is predicted, compiled and run: memory, seconds of a step, bytes on the wire. A case has
a process of its own, because a device's peak memory is that of its process.
"""

import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from teukenjax.errors import UserError, disk_errors, nearest
from teukenjax.flags import launch
from teukenjax.hardware import catalogue, find_hardware
from teukenjax.picture import Picture, table_of
from teukenjax.planner.plans import sharding_of
from teukenjax.planner.profile import as_measured
from teukenjax.planner.program import collectives
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.search import Question
from teukenjax.planner.step_time import wire_bytes
from teukenjax.recipe import Recipe, load, validate
from teukenjax.sharding import STRATEGIES, make_layout
from teukenjax.train.batch import Batch, place_batch
from teukenjax.train.plan import with_vocabulary
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step
from teukenjax.units import GIB, GIGA


@dataclass(frozen=True)
class Case:
    """What is tried: a recipe with these choices, ``micro_batch`` sequences per batch shard."""

    recipe: Path
    overrides: tuple[str, ...]
    strategy: str
    remat: str
    micro_batch: int
    repeats: int


def ablate(
    recipe: Path,
    overrides: tuple[str, ...],
    *,
    strategies: tuple[str, ...] = tuple(STRATEGIES),
    micro_batches: tuple[int, ...] = (1, 2),
    remats: tuple[str, ...] = ("full", "save_attention"),
    repeats: int = 5,
    seconds: float = math.inf,
) -> Iterator[dict[str, str]]:
    """Each case's row when it is done; one that cannot run says why in ``failed``.

    Strategies vary fastest, and no case begins after so many ``seconds``: what is left out is then
    the last micro-batches and remat policies.

    Raises:
      UserError: for a mistake in the recipe, or a strategy or policy that there is not.
    """
    load(recipe, overrides)  # a mistake is said once, and here
    for given, known in ((strategies, STRATEGIES), (remats, POLICIES)):
        for name in given:
            if name not in known:
                raise UserError(f"'{name}': {nearest(name, known)}")
    end = time.monotonic() + seconds
    for micro_batch, remat, strategy in itertools.product(micro_batches, remats, strategies):
        if time.monotonic() < end:
            yield _apart(Case(recipe, overrides, strategy, remat, micro_batch, repeats))


def _apart(case: Case) -> dict[str, str]:
    """One case's row, by a process of its own: it may be killed, for the memory that it takes."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned) as pool:
        try:
            return pool.submit(attempt, case).result()
        except BrokenProcessPool:
            return _choices(case) | {"failed": "its process was killed, or aborted"}


def attempt(case: Case) -> dict[str, str]:
    """One case's row."""
    try:
        return _choices(case) | run_case(case) | {"failed": ""}
    except (UserError, jax.errors.JaxRuntimeError) as error:
        return _choices(case) | {"failed": str(error).splitlines()[0][:200]}


def _choices(case: Case) -> dict[str, str]:
    micro_batch = str(case.micro_batch)
    return {"strategy": case.strategy, "remat": case.remat, "micro_batch": micro_batch}


def run_case(case: Case) -> dict[str, str]:
    """Predicts, compiles and runs one case on all devices."""
    launch(load(case.recipe, case.overrides).compute)
    recipe = recipe_of(case, len(jax.devices()))
    layout = make_layout(recipe.sharding)
    program = Program(recipe, layout, platform=jax.devices()[0].platform)
    state, batch = program.init(), random_batch(program)
    compiled = make_train_step(program).lower(state, batch).compile()
    sizes = compiled.memory_analysis()
    sent = sum(found.sent for found in collectives(compiled.as_text()))
    row = predicted(recipe, layout) | {
        "compiled_gib": f"{(sizes.argument_size_in_bytes + sizes.temp_size_in_bytes) / GIB:.4f}",
        "compiled_sent_gb": f"{sent / GIGA:.4f}",
    }
    seconds = measure(compiled, state, batch, case.repeats)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    tokens = recipe.tokens_per_step / len(jax.devices())
    return row | {
        "measured_s": f"{seconds:.5f}",
        "measured_gib": "" if peak is None else f"{peak / GIB:.4f}",
        "tokens_per_s_per_device": f"{tokens / seconds:.1f}",
    }


def recipe_of(case: Case, devices: int) -> Recipe:
    """The recipe with the case's choices and a batch of two micro-batches."""
    base = with_vocabulary(load(case.recipe, case.overrides))
    sharding = sharding_of(case.strategy)
    shards = devices // sharding["tensor"]
    changes = {
        "sharding": sharding,
        "batch": {"sequences": 2 * shards * case.micro_batch, "accumulation": 2},
        "compute": base.compute.model_dump() | {"remat": case.remat},
    }
    return validate(Recipe, base.model_dump(mode="json") | changes, str(case.recipe))


def predicted(recipe: Recipe, layout) -> dict[str, str]:
    """By the model; seconds only for hardware that the catalogue knows."""
    known = find_hardware(recipe.hardware, jax.devices()[0])
    hw, constants = as_measured(known or next(iter(catalogue().values())))
    found = Question(recipe, hw, layout.mesh.size, constants=constants).own
    return {
        "predicted_gib": f"{found.memory.counted[0] / GIB:.4f}",
        # Bytes do not depend on the hardware.
        "predicted_s": f"{found.time.total[0]:.5f}" if known else "",
        "predicted_sent_gb": f"{wire_bytes(found.plans, found.setting)[0] / GIGA:.4f}",
    }


def random_batch(program: Program) -> Batch:
    """Random tokens in their place."""
    recipe = program.recipe
    shape = (recipe.batch.sequences, recipe.model.context + 1)
    rng = np.random.default_rng(0)
    drawn = rng.integers(recipe.model.vocab_size, size=shape, dtype=np.int32)
    return place_batch({"tokens": drawn}, recipe.batch.accumulation, program.layout)


def measure(step, state, batch, repeats: int) -> float:
    """Median seconds of a step, the first one not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def write(rows: list[dict[str, str]], out: Path) -> None:
    """OUT/ablation.csv, and OUT/ablation.png: predicted against compiled and measured."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    Picture(figure(rows), table_of(rows)).save(out / "ablation")


def table(rows: list[dict[str, str]]) -> Table:
    """The rows; predicted, compiled and measured beside each other."""
    columns, *cells = table_of(rows)
    drawn = Table(*(name.replace("_", " ") for name in columns), box=None)
    for row in cells:
        drawn.add_row(*row)
    return drawn


def figure(rows: list[dict[str, str]]) -> Figure:
    """Three panels; a point on the diagonal is a prediction that holds."""
    drawn = Figure(figsize=(13, 4), dpi=120, layout="constrained")
    panels = (
        ("memory, GiB", "predicted_gib", "compiled_gib"),
        ("sent per device and step, GB", "predicted_sent_gb", "compiled_sent_gb"),
        ("step, s", "predicted_s", "measured_s"),
    )
    for axes, (title, x, y) in zip(drawn.subplots(1, 3), panels, strict=True):
        for strategy in STRATEGIES:
            mine = [row for row in rows if row["strategy"] == strategy and row.get(x)]
            points = [(float(row[x]), float(row[y])) for row in mine]
            axes.plot(*zip(*points, strict=True) if points else ([], []), "o", label=strategy)
        axes.axline((0, 0), slope=1, color="gray", linewidth=0.8)
        axes.set(title=title, xlabel=x.split("_")[0], ylabel=y.split("_")[0])
    drawn.axes[0].legend()
    return drawn
