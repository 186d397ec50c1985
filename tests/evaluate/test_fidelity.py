"""Which language an answer is in."""

import importlib.util

import pytest
from rich.console import Console

from teukenjax.data.chat.sources import read_sources
from teukenjax.data.prepare import SAMPLE
from teukenjax.errors import UserError
from teukenjax.evaluate.answers import Answer
from teukenjax.evaluate.command import faithful
from teukenjax.evaluate.fidelity import MALTESE, detector, fidelity, total
from teukenjax.recipe import ChatSource, SftConfig

needs_lingua = pytest.mark.skipif(
    importlib.util.find_spec("lingua") is None, reason="needs the extra eval"
)


@needs_lingua
def test_every_paragraph_of_the_sample_is_in_its_language():
    detect = detector()
    for file in sorted(SAMPLE.glob("*.txt")):
        paragraphs = file.read_text(encoding="utf-8").split("\n\n")
        found = [detect(text) for text in paragraphs if len(text) > 80]
        assert found
        assert set(found) == {file.stem}


def test_maltese_is_told_without_the_detector_and_nothing_else_is_taken_for_it():
    found = read_sources(SftConfig(sources=(ChatSource(data="toy"),))).train
    answers = {
        name: [" ".join(answer for _, answer in row.conversation.turns) for row in rows]
        for name, rows in found.items()
    }
    told = {name: sum(bool(MALTESE.search(x)) for x in some) for name, some in answers.items()}
    assert told.pop("mt") >= 14  # of 16
    assert not any(told.values())


@needs_lingua
def test_fidelity_counts_languages_and_ends():
    answers = [
        Answer("de", "?", "Das ist eine Antwort auf deine Frage.", stopped=True),
        Answer("de", "?", "This is an answer to your question.", stopped=False),
        Answer("en", "?", "This is an answer to your question.", stopped=True),
        Answer("en", "?", "", stopped=True),
    ]
    found = fidelity(answers)
    assert found == {"de": (2, 1, 1), "en": (2, 1, 2)}
    assert total(found) == (4, 2, 3)
    assert total(found).share == 0.5


@needs_lingua
def test_questions_that_are_not_there_are_named_before_the_run_is_read(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for name, told in (("nope", "nope: no such file"), ("empty.jsonl", "holds no conversation")):
        with pytest.raises(UserError, match=told) as error:
            faithful(Console(), tmp_path / "run", str(tmp_path / name), out=None, batch_tokens=64)
        assert str(tmp_path / name) in str(error.value)
        assert "sft" not in str(error.value)
