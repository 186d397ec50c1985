"""Rows of the data sets as questions, and what is said of those that are not there."""

import logging

import local_tasks
import pytest

from teukenjax.data.chat.template import system_sentences
from teukenjax.errors import UserError
from teukenjax.evaluate.questions import KINDS, WORDS
from teukenjax.evaluate.suite import Questions, load_suite


def test_every_language_has_its_words():
    assert WORDS.keys() == system_sentences().keys()


def test_arc_takes_both_spellings_of_choices():
    row = {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    question = {"prompt": "Frage: Q\nAntwort:", "choices": ["x", "y"], "gold": 1}
    assert KINDS["arc"](row, "de") == question
    assert KINDS["arc"](row | {"choices": ["x", "y"], "answerKey": "B"}, "de") == question


def test_mmlu_asks_for_a_letter():
    row = {"question": " Q ", "choices": ["x", "y", "z"], "answer": 2}
    asked = KINDS["mmlu"](row, "fr")
    assert asked["prompt"] == "Question: Q\nA. x\nB. y\nC. z\nRéponse:"
    assert asked["choices"][asked["gold"]] == "C"


def test_hellaswag_loses_the_marks_of_headings():
    row = {
        "activity_label": "How to", "ctx_a": "One [header] thing.", "ctx_b": "then",
        "endings": ["a [title] b", "[step] c"], "label": "1",
    }  # fmt: skip
    asked = KINDS["hellaswag"](row, "en")
    assert asked == {"prompt": "How to: One thing. Then", "choices": ["a. b", " c"], "gold": 1}


def test_truthfulqa_knows_which_answers_are_true():
    mc1 = {"question": "Q", "mc1_targets": {"choices": ["x", "y"], "labels": [0, 1]}}
    assert KINDS["truthfulqa_mc1"](mc1, "en")["gold"] == 1
    mc2 = {"question": "Q", "mc2_targets": {"choices": ["x", "y", "z"], "labels": [1, 0, 1]}}
    assert KINDS["truthfulqa_mc2"](mc2, "en")["labels"] == [1, 0, 1]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_right_answer_is_one_of_the_choices(label):
    hellaswag = {"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["x", "y"]}
    with pytest.raises(ValueError, match=f"the right answer is number {label} of 2"):
        KINDS["hellaswag"](hellaswag | {"label": str(label)}, "en")
    with pytest.raises(ValueError, match=f"number {label} of 2"):
        KINDS["mmlu"]({"question": "Q", "choices": ["x", "y"], "answer": label}, "en")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("gsm8k", {"question": "Q", "answer": "42"}, "the answer has no ####"),
        ("gsm8k", {"question": None, "answer": "#### 42"}, "the question is no text"),
        (
            "truthfulqa_mc2",
            {"mc2_targets": {"choices": ["x", "y"], "labels": [1]}},
            "1 labels of 2",
        ),
        ("truthfulqa_mc2", {"mc2_targets": {"choices": ["x"], "labels": [0]}}, "one of them 1"),
        (
            "truthfulqa_mc2",
            {"mc2_targets": {"choices": ["x"], "labels": ["1"]}},
            "0 and 1 expected",
        ),
        ("truthfulqa_mc1", {"mc1_targets": {"choices": ["x"], "labels": [1, 0]}}, "2 labels of 1"),
        ("mmlu", {"choices": "xyz", "answer": 0}, "choices are no list but str"),
        ("arc", {"choices": "xyz", "answerKey": "A"}, "choices are no list but str"),
        (
            "arc",
            {"choices": {"text": ["x"], "label": ["A", "B"]}, "answerKey": "A"},
            "2 labels of 1",
        ),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused(kind, row, message):
    with pytest.raises((ValueError, TypeError), match=message):
        KINDS[kind]({"question": "Q"} | row, "en")


def test_a_missing_file_and_a_broken_row_are_named(tmp_path):
    local_tasks.write(tmp_path, questions=2)
    ask = lambda: Questions(local_tasks.suite(), tmp_path)("arc", "de", "test")  # noqa: E731
    assert len(ask()) == 2
    file = tmp_path / "arc" / "de.test.jsonl"
    file.write_text('{"question": "Q", "choices": ["a"], "answerKey": "A"}\n{"question": "Q"}\n')
    with pytest.raises(UserError, match=r"de.test.jsonl:2: is no row of arc: KeyError: 'choices'"):
        ask()
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no questions"):
        ask()
    file.unlink()
    with pytest.raises(UserError, match=r"no such file: the task 'arc' in 'de' needs it"):
        ask()


def test_everything_that_a_suite_needs_is_read_before_it_is_asked(tmp_path):
    local_tasks.write(tmp_path, questions=2)
    questions = Questions(local_tasks.suite(), tmp_path)
    questions.load()
    (tmp_path / "gsm8k" / "mt.train.jsonl").unlink()  # shows no examples
    Questions(local_tasks.suite(), tmp_path).load()
    file = tmp_path / "mmlu" / "mt.train.jsonl"  # shows two
    file.unlink()
    with pytest.raises(UserError, match=r"mt.train.jsonl: no such file: the task 'mmlu' in 'mt'"):
        Questions(local_tasks.suite(), tmp_path).load()
    assert len(questions("mmlu", "mt", "train")) == 2  # what was read is kept


def test_a_task_without_a_data_set_asks_for_a_folder():
    with pytest.raises(UserError, match="has no data set: give --task-data"):
        Questions(local_tasks.suite())("arc", "de", "test")


def test_too_few_examples_are_said_with_the_file_and_both_numbers(tmp_path):
    local_tasks.write(tmp_path, questions=1)
    with pytest.raises(UserError) as error:
        Questions(local_tasks.suite(), tmp_path).load()
    file = tmp_path / "mmlu" / "de.train.jsonl"
    can = "1 of 1 rows can be examples for a question"
    assert str(error.value) == f"{file}: {can}: tasks.mmlu.shots=2 needs 2"


def test_of_the_split_that_is_asked_the_question_itself_is_no_example(tmp_path):
    local_tasks.write(tmp_path, questions=3)
    ask = Questions(of_one_split(shots=2), tmp_path)
    assert ask.examples("arc", "de") == ask("arc", "de", "test")
    with pytest.raises(UserError, match=r"2 of 3 rows can be .*shots=3 needs 3"):
        Questions(of_one_split(shots=3), tmp_path).load()
    file = tmp_path / "arc" / "de.test.jsonl"
    first, second, _ = file.read_text().splitlines(keepends=True)
    file.write_text(first + second + first)
    with pytest.raises(UserError, match=r"1 of 3 rows can be .*shots=2 needs 2"):
        Questions(of_one_split(shots=2), tmp_path).load()


def test_questions_that_are_asked_are_no_examples_of_another_split(tmp_path):
    local_tasks.write(tmp_path, questions=3)
    asked, shown = (tmp_path / "arc" / f"de.{split}.jsonl" for split in ("test", "train"))
    shown.write_text(shown.read_text() + asked.read_text().splitlines()[1] + "\n")
    ask = Questions(local_tasks.suite(languages=("de",)), tmp_path)
    assert len(ask("arc", "de", "train")) == 4
    assert ask.examples("arc", "de") == ask("arc", "de", "train")[:3]


def of_one_split(*, shots: int):
    """ARC whose examples come from the questions that are asked."""
    task = {"kind": "arc", "split": "test", "shots": shots, "metric": "acc"}
    return local_tasks.suite(languages=("de",), tasks={"arc": task})


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")
    hub, warned = logging.getLogger("huggingface_hub"), []
    hub.setLevel(logging.WARNING)  # as it is when nobody has asked yet

    def unreachable(*_, **__):
        warned.append(hub.isEnabledFor(logging.WARNING))
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"challenge_DE cannot be loaded: no network: give"
    ) as error:
        Questions(load_suite("eu21"))("arc", "de", "test")
    assert "\n" not in str(error.value)
    assert warned == [False]
