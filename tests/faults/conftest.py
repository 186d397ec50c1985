"""Runs as processes of their own, which may be killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "faults"))

from together import Together

RECIPE = """
out: {out}
steps: 12
seed: 7
model: {{width: 16, layers: 1, heads: 2, kv_heads: 1, head_dim: 8, ffn: 32, context: 16}}
data: {{store: {store}}}
batch: {{sequences: 8, accumulation: 2}}
optimizer: {{name: adamw, learning_rate: 1.0e-3}}
compute: {{dtype: float32, head_chunk: 16, remat: none}}
checkpoint: {{every: 5}}
telemetry: {{every: null}}
"""


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    from teukenjax.data.prepare import SAMPLE, prepare

    out = tmp_path_factory.mktemp("faults") / "store"
    return prepare(SAMPLE / "en.txt", out, train_tokenizer=640, progress=False)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """What several processes compile, they compile once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def pace_s():
    """What starting Python with JAX takes here, beside whatever else the machine does."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import jax, orbax.checkpoint"], check=True)
    return time.monotonic() - start


@pytest.fixture(scope="session")
def hang_s(pace_s):
    """What no step of a healthy run takes: 10 s where nothing else runs (starting takes 2)."""
    return max(10.0, 5 * pace_s)


@pytest.fixture
def together(store, cache, tmp_path, monkeypatch, pace_s):
    """A function to runs of several processes: ``together("name", processes=2)``.

    ``limit_s`` of each is what no run of these tests takes, however busy the machine was.
    """
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    started = []

    def make(name: str, *overrides: str, processes: int, devices: int = 1, gloo: bool = True):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(RECIPE.format(out=tmp_path / name, store=store.path))
        arguments = [str(recipe), *overrides]
        folder = tmp_path / f"{name}-logs"
        run = Together(arguments, processes=processes, devices=devices, folder=folder, gloo=gloo)
        run.out, run.limit_s = tmp_path / name, max(240.0, 60 * pace_s)
        started.append(run)
        return run

    yield make
    for run in started:
        run.kill()
