"""The ablation: cases that run beside what was predicted for them, and the files it writes."""

import csv

import pytest

from teukenjax.errors import UserError
from teukenjax.planner.ablation import Case, ablate, attempt, recipe_of, table, write
from teukenjax.recipe import to_yaml
from teukenjax.sharding import STRATEGIES


@pytest.fixture
def case(small, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(small(compute={"dtype": "float32", "head_chunk": 16})))

    def make(strategy: str, remat: str = "full", micro_batch: int = 1) -> Case:
        return Case(path, (), strategy, remat, micro_batch, repeats=1)

    return make


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_gets_a_mesh_of_all_devices_and_two_micro_batches(case, strategy):
    recipe = recipe_of(case(strategy, micro_batch=3), 8)
    shards = 4 if strategy == "fsdp_tp" else 8
    assert recipe.batch.sequences == 2 * 3 * shards
    assert recipe.batch.accumulation == 2
    assert recipe.sharding.strategy == strategy


def test_a_case_is_predicted_compiled_and_run(case, tmp_path):
    row = attempt(case("hsdp"))
    assert row["failed"] == ""
    assert float(row["measured_s"]) > 0
    assert float(row["compiled_gib"]) > 0
    # fp32 products gather four bytes where the model counts two; the rest is alike.
    assert 0.4 < float(row["predicted_sent_gb"]) / float(row["compiled_sent_gb"]) < 1.1
    write([row], tmp_path / "out")
    (read,) = csv.DictReader((tmp_path / "out" / "ablation.csv").read_text().splitlines())
    assert read == row
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000
    assert table([row]).row_count == 1


def test_a_case_that_cannot_run_says_why(case, small, tmp_path):
    path = tmp_path / "odd.yaml"
    values = {**small().model.model_dump(mode="json"), "width": 36}
    path.write_text(to_yaml(small(model=values)))
    row = attempt(Case(path, (), "fsdp", "full", 1, repeats=1))
    assert "does not divide" in row["failed"]


def test_a_case_whose_process_ends_does_not_end_the_others(case, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")  # XLA aborts the process that reads it
    asked = {"strategies": ("ddp", "fsdp"), "micro_batches": (1,), "remats": ("full",)}
    rows = list(ablate(case("ddp").recipe, (), **asked, repeats=1))
    assert [row["strategy"] for row in rows] == ["ddp", "fsdp"]
    assert {row["failed"] for row in rows} == {"its process was killed, or aborted"}


def test_a_file_in_the_place_of_the_results_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out: cannot be written: File exists"):
        write([], tmp_path / "out")
