"""Where the wall time of a run goes: in steps, or in what is needed around them.

RUN/goodput.json    one object for each start of the run, written with every checkpoint
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from teukenjax.run import read_rows, write_atomically

PARTS = ("steps", "compile", "restore", "save", "data", "evaluation", "other")


class Goodput:
    """A stopwatch with one hand: what begins inside of something else interrupts it."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "other", time.monotonic()
        self._earlier: list[dict] | None = None

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """The time of the block is that of ``part``, one of ``PARTS``."""
        before = self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, part: str) -> str:
        now, before = time.monotonic(), self._part
        self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def shares(self) -> dict[str, float]:
        """Of the wall time so far; their sum is 1."""
        self._switch(self._part)
        total = sum(self.seconds.values())
        return {part: seconds / total for part, seconds in self.seconds.items()}

    def share(self, part: str) -> float:
        """That of one of ``PARTS``, to four digits."""
        return round(self.shares()[part], 4)

    def write(self, path: Path, *, steps: int, repeated: int) -> None:
        """Replaces this start's object in the file.

        Args:
          path: RUN/goodput.json.
          steps: done since the start.
          repeated: steps that an earlier start had done after its last checkpoint, or this one
            before it went back.
        """
        if self._earlier is None:
            self._earlier = read_rows(path)
        shares = {part: round(share, 5) for part, share in self.shares().items()}
        seconds = round(sum(self.seconds.values()), 3)
        row = {"seconds": seconds, "steps": steps, "repeated": repeated, "shares": shares}
        write_atomically(path, json.dumps([*self._earlier, row], indent=1))

    def show(self, console: Console) -> None:
        """One line at the end of a run."""
        parts = ", ".join(f"{part} {share:.1%}" for part, share in self.shares().items() if share)
        total = sum(self.seconds.values())
        console.print(f"goodput: of {total:.1f} s: {parts}", highlight=False)
