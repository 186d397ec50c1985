"""A run of a group is the run that `train` would do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from teukenjax.optim import lmo
from teukenjax.recipe import ShardingConfig
from teukenjax.scaling.members import GroupProgram
from teukenjax.scaling.spec import load_sweep, member_recipe
from teukenjax.scaling.sweep import resolved
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

STEPS = 5
# Batched products sum in another order: 1e-7 in the first step, and five steps carry it on. (With
# Newton–Schulz in bfloat16, which rounds a sum that fell on the other side by 2⁻⁸, it is 2.5e-4.)
RTOL = 1e-5
FORMS = {
    "scion": ["optimizer.momentum=0.9", "optimizer.light=true", "optimizer.norm_target=4.0"],
    "adamw": ["optimizer={name: adamw}"],
}


def alone(group, member, tokens):
    """The losses of one run, by the step of ``train``."""
    recipe = member_recipe(group, member).model_copy(update={"seed": member.seed})
    layout = make_layout(ShardingConfig(strategy="ddp"), jax.devices()[:1])
    program = Program(recipe, layout, platform="cpu")
    step, state, losses = make_train_step(program), program.init(), []
    for batch in tokens:
        state, metrics = step(state, Batch(batch))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("form", FORMS)
def test_a_member_is_the_single_run(form, make_sweep, store, monkeypatch):
    fp32 = functools.partial(lmo.newton_schulz, dtype=jnp.float32)
    monkeypatch.setattr(lmo, "newton_schulz", fp32)
    path = make_sweep(seeds="[7, 8]", tokens="[10]", multipliers="[{hidden: 0.5, output: 2.0}]")
    quiet = ["telemetry.every=null"]
    (group,) = load_sweep(path, [*FORMS[form], *quiet])
    if form == "adamw":  # has no multipliers of its own to compare with
        plain = [dataclasses.replace(m, multiplier=type(m.multiplier)()) for m in group.members]
        group = dataclasses.replace(group, members=tuple(plain))
    group = resolved(group, store)
    shape = (STEPS, 2, 4, 17)
    tokens = np.random.default_rng(0).integers(900, size=shape, dtype=np.int32)
    program = GroupProgram(group, jax.devices()[0])
    state, done = program.advance(program.init(), tokens, np.int32(STEPS))
    assert int(done) == STEPS
    losses = np.asarray(state.losses)[:STEPS]
    for i in (0, 4):  # a rate and seed at each end
        single = alone(group, group.members[i], tokens)
        np.testing.assert_allclose(losses[:, i], single, rtol=RTOL)
    assert np.unique(losses[-1]).size == len(group.members)
    assert losses[0, 0] != losses[0, 3]  # the seeds start apart
    assert losses[0, 0] == losses[0, 2]  # the rates do not
