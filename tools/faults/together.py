"""A training run of several processes on this machine, to be killed, stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from curves import steps_done


class Together:
    """`teukenjax train RECIPE ...` as one or several processes, each with some fake devices."""

    def __init__(
        self, arguments: Sequence[str], *, processes: int, devices: int, folder: Path, gloo=True
    ):
        """Args: of the command; how many; CPU devices of each; for logs; see ``start``."""
        self.arguments, self.count, self.devices = list(arguments), processes, devices
        self.folder, self.gloo = folder, gloo
        self.running: list[subprocess.Popen] = []
        self.starts = 0
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, prefixes: Sequence[Sequence[str]] = (), host: str = "127.0.0.1") -> None:
        """Starts all; ``prefixes`` come before the commands, as ``ip netns exec NAME`` does.

        One process is started as one of one, unless ``gloo`` is false: XLA's own collectives
        inside a process add up three devices or more in another order than gloo's do.
        """
        coordinator, self.starts = f"{host}:{free_port()}", self.starts + 1
        for index in range(self.count):
            command = [*(prefixes[index] if prefixes else ()), sys.executable, "-m", "teukenjax"]
            command += ["train", *self.arguments]
            if self.gloo:
                command += ["--coordinator", coordinator, "--processes", str(self.count)]
                command += ["--process", str(index)]
            with self.log(index).open("ab") as log:
                self.running.append(
                    subprocess.Popen(command, env=self.environment(), stdout=log, stderr=log)
                )

    def environment(self) -> dict[str, str]:
        """Of each process: fake CPU devices, and one cache of what was compiled."""
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices}",
        }

    def log(self, index: int) -> Path:
        """What process ``index`` says, over all starts."""
        return self.folder / f"process-{index}.log"

    def wait(self, timeout_s: float) -> list[int]:
        """The exit codes; whoever lives longer than that is killed."""
        until = time.monotonic() + timeout_s
        try:
            return [p.wait(max(until - time.monotonic(), 0.1)) for p in self.running]
        finally:
            self.kill()

    def until(self, out: Path, steps: int, timeout_s: float) -> None:
        """Waits until the run in ``out`` has done so many steps, with none of them ended."""
        end = time.monotonic() + timeout_s
        while steps_done(out) < steps:
            assert time.monotonic() < end, self.said()
            assert all(process.poll() is None for process in self.running), self.said()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to all, and none is left."""
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait()
        self.running = []

    def send(self, number: signal.Signals, index: int) -> None:
        """A signal to one of them."""
        self.running[index].send_signal(number)

    def said(self, index: int = 0) -> str:
        """The log of a process."""
        return self.log(index).read_text(errors="replace")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
