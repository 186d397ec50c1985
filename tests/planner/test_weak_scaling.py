"""Rows of weak scaling: what is predicted, what is run, and what is said where it cannot."""

import dataclasses
import subprocess
from pathlib import Path

import jax
import pytest

from teukenjax.hardware import named
from teukenjax.planner.weak_scaling import COLUMNS, Series, figure, kept, rows, table

TEUKEN = Series(
    Path("configs/recipes/teuken-7b.yaml"),
    ("model.vocab_size=250680", "batch.accumulation=16", "compute.remat=save_projections"),
    sequences=32,
    hw=named("h100-sxm"),
    repeats=None,
    compiled=False,
)
STRATEGIES = ("fsdp", "hsdp", "fsdp_tp", "ddp")


def test_each_size_has_the_strategies_that_it_can_have():
    found = list(rows(TEUKEN, (1, 2, 8), STRATEGIES))
    assert [(row["devices"], row["strategy"]) for row in found] == [
        ("1", "fsdp"),
        *(("2", name) for name in ("fsdp", "ddp")),
        *(("8", name) for name in STRATEGIES),
    ]
    tokens = {row["strategy"]: float(row["predicted_tokens_per_s"]) for row in found[-4:]}
    assert 5_000 < min(tokens.values()) < max(tokens.values()) < 15_000
    # A replica's state is that of half the GPUs, a whole state is more than any part of it.
    memory = {row["strategy"]: float(row["predicted_gib"]) for row in found[-4:]}
    assert memory["fsdp"] < memory["hsdp"] < memory["ddp"]
    assert found[-1]["failed"] == "predicted not to fit"
    assert figure(found).axes
    assert table(found).row_count == len(found)


def test_a_batch_that_does_not_divide_is_said_in_the_row():
    (row,) = rows(dataclasses.replace(TEUKEN, sequences=24), (1,), ("fsdp",))
    assert "sequences=24 must be a multiple of accumulation=16" in row["failed"]


def test_what_the_compiler_refuses_is_said_in_the_row(monkeypatch):
    def refused(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    monkeypatch.setattr("teukenjax.planner.weak_scaling.compile_step", refused)
    found = list(rows(dataclasses.replace(TEUKEN, compiled=True), (1, 2), ("fsdp",)))
    assert [row["failed"] for row in found] == ["RESOURCE_EXHAUSTED: out of memory"] * 2


@pytest.mark.parametrize(
    ("said", "failed"), [("a\nlast\n\n", "last"), ("", "ended with 9 and said nothing")]
)
def test_a_run_that_fails_leaves_its_last_line(monkeypatch, said, failed):
    def killed(*_, **__):
        raise subprocess.CalledProcessError(9, "bench", output="", stderr=said)

    monkeypatch.setattr("teukenjax.planner.weak_scaling.step_apart", killed)
    (row,) = rows(dataclasses.replace(TEUKEN, repeats=1), (8,), ("fsdp",))
    assert row["failed"] == failed


def test_a_run_fills_the_columns_of_what_was_measured(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    tiny = ("model.vocab_size=512", "model.layers=1", "compute.dtype=float32")
    series = dataclasses.replace(
        TEUKEN, recipe=Path("configs/quickstart.yaml"), overrides=tiny, sequences=4, repeats=1
    )
    (row,) = rows(series, (2,), ("fsdp",))
    assert not row["failed"]
    assert float(row["step_s_min"]) <= float(row["step_s"]) <= float(row["step_s_max"])
    assert float(row["tokens_per_s"]) > 0
    assert float(row["exposed"]) >= 0
    assert set(row) == set(COLUMNS)
    assert kept(row, [row]) == "100.0%"


@pytest.mark.parametrize("tokens", ["", "900.0"])
def test_kept_speed_is_relative_to_two_gpus_under_fsdp(tokens):
    two = dict.fromkeys(COLUMNS, "") | {
        "devices": "2",
        "strategy": "fsdp",
        "tokens_per_s": "1000.0",
    }
    eight = two | {"devices": "8", "strategy": "hsdp", "tokens_per_s": tokens}
    assert kept(eight, [two, eight]) == ("90.0%" if tokens else "")
