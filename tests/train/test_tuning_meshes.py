"""Adapters, noise and packed conversations on eight devices: the losses of one device."""

import jax
import numpy as np
import pytest
from tiny import OTHER_MESH_RTOL

from teukenjax.sharding import make_layout
from teukenjax.train.feed import Feed
from teukenjax.train.loop import resolve
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step
from teukenjax.train.tuning import TuningSource

STEPS = 4
FORMS = {
    "whole": {"neftune": 5.0},
    "adapters": {"lora": {"rank": 2, "alpha": 4.0}, "neftune": 5.0},
}
MESHES = {
    "fsdp": {"strategy": "fsdp"},
    "fsdp_tp": {"strategy": "fsdp_tp", "tensor": 2},
}


def curve(recipe, console, devices) -> np.ndarray:
    """Loss and norms of each step, from the loop's own parts."""
    source, layout = TuningSource(recipe, console), make_layout(recipe.sharding, devices)
    recipe = resolve(recipe, source.tokenizer)
    program, stream = Program(recipe, layout, platform="cpu"), source.stream(recipe)
    step, state, rows = make_train_step(program), source.initial(program), []
    feed = Feed(stream, recipe.batch, layout, first=0)
    for _ in range(STEPS):
        batch = next(feed)
        assert int(np.asarray(batch.segments).max()) > 1  # more than one conversation in a row
        state, metrics = step(state, batch)
        rows.append((metrics["loss"], metrics["grad_norm"], metrics["param_norm"]))
    feed.close()
    return np.array(rows, np.float64)


@pytest.fixture(scope="module")
def on_one_device():
    return {}


@pytest.mark.parametrize(
    ("form", "mesh"), [("whole", "fsdp_tp"), ("adapters", "fsdp"), ("adapters", "fsdp_tp")]
)
def test_losses_are_those_of_one_device(form, mesh, make_sft, console, on_one_device):
    model = make_sft().model.model_dump() | {"context": 128}
    if form not in on_one_device:
        recipe = make_sft("one", sft=FORMS[form], model=model)
        on_one_device[form] = curve(recipe, console, jax.devices()[:1])
    recipe = make_sft(mesh, sft=FORMS[form], model=model, sharding=MESHES[mesh])
    sharded = curve(recipe, console, jax.devices())
    np.testing.assert_allclose(sharded, on_one_device[form], rtol=OTHER_MESH_RTOL)
    assert sharded[-1, 0] < sharded[0, 0]
