"""What a person sees while a run goes on: one live line on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class StepProgress:
    """``step 120/300 | loss 5.12 | lr 2.0e-03 | 12.3k tok/s | mfu n/a | eta``."""

    def __init__(self, console: Console, *, steps: int, first_step: int):
        self.console, self.steps = console, steps
        self._started, self._first, self._printed = time.monotonic(), first_step, 0.0
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=first_step)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()

    def show(self, row: dict) -> None:
        """The numbers of one finished step."""
        self._bar.update(self._task, completed=row["step"], description=_line(row))
        now = time.monotonic()
        last = row["step"] == self.steps
        if not self.console.is_terminal and (last or now - self._printed > PLAIN_INTERVAL_S):
            self._printed = now
            per_step = (now - self._started) / (row["step"] - self._first)
            eta = clock(per_step * (self.steps - row["step"]))
            self.console.print(f"step {row['step']}/{self.steps} | {_line(row)} | eta {eta}")


def _line(row: dict) -> str:
    mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return (
        f"loss {row['loss']:.3f} | lr {row['lr']:.2e} | grad {row['grad_norm']:.2f} | "
        f"{short(row['tokens_per_s'])} tok/s | mfu {mfu}"
    )


def short(number: float) -> str:
    """12300 as 12.3k."""
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def clock(seconds: float) -> str:
    """3723 as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
