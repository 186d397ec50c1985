"""The bench runs the real step, and leaves a row."""

import json

import pytest

from teukenjax.bench.report import row_of, show
from teukenjax.bench.results import append, check_can_append
from teukenjax.bench.step import measure
from teukenjax.errors import UserError


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from rich.console import Console

    from teukenjax.recipe import Recipe, validate

    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
    recipe = validate(
        Recipe,
        {
            "out": "unused",
            "steps": 9,
            "model": {"vocab_size": 500, "context": 32, **shape},
            "data": {},
            "batch": {"sequences": 16, "accumulation": 2},
            "optimizer": {"name": "adamw"},
            "telemetry": {"every": None},
        },
        "test",
    )
    return measure(recipe, Console(quiet=True), repeats=2, fake_data=True)


def test_a_row_holds_what_was_measured(measured, tmp_path):
    row = row_of(tmp_path / "recipe.yaml", *measured, fake_data=True)
    assert row["devices"] == 8
    assert row["tokens_per_step"] == 16 * 32
    assert row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
    assert row["mfu_causal"] is None  # a CPU has no peak in the catalogue
    assert 0 < row["loss"] < 10
    assert row["profile"]["share"]["products"] > 0
    assert row["profile"]["share"]["communication"] > 0
    assert row["profile"]["known_by_kernel_name_only"] == 0
    json.dumps(row)


def test_a_row_is_shown(measured, tmp_path, capsys):
    from rich.console import Console

    show(Console(width=200), row_of(tmp_path, *measured, fake_data=True))
    out = capsys.readouterr().out
    assert "n/a by 6N + 6·L·H·N·S" in out
    assert "peak measured n/a" in out


def test_graphs_that_hide_instructions_are_said(measured, tmp_path, capsys):
    from rich.console import Console

    row = row_of(tmp_path, *measured, fake_data=True)
    show(Console(width=200), row)
    assert "graphs" not in capsys.readouterr().out
    row["profile"]["known_by_kernel_name_only"] = 0.99
    show(Console(width=200), row)
    assert 'xla_gpu_enable_command_buffer=""' in capsys.readouterr().out


def test_rows_are_appended_and_a_torn_one_is_closed(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"cut')
    append(path, {"a": 2})
    assert path.read_text() == '{"a": 1}\n{"cut\n{"a": 2}\n'


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (check_can_append, lambda path: append(path, {})):
        with pytest.raises(UserError, match="file"):
            write(tmp_path / "file" / "rows.jsonl")
    path = tmp_path / "rows.jsonl"
    append(path, {"a": 1})
    check_can_append(path)
    assert path.read_text() == '{"a": 1}\n'
