"""Tables, pictures, published scores and the gap report."""

import json

import pytest

from teukenjax.errors import UserError
from teukenjax.evaluate.figures import bars, heat_map
from teukenjax.evaluate.gaps import gaps
from teukenjax.evaluate.suite import load_suite, read_scores
from teukenjax.evaluate.tables import (
    by_language,
    markdown,
    means,
    models_of,
    table_of_languages,
    table_of_models,
)
from teukenjax.hardware import configs

SHOWN = {"arc": {"de": 0.5, "mt": 0.25}, "mmlu": {"de": 0.75, "mt": 0.25}}
# The published average is of scores with more digits, and rounded; ours is of the rounded ones.
ROUNDING = 1.01e-3
COLUMNS = ["arc", "hellaswag", "truthfulqa", "mmlu"]


@pytest.mark.parametrize(
    ("name", "first", "teuken"), [("eu21-instruct", 0.563, 0.531), ("eu21-base", 0.548, 0.520)]
)
def test_published_rows_have_the_published_averages(name, first, teuken):
    path = configs() / "scores" / f"{name}.json"
    rows = table_of_models(models_of(read_scores(path), str(path)), COLUMNS)
    averages = {row[0]: float(row[1]) for row in rows[1:]}
    assert float(rows[1][1]) == pytest.approx(first, abs=ROUNDING)
    ours = next(value for key, value in averages.items() if key.startswith("Teuken"))
    assert ours == pytest.approx(teuken, abs=ROUNDING)
    assert rows[0] == ["model", "average", *COLUMNS]


def test_the_suite_has_the_papers_languages_and_tasks():
    suite = load_suite("eu21")
    assert len(suite.languages) == 21
    assert not {"ga", "hr", "mt"} & set(suite.languages)
    assert set(COLUMNS) < set(suite.tasks)
    assert len(suite.tasks["mmlu"].hub.names) == 57
    shots = {task: one.shots for task, one in suite.tasks.items()}
    assert (shots["arc"], shots["mmlu"]) == (25, 5)


def test_the_shown_metric_is_the_suites():
    suite = load_suite("eu21")
    scores = {"arc": {"de": {"acc": 0.1, "acc_norm": 0.2}}, "mmlu": {"de": {"acc": 0.3}}}
    assert by_language(scores, suite) == {"arc": {"de": 0.2}, "mmlu": {"de": 0.3}}


def test_languages_count_the_same_and_a_missing_task_is_no_zero():
    assert means(SHOWN) == {"arc": 0.375, "mmlu": 0.5}
    assert table_of_languages(SHOWN)[-1] == ["mean", "0.375", "0.500"]
    rows = table_of_models({"a": {"arc": 0.9}, "b": {"arc": 0.2, "mmlu": 0.4}}, ["arc", "mmlu"])
    assert rows[1:] == [["b", "0.300", "0.200", "0.400"], ["a", "n/a", "0.900", "n/a"]]


def test_scores_of_others_may_be_means_or_by_language_or_results_of_ours(tmp_path):
    given = {"models": {"a": {"arc": {"de": 0.5, "mt": 0.25}}, "b": {"arc": 0.4}}}
    assert models_of(given, "f") == {"a": {"arc": 0.375}, "b": {"arc": 0.4}}
    assert models_of({"model": "c", "shown": SHOWN}, "f")["c"] == means(SHOWN)
    for other in (
        [], 3, {"models": [1]}, {"models": {"a": {"arc": "x"}}}, {"models": {"a": {"arc": {}}}},
        {"models": {"a": {"arc": {"de": None}}}}, {"shown": SHOWN}, {"model": "m", "shown": 3},
    ):  # fmt: skip
        with pytest.raises(UserError, match="f: holds no scores"):
            models_of(other, "f")
    file = tmp_path / "x.json"
    with pytest.raises(UserError, match="cannot be read"):
        read_scores(file)
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_scores(file)


def test_markdown_is_a_table():
    assert markdown([["a", "b"], ["x", "0.5"]]) == "| a | b |\n| --- | ---: |\n| x | 0.5 |\n"


def test_pictures_are_written(tmp_path):
    heat_map(SHOWN | {"arc": {"de": 0.5}}, "model", tmp_path / "heat.png")  # a gap is no zero
    bars({"a": means(SHOWN), "b": {"arc": 0.2}}, ["arc", "mmlu"], tmp_path / "bars.png")
    for name in ("heat.png", "bars.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_languages_that_trail_come_first_with_what_they_lack():
    bits = {"en": 0.8, "mt": 1.6, "el": 1.2, "de": 0.8}  # mean 1.1
    share = {"en": 0.6, "el": 0.3, "de": 0.1}  # half of an equal share: 0.17
    fertility = {"en": 1.4, "mt": 3.0, "el": 2.6, "de": 1.0}  # mean 2.0
    found = gaps(bits, share, fertility)
    assert [(gap.language, gap.guess) for gap in found] == [
        ("mt", "data, pieces"), ("el", "pieces"), ("en", ""), ("de", ""),
    ]  # fmt: skip
    assert found[0].gap == pytest.approx(0.5)
    assert sum(gap.gap for gap in found) == pytest.approx(0)


def test_unknown_suites_and_languages_are_refused(tmp_path):
    with pytest.raises(UserError, match="suite 'eu2l': did you mean 'eu21'"):
        load_suite("eu2l")
    file = tmp_path / "s.yaml"
    task = {"kind": "arc", "split": "test", "shots": 0, "metric": "acc"}
    file.write_text(json.dumps({"languages": ["xx"], "tasks": {"arc": task}}))
    with pytest.raises(UserError, match="language 'xx'"):
        load_suite(str(file))
    task = task | {"kind": "gsm8k"}
    file.write_text(json.dumps({"languages": ["de"], "tasks": {"maths": task}}))
    with pytest.raises(UserError, match=r"tasks.maths.metric 'acc': allowed: exact_match"):
        load_suite(str(file))
