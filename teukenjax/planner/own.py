"""The model against our own steps that ran: ``published/teukenjax.csv``."""

import functools
from dataclasses import dataclass

from teukenjax.hardware import configs, named
from teukenjax.planner.plans import sharding_of
from teukenjax.planner.predict import Prediction
from teukenjax.planner.profile import as_measured
from teukenjax.planner.search import Question
from teukenjax.planner.table import PUBLISHED, read_rows
from teukenjax.recipe import load
from teukenjax.units import GIB

BEFORE = ("barriers", "twice", "before")  # programs that there are no more
OURS = ("kernels", "twice")  # with our own kernels


@dataclass(frozen=True)
class OwnRun:
    """One row and its prediction, by the profile of its hardware."""

    row: dict[str, str]
    prediction: Prediction

    @property
    def before(self) -> bool:
        """Whether its program is one that there is no more."""
        return self.row["program"] in BEFORE

    def error(self, column: str) -> float | None:
        """Predicted over measured − 1 of seconds, temporary or peak memory; none if not known.

        The reserve is outside of what a device counts as its peak.
        """
        if not self.row[column]:
            return None
        held = self.prediction.memory
        predicted = {
            "step_s": self.prediction.time.total,
            "temporary_gib": held.temporary / GIB,
            "peak_gib": held.counted / GIB,
        }
        return float(predicted[column][0]) / float(self.row[column]) - 1


@functools.cache
def own_runs() -> tuple[OwnRun, ...]:
    """All rows."""
    rows = read_rows(PUBLISHED / "teukenjax.csv")
    return tuple(OwnRun(row, predict_own(row)) for row in rows)


def own_errors(column: str, *, before: bool = False) -> list[float]:
    """Of the rows of today's programs, or of those before, that have the column."""
    runs = [run for run in own_runs() if run.before == before]
    found = [run.error(column) for run in runs]
    return [error for error in found if error is not None]


def predict_own(row: dict[str, str]) -> Prediction:
    """One row, of Teuken-7B with so many layers and sequences of 4096."""
    devices, accumulation = int(row["devices"]), int(row["accumulation"])
    sharding = sharding_of(row["strategy"])
    parts = accumulation * devices // sharding["tensor"]
    overrides = [
        *(f"sharding.{key}={value}" for key, value in sharding.items()),
        f"optimizer={{name: {row['optimizer']}}}",
        f"model.layers={row['layers']}",
        f"batch.sequences={parts * int(row['micro_batch'])}",
        f"batch.accumulation={accumulation}",
        f"compute.remat={row['remat']}",
        f"compute.head_chunk={row['head_chunk']}",
        f"compute.gather={'step' if row['once'] == 'T' else 'layer'}",
        f"compute.kernels.cross_entropy={'pallas' if row['program'] in OURS else 'reference'}",
    ]
    overrides += ["optimizer.method=gram"] * (row["gram"] == "T")
    overrides += ["optimizer.light=true"] * (row["light"] == "T")
    recipe = load(configs() / "recipes" / "teuken-7b.yaml", overrides)
    hw, constants = as_measured(named(row["hardware"]))
    return Question(recipe, hw, devices, constants=constants).own
