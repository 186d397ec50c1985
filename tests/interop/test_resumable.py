"""Folders that are made whole or not at all, and who may go on with a begun one."""

from pathlib import Path

import pytest

from teukenjax.errors import UserError
from teukenjax.interop import resumable


def test_work_without_options_is_not_begun_anew_while_another_is_at_it(tmp_path):
    with resumable.building(tmp_path / "out", None) as work:
        (work.content / "weights").write_text("half")
        with pytest.raises(UserError, match="out: is being written by another process"):
            resumable.building(tmp_path / "out", None).__enter__()
        assert (work.content / "weights").read_text() == "half"
    assert (tmp_path / "out" / "weights").exists()


def test_what_was_begun_otherwise_or_is_damaged_is_said(tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    for begun, message in (("{}", "was begun with step=None, not 3: give"), ("{", "is damaged")):
        (partial / "begun.json").write_text(begun)
        with pytest.raises(UserError, match=message):
            resumable.building(tmp_path / "out", {"step": 3}).__enter__()


def test_a_directory_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"\.: give the directory by its name"):
        resumable.building(Path(), None).__enter__()
