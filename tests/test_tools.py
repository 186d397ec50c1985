"""What of the scripts in tools/ can be tried in seconds; the others measure."""

import runpy
import sys
from pathlib import Path

import jax
import pytest

TOOLS = Path(__file__).parent.parent / "tools"


def test_tutorial_learns(capsys):
    runpy.run_path(str(TOOLS / "scion_tutorial.py"), run_name="__main__")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert float(first.split()[-1]) > 3.5
    assert float(last.split()[-1]) < 1.0


def test_the_plain_loop_trains(capsys, tmp_path, monkeypatch):
    given = ["configs/quickstart.yaml", "steps=2", f"out={tmp_path}", "compute.xla_flags.no_flag=1"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *given[:-1]])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / "pretrain.py"), run_name="__main__")
    assert end.value.code == 0
    assert "step 2: loss 6." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *given])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / "pretrain.py"), run_name="__main__")
    assert end.value.code == 2
    assert "error: compute.xla_flags: no_flag=1: No such" in capsys.readouterr().err


def test_a_step_of_some_length_is_run(capsys, monkeypatch):
    given = ["model.vocab_size=2048", "compute.dtype=float32"]
    argv = ["longest_sequence.py", "configs/quickstart.yaml", "--run", "192", *given]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / "longest_sequence.py"), run_name="__main__")
    assert end.value.code == 0
    tokens = 2 * jax.device_count() * 192
    assert f"192 tokens: one step of {tokens:,} in" in capsys.readouterr().out


def test_the_longest_sequence_is_found_from_any_start():
    longest = runpy.run_path(str(TOOLS / "longest_sequence.py"))["longest"]
    for start in (1000, 4096, 5000):
        found = longest(lambda length: length <= 9000, start=start, step=4096)
        assert found <= 9000 < found + 4096
    assert longest(lambda length: False, start=4096, step=4096) == 0
