"""What a run does about the bad steps that ``optim.guard`` has found and skipped.

A bad step is an entry in RUN/guard.json, a line on the screen and a count in the metrics. When the
recipe says so, a spike also takes the run back to its newest checkpoint and moves the data on, past
the batch at fault: the steps since are done again, with other text. Too many of them end the run.

All of it follows from the metrics, which are equal in all processes, and is part of each
checkpoint. So a run that is killed after a rewind, and resumed from before it, decides the same.
"""

import json
from pathlib import Path
from typing import Any

from teukenjax.errors import UserError
from teukenjax.optim.guard import HEALTHY, NOT_FINITE
from teukenjax.recipe import GuardConfig
from teukenjax.run import write_atomically

WINDOW = 1000  # steps, over which bad ones are counted
NAMES = {1: "not finite", 2: "spike"}


class Rewind(Exception):  # noqa: N818 (no error: a turn of the loop)
    """Raised through the loop: go back to the newest checkpoint."""


class Guard:
    """The decisions of one run, and how far its data is ahead of its steps."""

    def __init__(self, config: GuardConfig):
        self.config = config
        self.moved = 0  # batches: step s reads batch s + moved
        self.decisions: list[dict[str, Any]] = []

    def judge(self, step: int, verdict: int, loss: float) -> str | None:
        """One line about step ``step``, the number of the last; none when it was healthy.

        Raises:
          Rewind: after having noted it, when the run is to go back.
          UserError: when there were too many, or gradients must be finite.
        """
        if verdict == HEALTHY:
            return None
        back = verdict != NOT_FINITE and self.config.spikes == "rewind"
        kind, action = NAMES[verdict], "rewound" if back else "skipped"
        batch = step - 1 + self.moved
        self.decisions.append(
            {"step": step, "batch": batch, "verdict": kind, "loss": str(loss), "action": action}
        )
        self._refuse_more(step, kind, loss)
        if back:
            raise Rewind(f"step {step}: loss {loss:.4g} is a spike")
        return f"step {step}: loss {loss:.4g}, {kind}: skipped"

    def _refuse_more(self, step: int, kind: str, loss: float) -> None:
        recent = [row for row in self.decisions if row["step"] > step - WINDOW]
        stop = kind == NAMES[NOT_FINITE] and self.config.nonfinite == "stop"
        if stop or len(recent) > self.config.limit:
            raise UserError(
                f"loss is {loss:.4g} at step {step} ({kind}), bad step {len(recent)} of the last "
                f"{WINDOW} where guard.limit={self.config.limit} and guard.nonfinite="
                f"{self.config.nonfinite}: lower optimizer.learning_rate"
            )

    def moved_back(self, to: int) -> None:
        """The run is at step ``to`` again; its data goes on after the last batch at fault."""
        self.moved = self.decisions[-1]["batch"] + 1 - to

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"moved": self.moved, "decisions": self.decisions}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes over what ``saved`` gave."""
        self.moved, self.decisions = saved["moved"], list(saved["decisions"])

    def write(self, path: Path) -> None:
        """RUN/guard.json: every decision, oldest first."""
        write_atomically(path, json.dumps(self.decisions, indent=1))
