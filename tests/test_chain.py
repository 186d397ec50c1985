"""The whole chain through the installed command: prepare, train, kill, resume, use, export."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = 60
MODEL = [
    *("model.width=32", "model.layers=1", "model.heads=2", "model.kv_heads=1"),
    *("model.head_dim=16", "model.ffn=32", "model.context=32"),
]
COMMAND = [
    *("train", "configs/recipes/eu24-small.yaml", f"steps={STEPS}", "checkpoint.every=5"),
    *("batch.sequences=4", "evaluation.every=null", "evaluation.documents=1", *MODEL),
]


def start(*arguments, **options) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", "from teukenjax.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def call(*arguments) -> str:
    process = start(*arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "store"
    call("data", "prepare", "sample", "--train-tokenizer", 1000, "--holdout", 0.1, "--out", path)
    return path


def kill_after_a_checkpoint(process: subprocess.Popen, run: Path) -> int:
    """SIGKILL once some steps are saved and others are not; the last step saved."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        saved = [int(f.name) for f in (run / "checkpoints").glob("*") if f.name.isdigit()]
        if saved and max(saved) >= 10:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    return max(saved)


def curve(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["param_norm"]) for row in rows]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(store, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    call(*COMMAND, f"data.store={store}", f"out={straight}")
    process = start(*COMMAND, f"data.store={store}", f"out={killed}")
    kill_after_a_checkpoint(process, killed)
    output = call(*COMMAND, f"data.store={store}", f"out={killed}")
    assert f"resuming {killed} at step" in output
    assert curve(killed) == curve(straight)
    assert [step for step, *_ in curve(killed)] == list(range(1, STEPS + 1))

    table = call("eval", killed, "--data", "teukenjax/data/sample", "--json", tmp_path / "s.json")
    scores = json.loads((tmp_path / "s.json").read_text())["languages"]
    assert len(scores) == 24
    assert f"{scores['mt']['bits_per_byte']:.4f}" in table
    assert call("generate", killed, "--prompt", "Die Bahn", "--seed", 1).startswith("Die Bahn")
    one = killed / "checkpoints" / str(STEPS)
    call("export", one, tmp_path / "hf", "--dtype", "float32")
    names = {file.name for file in (tmp_path / "hf").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}

    largest = max((one / "state").rglob("*"), key=lambda file: file.stat().st_size)
    os.truncate(largest, 100)
    process = start("eval", killed, "--data", "teukenjax/data/sample")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert output.startswith(f"error: {one}: the checkpoint is damaged")
    assert output.count("\n") == 1
