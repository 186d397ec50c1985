"""Several processes, one run: who takes part, how they meet, and how one leaves.

JAX's coordination service lives in process 0 and keeps a small table of keys, which is what this
file works with. Every wait has a time limit, and says who was missing when it passes. A process
that ends early says why under the key ``left`` first, so that the others end too, with its exit
code, instead of waiting for it in a collective.

    meeting/NAME/2      process 2 has reached the meeting NAME
    host/2              where process 2 runs
    left                the exit code and the last words of the first that left early
"""

import itertools
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # its table of keys has no public name

from teukenjax.errors import LOST, PREEMPTED, TryAgainError, UserError

START_LIMIT_S = 300.0
HEARTBEAT_LIMIT_S = 60
LISTEN_S = 1.0
LEAVE_S = 3 * LISTEN_S  # what the others are given to read the last words

STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")

_meetings = itertools.count()


class Membership(NamedTuple):
    """Which of how many processes this is; what is None, Slurm or Open MPI say."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


@contextmanager
def joined(given: Membership, environment: Mapping[str, str]) -> Iterator[None]:
    """Makes this process one of several, if it is, for the block; raises as ``join`` does.

    An error that leaves the block ends a process that is one of several, with all others.
    """
    join(given, environment)
    try:
        yield
    except Exception as error:
        if client() is not None:
            _end(error)
        raise


def _end(error: Exception) -> None:
    if all_end_alike(error):
        print(f"stopped: {error}", file=sys.stderr, flush=True)
        with suppress(TryAgainError):
            meet("end", limit_s=HEARTBEAT_LIMIT_S)
        os._exit(PREEMPTED)
    if isinstance(error, TryAgainError):
        leave(f"stopped: {error}", error.code)
    if isinstance(error, UserError):
        leave(f"error: {error}", 2)
    leave("".join(traceback.format_exception(error)), 1)


def join(given: Membership, environment: Mapping[str, str]) -> None:
    """Makes this process one of several, if it is; before anything touches a device.

    Args:
      given: on the command line; all three parts or none.
      environment: variables, in which Slurm and Open MPI tell a process its place.

    Raises:
      UserError: when parts are missing or contradict, or nobody can come together there. When the
        others do not come in time, the process ends.
    """
    member = _complete(given, environment)
    if member is None:
        return
    # CPUs have no way of their own to talk across processes; GPUs have NCCL.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A lost process is our story (``train.watch``); JAX's own is to abort with a stack of C++.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    given_as = member._asdict().items()
    who = " ".join(f"{key}={value}" for key, value in given_as if value is not None) or "processes"
    with _limited(f"{who}: not all came together"):
        try:
            jax.distributed.initialize(
                *member,
                initialization_timeout=2 * int(START_LIMIT_S),
                heartbeat_timeout_seconds=HEARTBEAT_LIMIT_S,
            )
        except Exception as error:  # XlaRuntimeError, or what the cluster's environment lacks
            raise UserError(f"{who}: cannot come together: {first_line(error)}") from None
    client().key_value_set(f"host/{jax.process_index()}", socket.gethostname())
    threading.Thread(target=_listen, daemon=True).start()


@contextmanager
def _limited(what: str) -> Iterator[None]:
    """Ends this process when the block takes too long: JAX would, with a stack of C++."""

    def end() -> None:
        print(f"stopped: {what} within {START_LIMIT_S:.0f} s", file=sys.stderr, flush=True)
        os._exit(LOST)

    timer = threading.Timer(START_LIMIT_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _complete(given: Membership, environment: Mapping[str, str]) -> Membership | None:
    if None not in given:
        return _checked(given)
    if given != Membership():
        raise UserError(
            f"--coordinator={given.coordinator} --processes={given.processes} "
            f"--process={given.process}: give all three, or none to take Slurm's or Open MPI's"
        )
    for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environment.get(count, "1")) > 1:
            return Membership()
    return None


def _checked(given: Membership) -> Membership:
    host, _, port = given.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator={given.coordinator}: HOST:PORT of process 0 is allowed")
    if not 0 <= given.process < given.processes:
        raise UserError(
            f"--process={given.process}: 0 … {given.processes - 1} is allowed with "
            f"--processes={given.processes}"
        )
    return given


def client() -> Any:
    """The table of keys; None where there is one process."""
    return distributed.global_state.client


def is_first() -> bool:
    """Whether this process writes the run's files and speaks."""
    return client() is None or jax.process_index() == 0


def meet(name: str, *, limit_s: float) -> None:
    """Waits for all processes.

    Raises:
      TryAgainError: naming who is missing, when ``limit_s`` has passed.
    """
    if client() is None:
        return
    meeting = f"meeting/{next(_meetings)}-{name}"
    started = time.monotonic()
    client().key_value_set(f"{meeting}/{jax.process_index()}", "")
    try:
        client().wait_at_barrier(meeting, timeout_in_ms=int(limit_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        waited = time.monotonic() - started
        raise TryAgainError(
            f"{name}: {_absent(meeting, error)} after {waited:.0f} s", LOST
        ) from None


def _absent(meeting: str, error: Exception) -> str:
    try:
        keys = [key for key, _ in client().key_value_dir_get(meeting)]
    except jax.errors.JaxRuntimeError:
        return f"process 0, which coordinates, does not answer ({first_line(error)})"
    came = {int(key.rsplit("/", 1)[1]) for key in keys}
    missing = [title(i) for i in range(jax.process_count()) if i not in came]
    return f"{', '.join(missing)} did not come" if missing else first_line(error)


def title(process: int) -> str:
    """``process 1 (node7)``."""
    try:
        return f"process {process} ({client().key_value_try_get(f'host/{process}')})"
    except jax.errors.JaxRuntimeError:
        return f"process {process}"


def agree(name: str, mine: bool, *, limit_s: float) -> bool:
    """Whether ``mine`` is true in all processes; raises as ``meet`` does."""
    if client() is None:
        return mine
    key = f"answer/{next(_meetings)}-{name}"
    client().key_value_set(f"{key}/{jax.process_index()}", str(mine))
    meet(name, limit_s=limit_s)
    return all(answer == str(True) for _, answer in client().key_value_dir_get(key))


@contextmanager
def first_alone(name: str, *, limit_s: float) -> Iterator[None]:
    """Process 0 runs the block, then the others do: for files that only one should make."""
    if not is_first():
        meet(name, limit_s=limit_s)
    yield
    if is_first():
        meet(name, limit_s=limit_s)


def from_runtime(error: BaseException | None) -> bool:
    """Whether JAX's runtime raised it, rather than a library or a disk beside it.

    What fails while it is dispatched, such as a collective of gloo whose peer is gone, is a plain
    ValueError that begins with a status; TensorStore's look alike, but come through Orbax.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    if not isinstance(error, ValueError) or not STATUS.match(str(error)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].split(".")[0] in ("jax", "teukenjax")


def all_end_alike(error: Exception) -> bool:
    """Whether every process ends by ``error``, so that it is safe to wait for the others."""
    return client() is None or (isinstance(error, TryAgainError) and error.code == PREEMPTED)


def leave(message: str, code: int) -> None:
    """Prints the last words, lets the other processes read them, and ends this one at once.

    Returns only where there is one process, which may end in the ordinary way.
    """
    print(message, file=sys.stderr, flush=True)
    if client() is None:
        return
    words = f"{code} process {jax.process_index()} ({socket.gethostname()}): {message}"
    telling = threading.Thread(target=_tell, args=(words,), daemon=True)
    telling.start()  # in a thread, as process 0 may not answer any more
    time.sleep(LEAVE_S)
    # The ordinary way waits for all processes, and for collectives that will never end.
    os._exit(code)


def _tell(words: str) -> None:
    with suppress(jax.errors.JaxRuntimeError):  # another one was first, or process 0 is gone
        client().key_value_set("left", words)


def _listen() -> None:
    """Ends this process when another one has left early."""
    while client() is not None:
        with suppress(jax.errors.JaxRuntimeError):
            code, _, words = client().key_value_try_get("left").partition(" ")
            # Other words may name this process too, as the one that was missed.
            if not words.startswith(f"process {jax.process_index()} ("):
                print(f"ends with {words}", file=sys.stderr, flush=True)
                os._exit(int(code))
        time.sleep(LISTEN_S)


def first_line(error: Exception) -> str:
    """Of what it says: the runtime appends stacks."""
    return str(error).strip().split("\n")[0]
