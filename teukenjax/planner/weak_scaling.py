"""The same batch a GPU on more and more GPUs of one host: predicted, compiled and run.

A run is ``teukenjax bench step`` in a process of its own, which sees only so many GPUs. What is
compiled needs no GPU.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from matplotlib.figure import Figure
from rich.table import Table

from teukenjax.bench.apart import step_apart
from teukenjax.errors import UserError
from teukenjax.hardware import Hardware
from teukenjax.planner.compiled import compile_step
from teukenjax.planner.plans import HALVED, sharding_of
from teukenjax.planner.predict import Prediction
from teukenjax.planner.profile import as_measured
from teukenjax.planner.search import Question
from teukenjax.planner.step_time import wire_bytes
from teukenjax.recipe import load
from teukenjax.train.plan import with_vocabulary
from teukenjax.units import GIB, GIGA

COLUMNS = (
    *("devices", "strategy", "predicted_tokens_per_s", "predicted_mfu", "predicted_gib"),
    *("predicted_sent_gb", "compiled_gib", "compiled_sent_gb", "step_s", "step_s_min"),
    *("step_s_max", "tokens_per_s", "mfu", "peak_gib", "exposed", "hidden", "failed"),
)


@dataclass(frozen=True)
class Series:
    """What all sizes of a mesh have in common.

    Attributes:
      recipe, overrides: as for any verb; they need ``model.vocab_size`` and ``batch.accumulation``.
      sequences: of a step, on each GPU.
      hw: what is predicted and compiled for.
      repeats: steps to time; none: nothing is run.
      compiled: whether to ask the compiler.
    """

    recipe: Path
    overrides: tuple[str, ...]
    sequences: int
    hw: Hardware
    repeats: int | None
    compiled: bool


def rows(
    series: Series, sizes: tuple[int, ...], strategies: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    """A row a size and strategy, of ``COLUMNS``, when it is done.

    A strategy that has no mesh of a size has no row, one that cannot run says why in ``failed``.

    Raises:
      UserError: for a mistake in the recipe that no size or strategy makes.
    """
    with_vocabulary(load(series.recipe, series.overrides))
    for devices in sizes:
        for strategy in strategies if devices > 1 else strategies[:1]:
            if strategy not in HALVED or devices > 2:
                yield dict.fromkeys(COLUMNS, "") | _row(series, devices, strategy)


def _row(series: Series, devices: int, strategy: str) -> dict[str, str]:
    row = {"devices": str(devices), "strategy": strategy}
    asked = [*series.overrides, *_overrides(series, devices, strategy)]
    try:
        recipe = with_vocabulary(load(series.recipe, asked))
        hw, constants = as_measured(series.hw)
        prediction = Question(recipe, hw, devices, constants=constants).own
        row |= _predicted(prediction)
        if series.compiled:
            found = compile_step(recipe, series.hw, devices)
            row["compiled_gib"] = f"{found.memory / GIB:.2f}"
            row["compiled_sent_gb"] = f"{sum(c.sent for c in found.collectives) / GIGA:.2f}"
        if series.repeats is not None and prediction.fits[0]:
            row |= _run(series, devices, asked)
    except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter of the compiler
        row["failed"] = str(error).splitlines()[0]
    return row


def _overrides(series: Series, devices: int, strategy: str) -> list[str]:
    sharding = [f"sharding.{key}={value}" for key, value in sharding_of(strategy).items()]
    return [*sharding, f"batch.sequences={devices * series.sequences}"]


def _predicted(found: Prediction) -> dict[str, str]:
    return {
        "predicted_tokens_per_s": f"{found.tokens_per_s[0]:.0f}",
        "predicted_mfu": f"{found.mfu[0]:.4f}",
        "predicted_gib": f"{found.memory.counted[0] / GIB:.2f}",
        "predicted_sent_gb": f"{wire_bytes(found.plans, found.setting)[0] / GIGA:.2f}",
        "failed": "" if found.fits[0] else "predicted not to fit",
    }


def _run(series: Series, devices: int, overrides: list[str]) -> dict[str, str]:
    """``teukenjax bench step`` on the first GPUs; a UserError with its last line if it failed."""
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(devices)))}
    how = {"env": os.environ | seen, "capture_output": True, "text": True}
    try:
        row = step_apart(series.recipe, overrides, repeats=series.repeats, **how)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).split("\n")
        last = next(filter(None, reversed(said)), f"ended with {error.returncode} and said nothing")
        raise UserError(last[:200]) from None
    if row["devices"] != devices:
        raise UserError(f"ran on {row['devices']} devices, not {devices}")
    seconds, profile = row["step_s"], row["profile"]
    return {
        "step_s": str(seconds["median"]),
        "step_s_min": str(seconds["min"]),
        "step_s_max": str(seconds["max"]),
        "tokens_per_s": str(row["tokens_per_s_per_device"]),
        "mfu": str(row["mfu_causal"]),
        "peak_gib": str(row["gib"]["peak"]),
        "exposed": str(profile["share"].get("communication", 0.0)),
        "hidden": str(profile["communication_hidden"]),
    }


def table(found: list[dict[str, str]]) -> Table:
    """The rows, and the speed of each GPU as a share of that with two, as ``kept``."""
    drawn = Table(*(name.replace("_", "\n") for name in COLUMNS), "of two", box=None)
    for row in found:
        drawn.add_row(*(row[name] for name in COLUMNS), kept(row, found))
    return drawn


def kept(row: dict[str, str], found: list[dict[str, str]]) -> str:
    """Measured tokens a second and GPU over those on two GPUs under fsdp; "" if not measured."""
    two = [r for r in found if (r["devices"], r["strategy"]) == ("2", "fsdp") and r["tokens_per_s"]]
    if not (row["tokens_per_s"] and two):
        return ""
    return f"{float(row['tokens_per_s']) / float(two[0]['tokens_per_s']):.1%}"


def figure(found: list[dict[str, str]]) -> Figure:
    """Tokens a second and GPU, and memory: measured or compiled as points, predicted as lines."""
    drawn = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    panels = (
        ("tokens/s a GPU", "predicted_tokens_per_s", "tokens_per_s"),
        ("GiB a GPU (points: compiled)", "predicted_gib", "compiled_gib"),
    )
    for axes, (title, line, point) in zip(drawn.subplots(1, 2), panels, strict=True):
        for colour, strategy in enumerate(dict.fromkeys(row["strategy"] for row in found)):
            mine = [row for row in found if row["strategy"] == strategy]
            for key, style in ((line, "-"), (point, "o")):
                points = [(int(row["devices"]), float(row[key])) for row in mine if row[key]]
                label = strategy if style == "-" else None
                axes.plot(*zip(*points, strict=True) if points else ([], []), style,
                          color=f"C{colour}", label=label)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel="GPUs", ylim=(0, None))
    drawn.axes[0].legend()
    return drawn
