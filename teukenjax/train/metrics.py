"""Where a run's numbers go: JSON lines for scripts, events for TensorBoard, a curve for people."""

import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from teukenjax import processes
from teukenjax.errors import UserError
from teukenjax.picture import save_figure
from teukenjax.run import write_atomically
from teukenjax.train.events import Events
from teukenjax.train.norms import norm_scalars

PLOTTED = {"loss": "loss (nats per token)", "grad_norm": "gradient norm", "lr": "learning rate"}


class MetricsLog:
    """Appends one row a step to metrics.jsonl and TensorBoard; flushed as it is written."""

    def __init__(self, run: Path, *, first_step: int):
        """Drops rows of steps after ``first_step``: a resumed run is about to do them again."""
        self.path = run / "metrics.jsonl"
        found = read_metrics(self.path)
        rows = [row for row in found if row["step"] <= first_step]
        self.dropped = len(found) - len(rows)
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._events = Events(run / "tensorboard", purge_step=first_step + 1)

    def write(self, row: dict) -> None:
        """One step's numbers; a value of None is unknown."""
        row = {key: _known(value) for key, value in row.items()}
        self._file.write(json.dumps(row) + "\n")
        plain = (
            (f"train/{key}", x) for key, x in row.items() if not key.startswith(("norm/", "norms"))
        )
        for tag, value in (*plain, *norm_scalars(row)):
            if tag != "train/step" and value is not None:
                self._events.add_scalar(tag, float(value), row["step"])

    def write_scores(self, step: int, scores: dict) -> None:
        """Bits per byte of each language as events."""
        for language, score in scores.items():
            self._events.add_scalar(f"bits_per_byte/{language}", score.bits_per_byte, step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()


class NoLog:
    """The log of a process that is not the first."""

    dropped = 0

    def write(self, row: dict) -> None:
        """Nothing."""

    def write_scores(self, step: int, scores: dict) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_log(run: Path, *, first_step: int) -> MetricsLog | NoLog:
    """The log of this process; see ``MetricsLog``."""
    return MetricsLog(run, first_step=first_step) if processes.is_first() else NoLog()


def _known(value: Any) -> Any:
    """JSON has no word for a loss that is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
      UserError: when another line is no row; nothing is thrown away unseen.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(line, f"{path}:{n}") for n, line in enumerate(lines[:-1], start=1) if line]


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
        row["step"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{where}: is damaged: not a JSON object with a step: remove it") from None
    return row


def plot_loss(rows: list[dict], path: Path) -> None:
    """The loss curve of a run, with gradient norm and learning rate below it, as PNG."""
    figure = Figure(figsize=(7, 7), dpi=120)
    axes = figure.subplots(len(PLOTTED), sharex=True, height_ratios=(2, 1, 1))
    for axis, key in zip(axes, PLOTTED, strict=True):
        values = [math.nan if row[key] is None else row[key] for row in rows]
        axis.plot([row["step"] for row in rows], values, linewidth=1)
        axis.set_ylabel(PLOTTED[key])
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    figure.align_ylabels()
    figure.tight_layout()
    save_figure(figure, path)
