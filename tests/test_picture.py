"""A picture and its numbers: what is written, and what a failure leaves."""

import csv

import pytest
from matplotlib.figure import Figure

from teukenjax.picture import Picture, table_of

ROWS = [{"name": "a, b", "loss": "1"}, {"name": "c", "failed": "no"}]


def test_rows_come_back_with_all_columns(tmp_path):
    written = Picture(Figure(), table_of(ROWS)).save(tmp_path / "made")
    assert written == [tmp_path / "made.png", tmp_path / "made.csv"]
    assert set(tmp_path.iterdir()) == set(written)
    read = list(csv.DictReader((tmp_path / "made.csv").read_text().splitlines()))
    assert read == [dict.fromkeys(("name", "loss", "failed"), "") | row for row in ROWS]


def test_a_figure_that_fails_leaves_the_earlier_files(tmp_path):
    files = Picture(Figure(), table_of(ROWS)).save(tmp_path / "made")
    before = [file.read_bytes() for file in files]
    broken = Figure()
    broken.text(0, 0, "$\\unknown$")
    with pytest.raises(ValueError, match="unknown"):
        Picture(broken, table_of(ROWS[:1])).save(tmp_path / "made")
    assert [file.read_bytes() for file in files] == before
