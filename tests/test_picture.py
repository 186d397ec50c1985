"""A picture and its numbers: what is written, and what a failure leaves."""

import csv

import pytest
from matplotlib.figure import Figure

from teukenjax.errors import UserError
from teukenjax.picture import Picture, save_figure, table_of

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


@pytest.mark.parametrize("name", ["a.png", "a.PDF", "a.svg"])
def test_a_figure_is_written_in_the_format_of_its_name(name, tmp_path):
    save_figure(Figure(), tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[name[2:].lower()]
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_figure_that_fails_half_way_leaves_no_file(tmp_path):
    broken = Figure()
    broken.text(0, 0, "$\\unknown$")
    with pytest.raises(ValueError, match="unknown"):
        save_figure(broken, tmp_path / "a.pdf")  # PDF is written as it is drawn
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.docx", "no picture ends in '.docx': allowed: .*\\.png"), ("a", "ends in ''"),
     ("none/a.png", "none/a.png.* cannot be written: No such file")],
)  # fmt: skip
def test_a_name_that_cannot_be_is_one_line(name, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        save_figure(Figure(), tmp_path / name)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
