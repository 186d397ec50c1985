"""The numbers of a step, read one step late: judged, written down, handed on to be shown."""

import dataclasses
import time
from pathlib import Path

import jax
from rich.console import Console

from teukenjax.hardware import Hardware, mfu
from teukenjax.model import flops_per_token
from teukenjax.train.goodput import Goodput
from teukenjax.train.guard import Guard
from teukenjax.train.metrics import MetricsLog, NoLog, open_log
from teukenjax.train.norms import norm_columns
from teukenjax.train.state import Program
from teukenjax.train.step import Metrics


@dataclasses.dataclass
class Recorder:
    """Takes each step's numbers in turn, and knows what they say about the run."""

    program: Program
    hardware: Hardware | None
    guard: Guard
    goodput: Goodput
    path: Path  # of the run
    console: Console
    log: MetricsLog | NoLog = NoLog()  # noqa: RUF009 (it holds nothing)
    stopping: bool = False  # told to, by any process
    healthy: bool = True  # the last step
    repeated: int = 0  # steps that are done again: after an earlier start's last save, or a rewind

    def begin(self, step: int) -> None:
        """The run has done ``step`` steps; rows of later ones are dropped."""
        self.log.close()
        self.log = open_log(self.path, first_step=step)
        self.repeated += self.log.dropped

    def start_clock(self) -> None:
        """The next step's time begins now."""
        self._since = time.perf_counter()

    def __call__(self, step: int, metrics: Metrics) -> dict:
        """The row of a step, which is waited for; raises as ``Guard.judge`` does."""
        norms = metrics.pop("norms")
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        self.stopping, verdict = bool(values.pop("votes")), int(values.pop("verdict"))
        recipe, since = self.program.recipe, self._since
        self.start_clock()
        tokens_per_s = recipe.tokens_per_step / (self._since - since)
        devices = self.program.layout.mesh.devices.size
        used = mfu(tokens_per_s, flops_per_token(recipe.model), devices, self.hardware)
        self.healthy = self._judge(step, verdict, values["loss"])
        row = {"step": step, **values, "tokens_per_s": round(tokens_per_s, 1), "mfu": used}
        row |= {"bad_steps": len(self.guard.decisions), "goodput": self.goodput.share("steps")}
        every = recipe.telemetry.every
        if every is not None and step % every == 0 and self.healthy:
            row |= norm_columns(norms, self.program.leaf_specs)
        self.log.write(row)
        return row

    def _judge(self, step: int, verdict: int, loss: float) -> bool:
        """Whether a step was healthy; otherwise says what is done about it."""
        try:
            said = self.guard.judge(step, verdict, loss)
        finally:
            if verdict:
                self.guard.write(self.path / "guard.json")
        if said is not None:
            self.console.print(said, highlight=False)
        return said is None
