"""The step: accumulation, precision, and what the compiled program communicates."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from teukenjax.planner.program import collectives as planned_collectives
from teukenjax.sharding import make_layout
from teukenjax.train.batch import abstract_batch, place_batch
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

ADAMW = {"name": "adamw", "learning_rate": 1e-2}
# The mean over micro-batches is taken in another order than the mean over the batch.
RTOL = 1e-5


def program_of(recipe, devices=None) -> Program:
    return Program(recipe, make_layout(recipe.sharding, devices), platform="cpu")


def one_step(recipe, tokens):
    program = program_of(recipe)
    placed = place_batch({"tokens": tokens}, recipe.batch.accumulation, program.layout)
    return make_train_step(program)(program.init(), placed)


@pytest.fixture
def tokens():
    return np.random.default_rng(3).integers(900, size=(32, 33), dtype=np.int32)


def test_accumulation_does_not_change_the_step(make_recipe, tokens):
    whole, _ = one_step(
        make_recipe(optimizer=ADAMW, batch={"sequences": 32, "accumulation": 1}), tokens
    )
    parts, _ = one_step(
        make_recipe(optimizer=ADAMW, batch={"sequences": 32, "accumulation": 4}), tokens
    )
    moments = [jax.tree.leaves(state.opt_state.inner) for state in (whole, parts)]
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * np.abs(a).max())


def test_a_masked_target_is_no_part_of_the_loss_or_its_mean(make_recipe, tokens):
    recipe = make_recipe(optimizer=ADAMW, batch={"sequences": 32, "accumulation": 2})
    program = program_of(recipe)
    rng = np.random.default_rng(5)
    weights = (rng.random((32, 32)) < 0.3).astype(np.float32)
    weights[:16] *= rng.random((16, 1)) < 0.5  # the first micro-batch has fewer targets
    step, grads, losses = make_train_step(program), [], []
    for scale in (1, 3):
        sample = {"tokens": tokens, "weights": scale * weights}
        _, metrics = step(program.init(), place_batch(sample, 2, program.layout))
        grads.append(float(metrics["grad_norm"]))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(*losses, rtol=RTOL)
    np.testing.assert_allclose(*grads, rtol=RTOL)
    params = jax.device_get(program.init().params)
    each = jax.jit(lambda p, t, w: program.model.bind(p).loss(t, w)[1])(params, tokens, weights)
    np.testing.assert_allclose(losses[0], (each * weights).sum() / weights.sum(), rtol=RTOL)


def test_weights_and_moments_stay_fp32_under_bf16_compute(make_recipe, tokens):
    recipe = make_recipe(compute={"dtype": "bfloat16", "head_chunk": 16})
    state, metrics = one_step(recipe, tokens)
    floats = [x for x in jax.tree.leaves((state, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_metrics_are_of_the_step_just_done(make_recipe, tokens):
    recipe = make_recipe(optimizer=ADAMW, schedule=[{"shape": "linear", "steps": 4, "start": 0.0}])
    state, metrics = one_step(recipe, tokens)
    assert int(state.step) == 1
    assert float(metrics["lr"]) == pytest.approx(1e-2 / 4)
    assert float(metrics["loss"]) == pytest.approx(np.log(900), rel=0.01)


def collectives(strategy: dict, make_recipe) -> list[str]:
    """The lines of the compiled program that communicate."""
    program = program_of(make_recipe(sharding=strategy, optimizer=ADAMW))
    batch = abstract_batch(program.recipe, program.layout)
    text = make_train_step(program).lower(program.abstract_state, batch).compile().as_text()
    return re.findall(r"= (\S+) (?:all-gather|all-reduce|reduce-scatter|all-to-all)\(", text)


def test_fsdp_never_gathers_the_vocabulary(make_recipe):
    shapes = collectives({"strategy": "fsdp"}, make_recipe)
    assert shapes
    # The tables are [1024, 32] in all, [128, 32] on each of eight devices; nothing else is 1024.
    assert not [shape for shape in shapes if "1024" in shape]


def gathered_bytes(make_recipe, **compute) -> int:
    """Of all-gathers in a step of four micro-batches."""
    batch = {"sequences": 32, "accumulation": 4}
    program = program_of(make_recipe(sharding={"strategy": "fsdp"}, batch=batch, compute=compute))
    batch = abstract_batch(program.recipe, program.layout)
    text = make_train_step(program).lower(program.abstract_state, batch).compile().as_text()
    found = [x for x in planned_collectives(text) if x.kind == "all-gather"]
    return sum(x.bytes * x.count for x in found)


def test_a_step_that_gathers_once_gathers_less(make_recipe):
    """Activations of the vocabulary's tables travel still, in each micro-batch."""
    by_layer, once = (gathered_bytes(make_recipe, gather=x) for x in ("layer", "step"))
    model = program_of(make_recipe()).model
    matrices = [
        shape.size
        for shape, spec in zip(
            jax.tree.leaves(model.abstract["layers"]),
            jax.tree.leaves(model.specs["layers"], is_leaf=lambda x: hasattr(x, "role")),
            strict=True,
        )
        if spec.role == "hidden"
    ]
    assert by_layer - once == (2 * 4 - 1) * 4 * sum(matrices)  # 2 passes of 4 micro-batches


def test_ddp_gathers_no_weight(make_recipe):
    program = program_of(make_recipe(sharding={"strategy": "ddp"}, optimizer=ADAMW))
    batch = abstract_batch(program.recipe, program.layout)
    text = make_train_step(program).lower(program.abstract_state, batch).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_zero1_holds_an_eighth_of_the_moments(make_recipe):
    whole, split = (
        program_of(make_recipe(sharding={"strategy": strategy}, optimizer=ADAMW)).abstract_state
        for strategy in ("ddp", "zero1")
    )

    def held(tree):
        return sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))

    assert held(split.params) == held(whole.params)
    assert held(split.opt_state) < held(whole.opt_state) / 6  # norm gains stay whole


@pytest.mark.usefixtures("exact_newton_schulz")
def test_the_light_form_takes_the_same_steps_without_an_accumulator(make_recipe, tokens):
    """With β = 1/2 its momentum is twice as long, which rounds alike in the maps."""
    losses, temporary = [], []
    for light in (False, True):
        scion = {"name": "scion", "learning_rate": 2e-4, "momentum": 0.5, "light": light}
        recipe = make_recipe(optimizer=scion | {"epsilon": 1e-20}, batch={"sequences": 32})
        program = program_of(recipe)
        placed = place_batch({"tokens": tokens}, 1, program.layout)
        state = program.init()
        step = make_train_step(program).lower(state, placed).compile()
        temporary.append(step.memory_analysis().temp_size_in_bytes)
        curve = []
        for _ in range(4):
            state, metrics = step(state, placed)
            curve.append(float(metrics["loss"]))
        losses.append(curve)
    np.testing.assert_allclose(*losses, rtol=RTOL)
    assert losses[0][-1] < losses[0][0]
    assert temporary[1] < temporary[0]
