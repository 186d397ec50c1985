"""The model against our own steps that ran: ``published/teukenjax.csv``."""

from dataclasses import dataclass

import numpy as np

from teukenjax.hardware import configs, named
from teukenjax.planner.optimizer import Optimizer
from teukenjax.planner.plans import Plans
from teukenjax.planner.predict import Prediction, predict
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import software
from teukenjax.planner.step_time import Setting
from teukenjax.planner.table import GIB, PUBLISHED, read_rows
from teukenjax.recipe import load


@dataclass(frozen=True)
class OwnErrors:
    """Relative errors, predicted over measured − 1."""

    seconds: np.ndarray
    temporary: np.ndarray  # of the rows that say how much memory XLA took


def own_errors() -> OwnErrors:
    """Of all rows."""
    rows = read_rows(PUBLISHED / "teukenjax.csv")
    found = [predict_own(row) for row in rows]
    seconds = [p.time.total[0] / float(row["step_s"]) for p, row in zip(found, rows, strict=True)]
    temporary = [
        p.memory.temporary[0] / GIB / float(row["temporary_gib"])
        for p, row in zip(found, rows, strict=True)
        if row["temporary_gib"]
    ]
    return OwnErrors(np.array(seconds) - 1, np.array(temporary) - 1)


def predict_own(row: dict[str, str]) -> Prediction:
    """One row, of Teuken-7B with sequences of 4096."""
    overrides = [f"optimizer={{name: {row['optimizer']}}}"]
    if row["gram"] == "T":
        overrides.append("optimizer.method=gram")
    recipe = load(configs() / "recipes" / "teuken-7b.yaml", overrides)
    shape, constants = Shape.of(recipe.model), software("teukenjax")
    setting = Setting(shape, named(row["hardware"]), constants, Optimizer.of(recipe.optimizer))
    plan = Plans.single(
        strategy=row["strategy"],
        remat=row["remat"],
        fsdp=int(row["devices"]),
        micro_batch=int(row["micro_batch"]),
        accumulation=int(row["accumulation"]),
        sequence=recipe.model.context,
        light=row["light"] == "T",
    )
    return predict(plan, setting, head_chunk=recipe.compute.head_chunk)
