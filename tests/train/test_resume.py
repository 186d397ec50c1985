"""A run that was interrupted is the run that was not."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import OTHER_MESH_RTOL

from teukenjax.checkpoint import Checkpoints
from teukenjax.data.prepare import prepare
from teukenjax.errors import UserError
from teukenjax.train.loop import Run
from teukenjax.train.metrics import read_metrics

STATISTICS = ("loss", "lr", "grad_norm", "update_norm", "param_norm")


def train(recipe, console) -> Run:
    run = Run(recipe, console)
    run.train()
    return run


def curve(run: Run) -> np.ndarray:
    """[steps, statistics]."""
    rows = read_metrics(run.directory.metrics)
    assert [row["step"] for row in rows] == list(range(1, run.recipe.steps + 1))
    return np.array([[row[key] for key in STATISTICS] for row in rows])


def final_state(run: Run):
    checkpoints = Checkpoints(run.directory.path)
    state = checkpoints.restore(run.recipe.steps, run.program.abstract_state)
    checkpoints.close()
    return jax.device_get(state)


@pytest.mark.parametrize("name", ["scion", "adamw"])
def test_resume_is_bitwise_equal_to_an_uninterrupted_run(name, make_recipe, console):
    optimizer = {"name": name, "learning_rate": 1e-3}
    straight = train(make_recipe("straight", optimizer=optimizer), console)
    train(make_recipe("halves", optimizer=optimizer, steps=10), console)
    resumed = train(make_recipe("halves", optimizer=optimizer), console)
    np.testing.assert_array_equal(curve(straight), curve(resumed))
    jax.tree.map(np.testing.assert_array_equal, final_state(straight), final_state(resumed))


@pytest.mark.usefixtures("exact_newton_schulz")
def test_resume_on_another_mesh_and_accumulation_agrees(make_recipe, console):
    straight = train(make_recipe("straight"), console)
    train(make_recipe("moved", steps=10), console)
    moved = {"strategy": "fsdp_tp", "replica": 2, "tensor": 2}
    batch = {"sequences": 16, "accumulation": 4}
    resumed = train(make_recipe("moved", sharding=moved, batch=batch), console)
    assert resumed.layout.mesh.shape == {"replica": 2, "fsdp": 2, "tensor": 2}
    np.testing.assert_allclose(curve(straight), curve(resumed), rtol=OTHER_MESH_RTOL)


def test_resume_says_what_changed(make_recipe, console):
    train(make_recipe(steps=2), console)
    screen = io.StringIO()
    checkpoint = {"every": 5}
    train(make_recipe(steps=3, checkpoint=checkpoint), Console(file=screen, width=200))
    assert "at step 2" in screen.getvalue()
    assert "steps: 2 → 3" in screen.getvalue()
    assert "checkpoint.every: 10 → 5" in screen.getvalue()


def test_resume_refuses_fewer_steps_than_were_done(make_recipe, console):
    train(make_recipe(steps=2), console)
    with pytest.raises(UserError, match=r"steps=1: .* has already done 2"):
        train(make_recipe(steps=1), console)


def test_resume_refuses_a_store_with_another_tokenizer(make_recipe, console, tmp_path):
    train(make_recipe(steps=2), console)
    other = prepare("sample", tmp_path / "other", train_tokenizer=901, progress=False)
    model = make_recipe().model.model_dump() | {"vocab_size": None}
    with pytest.raises(UserError, match=r"tokenizer .* differs|vocab_size was 900"):
        train(make_recipe(steps=3, data={"store": str(other.path)}, model=model), console)


def test_resume_refuses_other_data_with_the_same_tokenizer(make_recipe, console, store, tmp_path):
    train(make_recipe(steps=2), console)
    tokenizer = store.path / "tokenizer.model"
    other = prepare("sample", tmp_path / "other", tokenizer=tokenizer, progress=False)
    with pytest.raises(UserError, match="began with data"):
        train(make_recipe(steps=3, data={"store": str(other.path)}), console)


def test_rows_after_the_checkpoint_are_done_again_and_written_once(make_recipe, console):
    run = train(make_recipe(steps=4, checkpoint={"every": 2}), console)
    shutil.rmtree(run.checkpoints.folder / "4")
    with run.directory.metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # a kill in the middle of a line
    again = train(make_recipe(steps=6, checkpoint={"every": 2}), console)
    assert curve(again).shape == (6, len(STATISTICS))
    evaluations = json.loads((again.directory.path / "eval.json").read_text())
    assert [row["step"] for row in evaluations] == [0, 4, 6]
