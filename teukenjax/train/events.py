"""TensorBoard events, written where they are told.

tensorboardX's own ``SummaryWriter`` hands each event to a thread by way of a multiprocessing queue.
A Ctrl-C in the middle of that hand-over can lose the thread's wake-up call, and closing then waits
for ever; and a full disk is reported by the thread, beside the run. So its file format is used,
and its thread is not.
"""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

FLUSH_INTERVAL_S = 10.0


class Events:
    """Scalars of one run, in a new file of ``folder``."""

    def __init__(self, folder: Path, *, purge_step: int):
        """From ``purge_step`` on, what earlier files of the folder say is hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One point of the curve ``tag``."""
        self._write(step=step, summary=scalar(tag, value))
        if time.monotonic() - self._flushed > FLUSH_INTERVAL_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes out what is held back."""
        self._writer.close()

    def _write(self, **event) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **event))
