"""Faults of the world around a run: a full disk, a dead data server, a network, a clock."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from campaign import is_saving
from curves import first_difference, steps_done
from served import served

from teukenjax.data.location import CACHE_BYTES
from teukenjax.data.writer import StoreWriter
from teukenjax.errors import LOST, PREEMPTED

pytestmark = pytest.mark.faults


def ended(run) -> list[int]:
    codes = run.wait(run.limit_s)
    assert codes, run.said()
    return codes


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_save(together, small_disk):
    straight = together("straight", processes=1, gloo=False)
    straight.start()
    assert ended(straight) == [0]
    run = together("full", f"out={small_disk / 'run'}", processes=1, gloo=False)
    ballast = small_disk / "ballast"
    run.start()
    run.until(small_disk / "run", 2, run.limit_s)
    with ballast.open("wb", buffering=0) as file:  # until nothing fits
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    assert ended(run) == [2], run.said()
    last = run.said().strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left" in last
    ballast.unlink()
    run.start()
    assert ended(run) == [0], run.said()
    assert first_difference(straight.out, small_disk / "run") is None


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: two hosts, as far as sockets can tell."""
    names, pid = ("tkx0", "tkx1"), os.getpid()
    names = tuple(f"{name}-{pid}" for name in names)
    ends = (f"va{pid % 99999}", f"vb{pid % 99999}")

    def ip(*words: str) -> int:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode

    if any(ip("netns", "add", name) for name in names):
        pytest.skip("may not make network namespaces here")
    ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for index, (name, end) in enumerate(zip(names, ends, strict=True)):
        ip("link", "set", end, "netns", name)
        ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", end)
        ip("-n", name, "link", "set", end, "up")
        ip("-n", name, "link", "set", "lo", "up")
        # gloo listens where the host's own name leads; ip shows this file as /etc/hosts inside.
        own = Path("/etc/netns") / name / "hosts"
        own.parent.mkdir(parents=True)
        own.write_text(f"127.0.0.1 localhost\n10.77.0.{index + 1} {socket.gethostname()}\n")
    yield names, lambda: ip("-n", names[1], "link", "set", ends[1], "down")
    for name in names:
        ip("netns", "del", name)
        shutil.rmtree(Path("/etc/netns") / name)


def test_two_hosts_train_and_lose_their_network(together, hosts, hang_s):
    limit = f"guard.timeout_s={hang_s}"
    names, cut = hosts
    prefixes = [["ip", "netns", "exec", name] for name in names]
    straight = together("straight", processes=1, devices=2)
    straight.start()
    assert ended(straight) == [0]
    run = together("run", limit, processes=2)
    run.start(prefixes, host="10.77.0.1")
    assert ended(run) == [0, 0], run.said()
    assert first_difference(straight.out, run.out) is None

    lost = together("lost", limit, "steps=5000", processes=2)
    lost.start(prefixes, host="10.77.0.1")
    lost.until(lost.out, 7, lost.limit_s)
    cut()
    codes = ended(lost)
    assert codes[0] == LOST, (codes, lost.said())
    assert codes[1] in (LOST, -signal.SIGABRT), (codes, lost.said(1))
    assert "no sign of life from process 1" in lost.said()
    lost.arguments.append("steps=12")
    lost.count, lost.devices = 1, 2
    lost.start()
    assert ended(lost) == [0], lost.said()
    assert first_difference(straight.out, lost.out) is None


@pytest.fixture(scope="session")
def large_store(store, tmp_path_factory):
    """Of noise; what a run has read of it does not fit into its cache."""
    tokens, rng = CACHE_BYTES // 4 * 5 // 4, np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("large") / "store", store.tokenizer()) as writer:
        for split, size in (("train", tokens), ("valid", 100)):
            ids = rng.integers(store.manifest.vocab_size, size=size, dtype=np.int32)
            writer.append(split, "en", ids=[ids], sizes=[size])
        return writer.finish()


def test_a_data_server_that_dies(together, large_store, hang_s):
    with served(large_store.path) as port:
        url = f"data.store=http://127.0.0.1:{port}"
        overrides = (url, "steps=100", f"guard.timeout_s={hang_s}")
        straight = together("straight", *overrides, processes=1, gloo=False)
        straight.start()
        assert ended(straight) == [0], straight.said()
        run = together("run", *overrides, processes=1, gloo=False)
        run.start()
        run.until(run.out, 7, run.limit_s)
    assert ended(run) == [LOST], run.said()
    last = run.said().splitlines()[-1]
    assert last.startswith("stopped: step ")
    assert f"waiting for data.store http://127.0.0.1:{port}" in last
    assert not is_saving(run.out)
    assert first_difference(straight.out, run.out, steps=steps_done(run.out)) is None
    with served(large_store.path, port):
        run.start()
        assert ended(run) == [0], run.said()
    assert "at step " in run.said()
    assert first_difference(straight.out, run.out) is None


SET = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) { return access(getenv("CLOCK_IS_SET"), F_OK) ? 0 : 86400; }
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += ahead();
  return r;
}
int gettimeofday(struct timeval *t, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Under what is started afterwards, the wall clock is a day ahead while this file exists.

    It is set forward only: the kernel, which is not deceived, wakes who waits for a time of day.
    """
    source, library, file = (tmp_path / name for name in ("set.c", "set.so", "is-set"))
    source.write_text(SET)
    if shutil.which("gcc") is None:
        pytest.skip("no compiler for the clock")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("CLOCK_IS_SET", str(file))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    script = (
        "import pathlib, sys, time; t = time.time(); pathlib.Path(sys.argv[1]).touch(); "
        "print(time.time() - t)"
    )
    found = subprocess.check_output([sys.executable, "-c", script, str(file)])
    assert float(found) > 86_000
    file.unlink()
    return file


def test_a_clock_that_is_set(together, clock, monkeypatch):
    """While it trains and saves; resumed a day later, it goes on."""
    run = together("run", "steps=5000", "checkpoint.every=2", processes=1, gloo=False)
    run.start()
    run.until(run.out, 5, run.limit_s)
    clock.touch()
    run.until(run.out, 15, run.limit_s)
    run.send(signal.SIGTERM, 0)
    assert ended(run) == [PREEMPTED], run.said()
    done = steps_done(run.out)
    run.start()
    run.until(run.out, done + 5, run.limit_s)
    run.send(signal.SIGTERM, 0)
    assert ended(run) == [PREEMPTED], run.said()
    monkeypatch.delenv("LD_PRELOAD")
    straight = together("straight", processes=1, gloo=False)
    straight.start()
    assert ended(straight) == [0], straight.said()
    assert first_difference(straight.out, run.out, steps=12) is None
