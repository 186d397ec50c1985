"""Several processes are one run: the same bits, the same files, and ends that are told apart."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaign import is_saving
from curves import curve, first_difference, steps_done
from together import free_port

from teukenjax.errors import LOST, PREEMPTED, UserError
from teukenjax.processes import HEARTBEAT_LIMIT_S, Membership, from_runtime, join
from teukenjax.train.watch import PULSE_S


def test_two_processes_are_bit_for_bit_one(together):
    alone, both = together("alone", processes=1, devices=2, gloo=False), together("b", processes=2)
    alone.start()
    assert alone.wait(alone.limit_s) == [0], alone.said()
    both.start()
    assert both.wait(both.limit_s) == [0, 0], both.said()
    assert first_difference(alone.out, both.out) is None
    assert len(curve(both.out)) == 12
    assert {path.name for path in both.out.iterdir()} == {path.name for path in alone.out.iterdir()}
    assert "goodput: of" in both.said(0)
    assert "goodput" not in both.said(1)  # one process speaks


@pytest.mark.parametrize("every", [1, 5])  # at every step, the kill meets a save
def test_a_killed_process_ends_the_others_and_the_run_goes_on(every, together):
    """Elastic too: killed with two processes, it goes on in one with two devices."""
    straight, run = together("straight", processes=1, devices=2), together("run", processes=2)
    straight.start()
    assert straight.wait(straight.limit_s) == [0], straight.said()
    # In a barrier of the save nothing tells of a loss but the time limit.
    run.arguments += ["steps=5000", f"checkpoint.every={every}", "guard.timeout_s=60"]
    run.start()
    run.until(run.out, 7, run.limit_s)
    end = time.monotonic() + run.limit_s
    while every == 1 and not is_saving(run.out) and time.monotonic() < end:
        time.sleep(0.001)
    run.send(signal.SIGKILL, 1)
    assert run.wait(run.limit_s) == [LOST, -signal.SIGKILL], run.said()
    assert "no sign of life from process 1" in run.said()
    again = together("run", "steps=12", processes=1, devices=2)
    again.start()
    assert again.wait(again.limit_s) == [0], again.said()
    assert "at step " in again.said()
    assert first_difference(straight.out, again.out) is None


def dies_in(function: str, folder: Path, *, after_s: float = 0.0) -> list[str]:
    """What to put before a command so that its Python is killed where it calls ``function``."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import os, signal, time, {function.rsplit('.', 2)[0]}\n"
        "def die(*_, **__):\n"
        f"    time.sleep({after_s})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{function} = die\n"
    )
    return ["env", f"PYTHONPATH={folder}"]


def test_a_process_that_dies_while_the_others_start_ends_them(together, tmp_path, hang_s):
    run = together("run", f"guard.timeout_s={hang_s}", processes=2)
    # Its constructor is where Orbax waits for all.
    run.start([[], dies_in("orbax.checkpoint.CheckpointManager.__init__", tmp_path / "site")])
    assert run.wait(run.limit_s) == [LOST, -signal.SIGKILL], run.said()
    last = run.said().splitlines()[-1]
    assert last.startswith("stopped: preparing the first step")
    assert "no sign of life from process 1" in last


def test_a_process_that_dies_in_the_barrier_of_a_save_ends_the_others(together, tmp_path, hang_s):
    """No collective waits there that would fail at once: it is the time limit that ends them."""
    limit_s = min(hang_s, HEARTBEAT_LIMIT_S / 2)  # before JAX tells of the loss
    overrides = (f"guard.timeout_s={limit_s}", "steps=5000", "checkpoint.every=4000")
    run = together("run", *overrides, processes=2)
    # The thread that writes, and then waits in the barrier; 5 s later so does the main thread.
    thread = "orbax.checkpoint._src.checkpointers.async_checkpointer._AsyncManager._thread_func"
    run.start([[], dies_in(thread, tmp_path / "site", after_s=5)])
    run.until(run.out, 3, run.limit_s)
    run.send(signal.SIGUSR1, 0)  # it saves, and waits for the save
    assert run.wait(run.limit_s) == [LOST, -signal.SIGKILL], run.said()
    last = run.said().splitlines()[-1]
    assert last.startswith("stopped: saving step ")
    assert f" takes over {limit_s:g} s; no sign of life from process 1" in last
    assert not [path for path in (run.out / "checkpoints").iterdir() if path.name.isdigit()]


def test_a_signal_to_one_process_saves_in_all(together):
    run = together("run", "steps=5000", "checkpoint.every=4000", processes=2)
    run.start()
    run.until(run.out, 3, run.limit_s)
    run.send(signal.SIGUSR1, 1)
    assert run.wait(run.limit_s) == [PREEMPTED, PREEMPTED], run.said()
    saved = [int(path.name) for path in (run.out / "checkpoints").iterdir()]
    assert saved == [steps_done(run.out)]  # not a step is lost
    assert f"goes on from step {saved[0]}" in run.said()


def test_a_process_that_hangs_is_named(together, hang_s):
    overrides = ("steps=5000", f"guard.timeout_s={hang_s}", "checkpoint.every=4000")
    run = together("run", *overrides, processes=2)
    run.start()
    run.until(run.out, 3, run.limit_s)
    time.sleep(3 * PULSE_S)  # so that its last pulse is from a step, not from compiling
    run.send(signal.SIGSTOP, 1)
    deadline = time.monotonic() + run.limit_s
    while run.running[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.running[0].poll() == LOST, run.said()
    assert "no sign of life from process 1" in run.said()
    assert "last seen at step" in run.said()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Membership("node1:1", 2, 2), "--process=2: 0 … 1 is allowed with --processes=2"),
        (Membership("node1", 2, 0), "--coordinator=node1: HOST:PORT"),
        (Membership("node1:99999", 2, 0), "--coordinator=node1:99999: HOST:PORT"),
        (Membership(None, 2, 0), "give all three"),
    ],
)
def test_a_place_that_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        join(given, {})


def test_a_process_that_never_comes_ends_the_others_in_one_line():
    place = f"127.0.0.1:{free_port()}"
    script = (
        "from teukenjax import processes\n"
        "processes.START_LIMIT_S = 2.0\n"
        f"processes.join(processes.Membership({place!r}, 2, 0), {{}})\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == LOST
    last = ended.stderr.splitlines()[-1]
    expected = f"coordinator={place} processes=2 process=0: not all came together within 2 s"
    assert last == f"stopped: {expected}"


def test_without_a_place_there_is_one_process():
    join(Membership(), {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"})  # of a shell in an allocation


@pytest.mark.parametrize(
    ("module", "message", "runtimes"),
    [
        ("jax.experimental.multihost_utils", "UNKNOWN: Gloo AllGather failed: reset by peer", True),
        ("orbax.checkpoint", "UNKNOWN: Error writing: No space left on device", False),
        ("jax.experimental.multihost_utils", "an argument is not an array", False),
    ],
)
def test_a_collective_that_fails_is_told_from_a_disk(module, message, runtimes):
    """In a save both are plain ValueErrors; the exit code says whether a restart helps."""
    scope = {"__name__": module}
    exec("def fail(message): raise ValueError(message)", scope)
    with pytest.raises(ValueError, match=message[:7]) as caught:
        scope["fail"](message)
    assert from_runtime(caught.value) is runtimes
