"""Norms in a run: which rows have them, what they survive, and what the step pays for them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import final_state, train
from test_step import ADAMW

from teukenjax.errors import UserError
from teukenjax.optim import LeafSpec
from teukenjax.sharding import make_layout
from teukenjax.train.batch import abstract_batch
from teukenjax.train.loop import Run
from teukenjax.train.metrics import read_metrics
from teukenjax.train.norms import norm_columns, norm_scalars
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

EVERY_THIRD = {"every": 3}
ONE_PROGRAM = [{"shape": "constant", "steps": 1}]  # however many steps there are: compiled once
HIDDEN = {"rms_to_rms", "rms_to_rms_residual", "frobenius", "stable_rank"}


def strict_rows(run) -> list[dict]:
    """The rows as a parser reads them that knows no NaN."""
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    lines = run.directory.metrics.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def width_32(rms):
    """‖gain‖₂ of a model of width 32."""
    return np.sqrt(32) * np.array(rms)


def test_observed_rows_have_roles_and_layers_and_others_neither(make_recipe, console):
    run = train(make_recipe(steps=7, telemetry=EVERY_THIRD, schedule=ONE_PROGRAM), console)
    for row in strict_rows(run):
        assert ("norms" in row) == (row["step"] % 3 == 0)
        assert any(key.startswith("norm/") for key in row) == ("norms" in row)
    row = read_metrics(run.directory.metrics)[5]
    flat = {key.removeprefix("norm/weight/hidden/") for key in row if "weight/hidden" in key}
    assert flat == HIDDEN
    assert row["norm/weight/output/rms_to_inf"] > row["norm/update/output/rms_to_inf"] > 0
    layers = row["norms"]["weight"]
    assert layers["layers.mlp.down"].keys() == HIDDEN
    hidden = [leaf["rms_to_rms"] for leaf in layers.values() if "rms_to_rms" in leaf]
    assert {len(leaf) for leaf in hidden} == {2}
    assert np.max(hidden) == row["norm/weight/hidden/rms_to_rms"]
    gaps = [gap for name, gap in row["norms"]["gap"].items() if name.startswith("layers.mlp.")]
    assert np.min(gaps) > 0
    # They are of the same arrays as the columns that every row has; norms come in six digits.
    for kind, column in (("weight", "param_norm"), ("update", "update_norm")):
        sizes = [
            leaf.get("frobenius") or width_32(leaf["rms"]) for leaf in row["norms"][kind].values()
        ]
        assert np.linalg.norm(np.hstack(sizes)) == pytest.approx(row[column], rel=1e-5)
    events = b"".join(path.read_bytes() for path in run.directory.path.glob("tensorboard/*"))
    for tag in (b"norm/weight/hidden/frobenius", b"norm/update/layers.mlp.up/stable_rank"):
        assert 7 * events.count(tag) == 2 * events.count(b"train/loss") > 0
    assert b"train/norm" not in events


def test_resume_between_observations_is_bitwise_equal(make_recipe, console):
    changes = {"telemetry": EVERY_THIRD, "schedule": ONE_PROGRAM}
    straight = train(make_recipe("straight", steps=7, **changes), console)
    train(make_recipe("halves", steps=4, **changes), console)
    resumed = train(make_recipe("halves", steps=7, **changes), console)
    observed = [[row.get("norms") for row in strict_rows(run)] for run in (straight, resumed)]
    assert [norms is not None for norms in observed[0]] == [False, False, True] * 2 + [False]
    assert observed[0] == observed[1]
    jax.tree.map(np.testing.assert_array_equal, final_state(straight), final_state(resumed))


def test_resume_may_change_the_interval_but_not_whether(make_recipe, console):
    changes = {"steps": 1, "schedule": ONE_PROGRAM}
    train(make_recipe(telemetry=EVERY_THIRD, **changes), console)
    assert Run(make_recipe(telemetry={"every": 4}, **changes), console).changed == {
        "telemetry.every": (3, 4)
    }
    with pytest.raises(UserError, match=r"telemetry\.every was 4 .* cannot become None"):
        Run(make_recipe(telemetry={"every": None}, **changes), console)


def collectives(make_recipe, every) -> list[int]:
    """The entries of everything that the compiled step sends, under fsdp."""
    recipe = make_recipe(optimizer=ADAMW, sharding={"strategy": "fsdp"}, telemetry={"every": every})
    program = Program(recipe, make_layout(recipe.sharding), platform="cpu")
    batch = abstract_batch(program.recipe, program.layout)
    text = make_train_step(program).lower(program.abstract_state, batch).compile().as_text()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    shapes = re.findall(rf"= \w+\[([\d,]*)\]\S* (?:{kinds})(?:-start)?\(", text)
    return sorted(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def test_under_fsdp_norms_send_vectors_only(make_recipe):
    plain, tracked = (collectives(make_recipe, every) for every in (None, 3))
    more = list(tracked)
    for size in plain:
        more.remove(size)
    assert more
    assert max(more) <= 2 * 2 * 64  # the longest vectors: two layers, of weight and update


def test_a_number_that_is_not_finite_is_null_and_no_event():
    specs = {"a": {"w": LeafSpec("gain", (), (1,))}}
    row = norm_columns({"a.w": jnp.array([[1.0, jnp.nan], [2.0, 1e-30 / 3]])}, specs)
    assert row["norms"]["update"]["a.w"]["rms"] == [None, 3.33333e-31]
    assert row["norm/update/gain/rms"] is None
    scalars = dict(norm_scalars(row))
    assert scalars["norm/weight/a.w/rms"] == scalars["norm/weight/gain/rms"] == 2.0
    assert scalars["norm/update/gain/rms"] is None
