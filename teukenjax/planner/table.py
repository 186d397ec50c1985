"""Whole tables of published runs: predicted row by row, and how far off the predictions are.

A row names GPU, model, sequence, GPUs, micro-batch, accumulation, sharding and checkpointing in the
columns of ``published/mosaic_h100.csv``. A model is one of MosaicML's, or its dimensions in columns
of their own. What a row does not say is not guessed from its throughput; precision is taken for
bf16, whatever the row says.
"""

import csv
import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teukenjax.errors import UserError, nearest
from teukenjax.hardware import Hardware, named
from teukenjax.planner.optimizer import Optimizer
from teukenjax.planner.plans import NAMES, Plans
from teukenjax.planner.predict import Prediction, predict
from teukenjax.planner.remat import POLICIES
from teukenjax.planner.shape import Shape
from teukenjax.planner.software import Software, software
from teukenjax.planner.step_time import Setting, step_time
from teukenjax.run import write_atomically
from teukenjax.units import GIB

PUBLISHED = Path(__file__).parent / "published"
SHARDING = {  # PyTorch's and DeepSpeed's words → a row of our table
    "F": "fsdp", "FULL_SHARD": "fsdp", "ZERO3": "fsdp", "ZERO-3": "fsdp",
    "S": "zero2", "SHARD_GRAD_OP": "zero2", "H": "hsdp", "HYBRID_SHARD": "hsdp",
    "N": "ddp", "NO_SHARD": "ddp",
}  # fmt: skip
# "Selective" is not one policy in all programs; most keep attention and its projections.
REMAT = {
    "T": "full", "TRUE": "full", "F": "none", "FALSE": "none", "SELECTIVE": "save_attention",
}  # fmt: skip
DIMENSIONS = ("width", "layers", "heads", "ffn", "vocab")  # required when no model is named
ADAM = Optimizer(state_bytes=8, traffic_bytes=40)
JAX = ("jax", "maxtext", "axlearn", "levanter", "paxml", "easydel", "teukenjax")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file whose first lines may be comments.

    Raises:
      UserError: when it cannot be read or has no rows.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    cells = (line for line in lines if line and not line.startswith("#"))
    rows = list(csv.DictReader(cells, restval=""))
    if not rows:
        raise UserError(f"{path}: has no rows")
    for number, row in enumerate(rows, start=1):
        if None in row:  # where DictReader puts them
            raise UserError(f"{path}: row {number}: {row[None][0]!r:.40} is beyond the last column")
    return rows


@dataclass(frozen=True)
class Run:
    """One row, understood."""

    plan: Plans
    setting: Setting
    measured: float | None  # tokens/s per device

    def predict(self) -> Prediction:
        """Memory and time."""
        # Our head makes chunks of logits, PyTorch's all of them.
        chunk = 1024 if self.setting.software.table_stays else 0
        return predict(self.plan, self.setting, head_chunk=chunk)

    def error(self, constants: Software | None = None) -> float:
        """Predicted over measured throughput − 1, with other shares if given."""
        constants = constants or self.setting.software
        time = step_time(self.plan, dataclasses.replace(self.setting, software=constants))
        per_device = self.plan.tokens_per_step / (self.plan.devices * time.total)
        return float(per_device[0]) / self.measured - 1


def understand(row: dict[str, str]) -> Run:
    """A row's cells → its run.

    Our own shares are used where the row's ``software``, or else its source, names a JAX program,
    PyTorch FSDP's otherwise.

    Raises:
      UserError: for a cell that is missing or not understood, naming its column.
    """
    sequence, gpus = _whole(row, "seq_len"), _whole(row, "gpus")
    shape, hw = _shape(row, sequence), _hardware(row)
    strategy = _word(row, "sharding", SHARDING, NAMES, "fsdp")
    replica, node = 1, hw.node.devices
    if strategy == "hsdp" and gpus > node:
        if gpus % node:
            raise UserError(f"gpus={gpus}: hsdp is over whole nodes: expected a multiple of {node}")
        replica = gpus // node
    plan = Plans.single(
        strategy=strategy,
        remat=_word(row, "activation_checkpointing", REMAT, POLICIES, "none"),
        replica=replica,
        fsdp=gpus // replica,
        micro_batch=_whole(row, "micro_batch"),
        accumulation=_whole(row, "grad_accum", 1),
        sequence=sequence,
    )
    known = row.get("tokens_per_s_per_gpu")
    measured = _number(row, "tokens_per_s_per_gpu") if known else None
    return Run(plan, Setting(shape, hw, software(_software(row)), ADAM), measured)


def predict_table(path: Path, out: Path) -> list[dict[str, str]]:
    """Writes the rows of ``path`` with predictions to ``out``, and returns them.

    Raises:
      UserError: for a row that is not understood, by its number; when ``out`` cannot be written.
    """
    rows = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            rows.append({**row, **_cells(understand(row).predict())})
        except UserError as error:
            raise UserError(f"{path}: row {number}: {error}") from None
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_atomically(out, text.getvalue())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return rows


def errors(runs: list[Run], constants: Software | None = None) -> np.ndarray:
    """Relative errors of throughput, of runs that say what was measured."""
    return np.array([run.error(constants) for run in runs])


def mape(found: np.ndarray | list[float]) -> float:
    """Mean absolute relative error."""
    return float(np.mean(np.abs(found)))


def _cells(prediction: Prediction) -> dict[str, str]:
    return {
        "predicted_tokens_per_s_per_gpu": f"{prediction.tokens_per_s[0]:.1f}",
        "predicted_memory_gib": f"{prediction.memory.total[0] / GIB:.2f}",
        "fits": str(bool(prediction.fits[0])).lower(),
        "binding_roof": str(prediction.binding()[0]),
    }


def _software(row: dict[str, str]) -> str:
    if row.get("software"):
        return row["software"]
    source = row.get("source", "").lower()
    return "teukenjax" if any(name in source for name in JAX) else "torch-fsdp"


def _hardware(row: dict[str, str]) -> Hardware:
    hw = named(_cell(row, "gpu"))
    node = {}
    if row.get("node_interconnect_gbit_s"):
        node["network_gb_per_s"] = _number(row, "node_interconnect_gbit_s") / 8
    if row.get("gpus_per_node"):
        node["devices"] = _whole(row, "gpus_per_node")
    return hw.model_copy(update={"node": hw.node.model_copy(update=node)})


def _shape(row: dict[str, str], sequence: int) -> Shape:
    if not any(row.get(name) for name in DIMENSIONS):
        return Shape.mpt(_cell(row, "model"), sequence)
    values = {name: _whole(row, name) for name in DIMENSIONS}
    heads = values["heads"]
    return Shape(
        **values,
        kv_heads=_whole(row, "kv_heads", heads),
        head_dim=_whole(row, "head_dim", values["width"] // heads),
        gated=_flag(row, "gated"),
        tied=_flag(row, "tied"),
    )


def _flag(row: dict[str, str], column: str) -> bool:
    """True where the cell is empty."""
    cell = row.get(column) or "T"
    if cell.upper() not in ("T", "TRUE", "F", "FALSE"):
        raise UserError(f"{column}={cell}: allowed: T, F")
    return cell.upper().startswith("T")


def _word(row, column: str, words: dict[str, str], ours: tuple[str, ...], default: str) -> str:
    cell = row.get(column) or default
    found = words.get(cell.upper(), cell.lower())
    if found not in ours:
        raise UserError(f"{column}={cell}: {nearest(cell, (*words, *ours))}")
    return found


def _cell(row: dict[str, str], column: str) -> str:
    if not row.get(column):
        raise UserError(f"column '{column}' is missing or empty")
    return row[column]


def _number(row: dict[str, str], column: str, allowed: str = "a number above 0") -> float:
    try:
        value = float(_cell(row, column))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"{column}={row[column]}: expected {allowed}")
    return value


def _whole(row: dict[str, str], column: str, default: int | None = None) -> int:
    if default is not None and not row.get(column):
        return default
    allowed = "a whole number of at least 1"
    value = _number(row, column, allowed)
    if not value.is_integer():
        raise UserError(f"{column}={row[column]}: expected {allowed}")
    return int(value)
