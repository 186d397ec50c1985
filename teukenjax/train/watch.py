"""A watch over a run: when nothing moves any more, it says who does not and ends the process.

A collective has no time limit: if one process hangs, or the network is gone, all others wait in it
for ever. So a thread watches how long the main one has been busy with the same thing. Each process
also shows a pulse in the table of ``processes``, so that the one at fault can be named.

Time is counted in ticks of this thread, not read from a clock: a job that was suspended, or whose
clock was set, has not been hanging.
"""

import contextlib
import math
import os
import threading
import time

import jax

from teukenjax import processes
from teukenjax.errors import LOST, TryAgainError

TICK_S = 0.5
PULSE_S = 2.0
ANSWER_S = 3 * PULSE_S  # within which a live process shows its pulse, and the table answers
NO_ANSWER = "process 0, which coordinates, does not answer"
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")  # of XLA's: no other process made them


class Watch:
    """Starts with ``with``, also again; ``doing`` names what the main thread does now.

    An error of the runtime inside the block that another process caused becomes a TryAgainError.
    """

    def __init__(self, *, limit_s: float):
        """Args: how long one thing may take."""
        self._limit_s = limit_s
        self._beats = 0

    def __enter__(self) -> "Watch":
        self.doing("starting")
        self._ended = threading.Event()
        threads = [self._count] + [self._pulse] * (processes.client() is not None)
        for target in threads:
            threading.Thread(target=target, args=(self._ended,), daemon=True).start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        what, self._patience = self._what, math.inf
        try:
            if processes.client() is not None and _came_from_outside(error):
                raise TryAgainError(
                    f"{what}: {_fault()} ({processes.first_line(error)})", LOST
                ) from None
        finally:
            self._ended.set()

    def doing(self, what: str, *, patience: float = 1.0) -> None:
        """The main thread begins with ``what``, such as "step 12"; it has ``patience`` limits."""
        self._what, self._busy_s, self._patience = what, 0.0, patience

    def _count(self, ended: threading.Event) -> None:
        last = time.monotonic()
        while not ended.wait(TICK_S):
            now = time.monotonic()
            self._busy_s += min(now - last, 2 * TICK_S)
            last = now
            if self._busy_s > self._limit_s * self._patience:
                self._end()

    def _pulse(self, ended: threading.Event) -> None:
        client, me = processes.client(), jax.process_index()
        while not ended.wait(PULSE_S):
            self._beats += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                pulse = f"{self._beats} {self._what}"
                client.key_value_set(f"pulse/{me}", pulse, allow_overwrite=True)

    def _end(self) -> None:
        """The main thread may be deep in a collective: nothing but this ends it."""
        what, fault = self._what, _fault()
        if self._what == what:  # it may have come back while the others were asked
            processes.leave(f"stopped: {what} takes over {self._limit_s:g} s; {fault}", LOST)
            os._exit(LOST)


def _came_from_outside(error: BaseException | None) -> bool:
    return processes.from_runtime(error) and not str(error).startswith(OWN_FAULTS)


def _fault() -> str:
    """Who does not move; asked in a thread, as nobody may answer."""
    if processes.client() is None:
        return "the process is alone: a disk or a data store does not answer"
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.append(_silent()), daemon=True)
    asking.start()
    asking.join(3 * ANSWER_S)
    return found[0] if found else NO_ANSWER


def _silent() -> str:
    """The processes without a pulse; if all have one, what each is doing."""
    try:
        before = _pulses()
        time.sleep(ANSWER_S)
        after = _pulses()
    except jax.errors.JaxRuntimeError:
        return NO_ANSWER
    others = [i for i in range(jax.process_count()) if i != jax.process_index()]
    still = [i for i in others if after.get(i) == before.get(i)]
    if still:
        names = ", ".join(processes.title(i) for i in still)
        last = after.get(still[0], "0 starting").split(" ", 1)[1]
        return f"no sign of life from {names}, last seen at {last}"
    return "; ".join(f"{processes.title(i)}: {after[i].split(' ', 1)[1]}" for i in sorted(after))


def _pulses() -> dict[int, str]:
    pairs = processes.client().key_value_dir_get("pulse/")
    return {int(key.rsplit("/", 1)[1]): value for key, value in pairs}
