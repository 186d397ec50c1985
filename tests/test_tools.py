"""The scripts in tools/ do what they say, at the smallest size."""

import csv
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from teukenjax.data.store import TokenStore
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch
from teukenjax.train.loop import resolve
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

TOOLS = Path(__file__).parent.parent / "tools"


def test_tutorial_learns(capsys):
    runpy.run_path(str(TOOLS / "scion_tutorial.py"), run_name="__main__")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert float(first.split()[-1]) > 3.5
    assert float(last.split()[-1]) < 1.0


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The script's names, what it was told, and its directory."""
    tool = runpy.run_path(str(TOOLS / "width_transfer.py"), run_name="width_transfer")
    out = tmp_path_factory.mktemp("width-transfer")
    options = {"out": out, "store": None, "steps": 4, "batch": 2, "context": 16}
    options["dtype"] = "float32"
    tool["main"](**options, form="tied", widths=[32, 64], scion_from=-12, adamw_from=-9, count=3)
    return tool, options, out


def test_width_transfer_writes_every_run(sweep):
    _, _, out = sweep
    with (out / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["optimizer"], row["width"], row["learning_rate"]) for row in rows}) == 12
    assert {row["learning_rate"] for row in rows if row["optimizer"] == "scion"} == {
        str(2.0**exponent) for exponent in (-12, -11, -10)
    }
    assert (out / "losses.png").stat().st_size > 1000


@pytest.mark.parametrize("optimizer", ["scion", "adamw"])
def test_width_transfer_trains_as_the_train_step_does(sweep, optimizer):
    tool, options, out = sweep
    store = TokenStore.open(out / "store")
    recipe = resolve(tool["recipe_of"]("tied", optimizer, 32, options), store.tokenizer())
    program = Program(recipe, make_layout(recipe.sharding, jax.devices()[:1]), platform="cpu")
    tokens = tool["read_tokens"](store, recipe)
    rate = recipe.optimizer.learning_rate
    curves = tool["train_all"](program, np.array([rate, 2 * rate], np.float32), tokens)

    state, train_step, losses = program.init(), make_train_step(program), []
    for batch in tokens:
        state, metrics = train_step(state, Batch(batch[None]))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(curves[0], losses, rtol=1e-4)
    assert abs(float(curves[1, -1]) - losses[-1]) > 1e-4


def test_width_transfer_finds_the_lowest_point(sweep):
    tool, _, _ = sweep
    rates = 2.0 ** np.arange(-10, -4)
    parabola = (np.log2(rates) + 7.3) ** 2
    assert tool["best"](rates, parabola) == pytest.approx(-7.3)
    parabola[-1] = np.inf  # diverged
    assert tool["best"](rates, parabola) == pytest.approx(-7.3)
    assert tool["best"](rates, -rates) == -5.0  # at the end of the grid
