"""Sweeps: what a row holds, what a kill leaves, and who takes which group."""

import itertools
import os
import signal
import subprocess
import sys
import time
import types

import jax
import pytest

from teukenjax.errors import UserError
from teukenjax.scaling import command, plots, results, training
from teukenjax.scaling.cluster import Request, submit
from teukenjax.scaling.spec import load_sweep
from teukenjax.scaling.sweep import claimed, work

VERB = [sys.executable, "-c", "from teukenjax.cli import main; main()", "sweep"]


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_there_is_a_row_for_every_run_and_horizon(swept):
    rows = results.read([swept])
    assert len(rows) == 2 * 3 * 2
    assert {row["tokens"] for row in rows} == {512, 1024}
    row = rows[0]
    assert row["step"] * row["batch"] * row["context"] == row["tokens"]
    assert set(row["valid"]) <= {"de", "el", "en", "mt"}
    assert row["valid_loss"] == pytest.approx(sum(row["valid"].values()) / len(row["valid"]))
    assert len(row["norms"]["layers.mlp.down/rms_to_rms"]) == 2  # by layer
    # An update adds η at most, and the first eight steps add most of that.
    for row in rows:
        bound = 1 + 2.0 ** row["log2_learning_rate"] * row["step"]
        assert 0.5 * bound < row["norm_output"] <= bound * 1.0001
    assert len({row["recipe_hash"] for row in rows}) == 6
    assert rows == results.read([swept / "results.parquet"])
    traces = results.read([swept], "traces")
    assert {row["step"] for row in traces} == {1, 2, 3, 4, 6, 8}
    assert not list((swept / "unfinished").iterdir())


def test_a_finished_sweep_has_nothing_to_do(swept, store, console, monkeypatch):
    monkeypatch.setattr("teukenjax.scaling.sweep.GroupTraining", None)
    path = swept.parent / "sweep.yaml"
    work(load_sweep(path), swept, console)


def with_optimum(row: dict, extra: int) -> dict:
    """Eight steps are no scan with a lowest loss: one is given to them."""
    rate = row["log2_learning_rate"] + extra / 2
    loss = 5 + 0.1 * (rate + 2) ** 2
    changes = {"run": f"{row['run']}/{extra}", "log2_learning_rate": rate, "loss": loss}
    return row | changes | {"loss_last": loss, "norm_output": row["norm_output"] * (1 + extra / 2)}


def test_pictures_have_their_numbers_beside_them(swept, tmp_path, console):
    rows, traces = results.read([swept]), results.read([swept], "traces")
    made = [with_optimum(row, extra) for row in rows for extra in (0, 1)]
    results.write(made, results.ROWS, tmp_path / "made.parquet")
    results.write(traces, results.TRACES, tmp_path / "made-traces.parquet")
    command.plot(console, [tmp_path / "made.parquet"], tmp_path / "out", role="output")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"loss-norm", "optimal-norm", "optimal-rate", "trajectories", "rate-transfer"}
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000
        assert len((tmp_path / "out" / f"{name}.csv").read_text().splitlines()) > 2


def test_the_map_of_roles_has_the_mean_over_seeds_of_one_setup(swept):
    first, *_ = results.read([swept])
    one = first | {"log2_learning_rate": -2.0}
    rows = [
        one | {"multiplier_hidden": factor, "seed": seed, "loss": 4 * factor + seed}
        for factor in (0.5, 1.0)
        for seed in (1, 2)
    ]
    rows += [one | {"optimizer": "adamw", "loss": 99.0}]
    picture = plots.role_map(rows)
    losses = {(row[1], row[4]) for row in picture.table[1:]}
    assert losses == {(0.5, 3.5), (1.0, 5.5)}


def test_a_killed_sweep_goes_on_and_ends_as_if_it_never_was(make_sweep, tmp_path, console):
    path = make_sweep(tokens="[9, 13]")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*VERB, path, "--out", killed], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(killed.glob("unfinished/*/checkpoints/4/about")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("rows/*.parquet"))
    for folder in (killed, whole):
        work(load_sweep(path), folder, console)
    assert without_clock(results.read([killed])) == without_clock(results.read([whole]))
    assert results.read([killed], "traces") == results.read([whole], "traces")


def test_a_checkpoint_knows_the_seconds_since_the_last_observation(
    make_sweep, tmp_path, console, monkeypatch
):
    ticks, saved = itertools.count(), {}
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(training, "CHUNK", 4)  # so that some end between observations, as at 15
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)

    def save(_, step, state, about):
        del state
        saved[step] = about["seconds"]

    monkeypatch.setattr(training.Checkpoints, "save", save)
    work(load_sweep(make_sweep(tokens="[11]")), tmp_path / "out", console)
    assert list(saved) == [1, 2, 3, 4, 6, 8, 11, 15, 16]
    assert saved[15] > saved[11]


def test_a_diverged_run_is_kept_as_a_row(make_sweep, tmp_path, console):
    path = make_sweep(tokens="[9]")
    work(load_sweep(path, ["optimizer.multiplier.hidden=1e38"]), tmp_path / "out", console)
    rows = results.read([tmp_path / "out"])
    assert [row["diverged"] for row in rows] == [True] * 3
    with pytest.raises(UserError, match="too few points to fit: 3 rows"):
        command.fit(console, [tmp_path / "out"], out=None, role="output")


def test_a_claim_is_held_by_one(tmp_path):
    with claimed(tmp_path / "claims" / "g") as first, claimed(tmp_path / "claims" / "g") as second:
        assert (first, second) == (True, False)
    with claimed(tmp_path / "claims" / "g") as again:
        assert again


def test_a_claimed_group_is_left_to_its_process(make_sweep, tmp_path, console):
    path = make_sweep()
    (group,) = load_sweep(path)
    from teukenjax.data.prepare import open_store
    from teukenjax.scaling.sweep import resolved

    group = resolved(group, open_store(group.recipe, console))
    with claimed(tmp_path / "claims" / group.name):
        work([group], tmp_path, console)
    assert not (tmp_path / "rows").exists()


def test_one_process_at_a_time_merges_the_rows(make_sweep, tmp_path, console, monkeypatch):
    groups = load_sweep(make_sweep(tokens="[9]"))
    merge, merged = results.merge, []

    def watched(paths, out):
        with claimed(tmp_path / "claims" / "results.parquet") as mine:
            merged.append(mine)
        merge(paths, out)

    monkeypatch.setattr(results, "merge", watched)
    work(groups, tmp_path, console)
    assert merged == [False]  # nobody else could have


def test_a_group_is_compiled_with_its_flags(make_sweep, tmp_path, console):
    request = Request(make_sweep(), ("compute.xla_flags.xla_no_flag=1",), (), tmp_path)
    with pytest.raises(UserError, match=r"^compute\.xla_flags: xla_no_flag=1: No such"):
        request.work(console)
    (group,) = load_sweep(make_sweep(), ["compute.xla_flags.xla_no_flag=1"])
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_flag"):
        work([group], tmp_path / "out", console)


def test_jobs_of_a_cluster_share_a_sweep(make_sweep, tmp_path, console):
    path = make_sweep(models="{a: {}, b: {model.width: 24}}", tokens="[9]")
    request = Request(path, (), (), tmp_path / "out")
    jobs = submit(request, console, jobs=2, cluster="local", given=["timeout_min=5"])
    for job in jobs:
        job.result()
    assert {row["model"] for row in results.read([tmp_path / "out"])} == {"a", "b"}
    # Of two jobs at one time, none trains what the other has.
    logs = "".join(job.stdout() or "" for job in jobs)
    assert logs.count("compiling") == 2


def test_what_a_cluster_does_not_know_is_one_line(make_sweep, tmp_path, console):
    request = Request(make_sweep(), (), (), tmp_path / "out")
    for cluster, given, expected in (
        ("slrum", [], "did you mean 'slurm'"),
        ("local", ["nonsense"], "expected key=value"),
        ("local", ["slurm_partitoin=x"], "partitoin"),
    ):
        with pytest.raises(UserError, match=r"^[^\n]*$") as error:
            submit(request, console, jobs=1, cluster=cluster, given=given)
        assert expected in str(error.value)
