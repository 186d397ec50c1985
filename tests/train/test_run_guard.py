"""A run meets bad steps: they are skipped or undone, counted, written down; too many end it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.recipe import GuardConfig
from teukenjax.train.guard import Guard
from teukenjax.train.loop import Run
from teukenjax.train.metrics import read_metrics

ADAMW = {"name": "adamw", "learning_rate": 1e-3}
SPIKY = {"spikes": "rewind", "z": 3.0}  # a short and falling history: its deviation is large


def poisoned(run: Run, *, at: int) -> Run:
    """The run with gradients that are not numbers in one step."""
    optimizer = run.program.optimizer

    def update(gradients, state, params, *, value):
        bad = jnp.where(state.inner[1][0].count == at - 1, jnp.nan, 1.0)
        return optimizer.update(optax.tree.scale(bad, gradients), state, params, value=value)

    run.program.optimizer = optax.GradientTransformationExtraArgs(optimizer.init, update)
    return run


def test_a_poisoned_step_is_skipped_counted_and_written_down(make_recipe, capsys):
    recipe = make_recipe(steps=6, optimizer=ADAMW)
    run = poisoned(Run(recipe, Console(width=200)), at=3)
    run.train()
    rows = read_metrics(run.directory.metrics)
    assert [row["bad_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert rows[2]["update_norm"] == 0
    assert rows[2]["param_norm"] == rows[1]["param_norm"]
    assert np.isfinite([row["loss"] for row in rows]).all()
    (decision,) = json.loads((run.directory.path / "guard.json").read_text())
    assert decision["step"] == 3
    assert decision["action"] == "skipped"
    assert "step 3: " in capsys.readouterr().out


def test_nonfinite_stop_ends_the_run(make_recipe, console):
    run = Run(make_recipe(steps=6, optimizer=ADAMW, guard={"nonfinite": "stop"}), console)
    with pytest.raises(UserError, match=r"step 3 .*guard.nonfinite=stop"):
        poisoned(run, at=3).train()


def garbage(run: Run, *, batch: int) -> Run:
    """The run with a batch of text that is no language: a spike that belongs to the data."""
    sample, sequences = run.stream.sample, run.recipe.batch.sequences

    def spoiled(index: int):
        found = sample(index)
        if index // sequences != batch:
            return found
        rng = np.random.default_rng(index)
        return found | {"tokens": rng.integers(700, 899, found["tokens"].shape, np.int32)}

    run.stream.sample = spoiled
    return run


@pytest.fixture
def fast(make_recipe):
    """A run that learns enough in twenty steps for garbage to stand out."""

    def make(name: str, guard: dict) -> Run:
        optimizer = {"name": "adamw", "learning_rate": 1e-2}
        recipe = make_recipe(
            name, steps=34, optimizer=optimizer, guard=guard, checkpoint={"every": 10}
        )
        return garbage(Run(recipe, Console(quiet=True)), batch=25)

    return make


def test_a_spike_rewinds_and_the_data_moves_on(fast):
    run = fast("run", SPIKY)
    run.train()
    (decision,) = json.loads((run.directory.path / "guard.json").read_text())
    assert decision | {"loss": 0} == {
        "step": 26,
        "batch": 25,
        "verdict": "spike",
        "loss": 0,
        "action": "rewound",
    }
    assert run.guard.moved == 26 - 20  # step 20 goes on with batch 26
    rows = read_metrics(run.directory.metrics)
    assert [row["step"] for row in rows] == list(range(1, 35))
    (start,) = json.loads((run.directory.path / "goodput.json").read_text())
    assert (start["steps"], start["repeated"]) == (34, 5)  # steps 21 to 25 were done twice
    about = run.checkpoints.about(30)
    assert about["next_row"] == 36 * run.recipe.batch.sequences
    # Killed and started again, it reads the same text.
    again = fast("run", SPIKY)
    again._adopt(about)
    assert again.guard.moved == 6


def test_a_spike_is_skipped_when_the_recipe_says_so(fast):
    run = fast("run", SPIKY | {"spikes": "skip"})
    run.train()
    rows = read_metrics(run.directory.metrics)
    assert [row["step"] for row in rows if row["update_norm"] == 0] == [26]
    assert run.guard.moved == 0


def test_too_many_bad_steps_end_the_run():
    guard = Guard(GuardConfig(limit=2))
    assert guard.judge(1, 0, 3.0) is None
    assert "not finite: skipped" in guard.judge(2, 1, float("nan"))
    guard.judge(3, 1, float("nan"))
    with pytest.raises(UserError, match=r"at step 4 .*guard.limit=2"):
        guard.judge(4, 1, float("nan"))


def test_bad_steps_of_long_ago_do_not_count():
    guard = Guard(GuardConfig(limit=1))
    for step in (1, 1500, 3000):
        guard.judge(step, 1, float("nan"))
    assert len(guard.decisions) == 3


def test_what_was_decided_is_resumed():
    one, other = Guard(GuardConfig()), Guard(GuardConfig())
    one.judge(2, 1, float("nan"))
    one.moved = 4
    other.restore(json.loads(json.dumps(one.saved())))
    assert jax.tree.map(str, other.saved()) == jax.tree.map(str, one.saved())
