"""The scoreboard: errors on published measurements, of fits that did not see them."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.planner.command import predict_rows
from teukenjax.planner.fit import FITTED, constant_mfu, fit
from teukenjax.planner.own import own_errors, own_runs
from teukenjax.planner.software import software
from teukenjax.planner.table import PUBLISHED, errors, mape, predict_table, read_rows, understand

ROW = {
    "gpu": "H100-80-SXM", "node_interconnect_gbit_s": "3200", "model": "7b", "seq_len": "2048",
    "gpus": "8", "micro_batch": "6", "grad_accum": "1", "sharding": "F",
    "activation_checkpointing": "F",
}  # fmt: skip

DIMENSIONS = {"width": "4096", "layers": "32", "heads": "32", "ffn": "16384", "vocab": "50368"}

# Where the fit begins has nothing of its result.
START = software("torch-fsdp").model_copy(
    update={"matmul": 0.7, "attention_flops_per_cycle": 1000.0, "widths": 30.0, "exposed": 0.5}
)


@pytest.fixture(scope="module")
def published():
    return read_rows(PUBLISHED / "mosaic_h100.csv")


def test_three_models_left_out_together_beat_constant_mfu_three_times(published):
    # Leaving out one at a time takes a minute under type checks: tools/planner_scoreboard.py.
    assert mape(constant_mfu(published)) == pytest.approx(0.115, abs=5e-4)
    runs = [understand(row) for row in published]
    unseen = [row["model"] in ("760m", "13b", "70b") for row in published]
    fitted = fit([run for run, out in zip(runs, unseen, strict=True) if not out], START)
    held = [run for run, out in zip(runs, unseen, strict=True) if out]
    assert mape(errors(held, fitted)) < 0.038


def test_the_committed_shares_are_those_of_the_fit(published):
    committed = software("torch-fsdp")
    fitted = fit([understand(row) for row in published], START)
    for key in FITTED:
        assert getattr(committed, key) == pytest.approx(getattr(fitted, key), rel=0.01)


def test_every_published_run_is_predicted_to_fit(published):
    assert all(understand(row).predict().fits[0] for row in published)


def test_runs_are_predicted_not_to_fit_where_their_authors_chose_less():
    # 70B: 16 bytes for each parameter are 130 GB on eight devices.
    assert not understand(ROW | {"model": "70b", "micro_batch": "1"}).predict().fits[0]
    assert not understand(ROW | {"micro_batch": "32"}).predict().fits[0]


def test_other_gpus_and_networks_are_predicted_without_a_fit():
    rows = read_rows(PUBLISHED / "others.csv")
    a100 = next(row for row in rows if row["gpu"] == "A100-80-SXM" and row["model"] == "70b")
    ibm = next(row for row in rows if row["source"].startswith("IBM"))
    assert abs(understand(ibm).error()) < 0.06
    assert abs(understand(a100).error()) < 0.06


def test_our_own_steps_are_predicted_to_a_few_percent():
    # The last two are of two H200, whose profile is of one: their NVLink is the datasheet's.
    assert np.abs(own_errors("step_s")[:-2]).max() < 0.03
    assert np.abs(own_errors("step_s")[-2:]).max() < 0.06
    assert np.abs(own_errors("peak_gib")).max() < 0.005
    # These ran cuDNN's forward twice and had gradients of their own, which the model does not; or
    # sent more than it does.
    assert np.abs(own_errors("step_s", before=True)).max() < 0.15


def test_what_did_not_fit_is_predicted_not_to():
    verdicts = {bool(run.row["step_s"]): run.prediction.fits[0] for run in own_runs()}
    assert verdicts == {True: True, False: False}


def test_a_table_comes_back_with_four_more_columns(tmp_path):
    out = tmp_path / "predicted.csv"
    predict_table(PUBLISHED / "mosaic_h100.csv", out)
    rows = read_rows(out)
    assert len(rows) == 52
    assert list(rows[0])[-4:] == [
        "predicted_tokens_per_s_per_gpu", "predicted_memory_gib", "fits", "binding_roof",
    ]  # fmt: skip
    assert rows[0]["model"] == "70b"


def test_a_model_may_be_given_by_its_dimensions():
    by_name = understand(ROW).predict()
    given = understand(ROW | DIMENSIONS | {"model": "mine", "gated": "F"}).predict()
    assert given.tokens_per_s[0] == pytest.approx(by_name.tokens_per_s[0], rel=1e-2)


def test_a_jax_source_is_predicted_with_our_shares():
    ours = understand(ROW | {"source": "MaxText configs/gpu", "sharding": "fsdp"})
    assert ours.setting.software == software("teukenjax")
    theirs = understand(ROW | {"software": "torch-fsdp", "source": "jax"})
    assert theirs.setting.software == software("torch-fsdp")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "V100"}, "hardware 'V100' is not known"),
        ({"gpu": ""}, "column 'gpu' is missing or empty"),
        ({"seq_len": "long"}, "seq_len=long: expected a whole number"),
        ({"seq_len": "nan"}, "seq_len=nan: expected a whole number"),
        ({"gpus": "inf"}, "gpus=inf: expected a whole number"),
        ({"tokens_per_s_per_gpu": "0"}, "tokens_per_s_per_gpu=0: expected a number above 0"),
        ({"micro_batch": "0"}, "micro_batch=0: expected a whole number"),
        ({"sharding": "Q"}, "sharding=Q: allowed"),
        ({"model": "8b"}, "model '8b' is not known"),
        (DIMENSIONS | {"gated": "yes"}, "gated=yes: allowed: T, F"),
        ({"sharding": "H", "gpus": "25"}, "gpus=25: hsdp is over whole nodes: expected a mul"),
        ({"software": "megatron"}, "software 'megatron' is not known"),
    ],
)
def test_a_cell_that_is_not_understood_is_named(change, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        understand(ROW | change).predict()


def test_a_bad_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows([ROW, ROW | {"gpus": "-1"}])
    with pytest.raises(UserError, match=r"rows.csv: row 2: gpus=-1"):
        predict_table(path, tmp_path / "out.csv")


def test_a_table_may_come_from_a_spreadsheet_and_leave_out_its_last_cells(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffgpu,model,software\nH100,7b\n", encoding="utf-8")
    assert read_rows(path) == [{"gpu": "H100", "model": "7b", "software": ""}]


def test_an_empty_flag_is_the_default():
    empty = understand(ROW | DIMENSIONS | {"gated": ""})
    assert empty.setting.shape == understand(ROW | DIMENSIONS).setting.shape
    assert empty.setting.shape.gated


def test_a_cell_beyond_the_last_column_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("gpu,model\nH100,7b\nH100,7b,8\n")
    with pytest.raises(UserError, match=r"rows.csv: row 2: '8' is beyond the last column"):
        read_rows(path)


def test_a_table_of_measured_runs_says_how_far_off_it_is(tmp_path):
    screen = io.StringIO()
    out = tmp_path / "out.csv"
    predict_rows(Console(file=screen, width=200), PUBLISHED / "mosaic_h100.csv", out)
    assert "mean absolute error of tokens/s on 52 measured rows: 2.4%" in screen.getvalue()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW)
    out = path / "predicted.csv"  # inside of a file
    with pytest.raises(UserError, match=r"predicted\.csv: cannot be written"):
        predict_table(path, out)
