"""A suite in the loop has the numbers of the suite alone."""

import importlib.util
import io
import json

import local_tasks
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.evaluate import command
from teukenjax.train.loop import train

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
SUITE = """
languages: [de, mt]
tasks:
  arc: {kind: arc, split: test, shots: 1, shots_split: train, metric: acc_norm}
  truthfulqa_mc2: {kind: truthfulqa_mc2, split: test, shots: 0, metric: acc}
  gsm8k: {kind: gsm8k, split: test, shots: 0, new_tokens: 8, metric: exact_match}
"""


def test_scores_in_training_are_those_of_eval_bit_for_bit(make_recipe, tmp_path):
    """On eight devices, sharded as ``eval`` shards."""
    folder = local_tasks.write(tmp_path / "tasks", questions=5)
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    evaluation = {"every": 1, "documents": 1, "suite": str(suite), "suite_data": str(folder)}
    evaluation["batch_tokens"] = 2048
    model = make_recipe().model.model_dump() | {"context": 64}  # holds every choice
    recipe = make_recipe(steps=2, model=model, checkpoint={"every": 1}, evaluation=evaluation)
    screen = io.StringIO()
    path = train(recipe, Console(file=screen, width=200))
    lines = (path / "benchmarks.jsonl").read_text().splitlines()
    rows = {row["step"]: row["shown"] for row in map(json.loads, lines)}
    assert rows.keys() == {0, 1, 2}
    out = tmp_path / "scores.json"
    options = {"folder": folder, "limit": None, "out": out, "batch_tokens": 2048}
    other = tmp_path / "other.json"
    other.write_text('{"models": {"other": {"arc": 0.5}}}')
    command.suite(Console(quiet=True), path, str(suite), against=[other], **options)
    found = json.loads(out.read_text())
    assert found["shown"] == rows[2]
    assert found["cut_prompts"] > 0  # but not every example beside its question
    assert screen.getvalue().count(f"{found['cut_prompts']} prompts did not fit") == 1
    assert rows[0]["truthfulqa_mc2"] != rows[2]["truthfulqa_mc2"]
    assert found["shots"] == {"arc": 1, "truthfulqa_mc2": 0, "gsm8k": 0}
    assert "| other | 0.500 | 0.500 |" in out.with_suffix(".md").read_text()
    for picture in (out.with_suffix(".png"), out.with_name("scores-models.png")):
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra eval")
def test_a_suite_without_its_data_stops_before_anything_is_asked(make_recipe, console, tmp_path):
    evaluation = {"suite": "eu21", "suite_data": str(tmp_path), "documents": 1}
    with pytest.raises(UserError, match=r"arc/bg.test.jsonl: no such file: the task 'arc' in 'bg'"):
        train(make_recipe(steps=1, evaluation=evaluation), console)
