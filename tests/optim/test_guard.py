"""A bad step changes nothing; a good one is the optimizer's own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from teukenjax.optim.guard import ENOUGH, HEALTHY, NOT_FINITE, SPIKE, guard, robust_z

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
ADAMW = optax.adamw(optax.linear_schedule(0.1, 0.0, 50), weight_decay=0.1)


class Light(NamedTuple):
    momentum: dict


def gradient(step: int) -> dict:
    key = jax.random.key(step)
    return jax.tree.map(lambda p: jax.random.normal(key, p.shape), PARAMS)


def walk(optimizer, gradients, losses):
    optimizer = optax.with_extra_args_support(optimizer)
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for each, loss in zip(gradients, losses, strict=True):
        updates, state = update(each, state, params, value=jnp.float32(loss))
        params = optax.apply_updates(params, updates)
    return params, state


def same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("z", [None, 8.0])
def test_a_healthy_run_is_the_same_bit_for_bit(z):
    gradients, losses = [gradient(i) for i in range(30)], np.linspace(5, 3, 30)
    params, state = walk(ADAMW, gradients, losses)
    guarded, guard_state = walk(guard(ADAMW, z=z), gradients, losses)
    same(params, guarded)
    same(state, guard_state.inner)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_leaves_weights_and_moments(bad):
    gradients = [gradient(i) for i in range(4)]
    before, state = walk(guard(ADAMW), gradients[:3], [4.0] * 3)
    poisoned = gradients[3] | {"b": gradients[3]["b"].at[1].set(bad)}
    after, stopped = walk(guard(ADAMW), [*gradients[:3], poisoned], [4.0] * 4)
    same(before, after)
    assert stopped.verdict == NOT_FINITE
    adam, adam_before = stopped.inner[0], state.inner[0]
    same((adam.mu, adam.nu), (adam_before.mu, adam_before.nu))
    assert adam.count == adam_before.count + 1  # the schedule stays with the step


def test_a_loss_that_is_not_finite_is_no_step():
    _, state = walk(guard(ADAMW), [gradient(0)], [jnp.nan])
    assert state.verdict == NOT_FINITE


def test_a_spike_is_skipped_and_does_not_move_the_measure():
    gradients = [gradient(i) for i in range(42)]
    losses = [3 + 0.1 * np.sin(i) for i in range(40)]
    before, _ = walk(guard(ADAMW, z=8.0), gradients[:40], losses)
    after, state = walk(guard(ADAMW, z=8.0), gradients[:41], [*losses, 6.0])
    same(before, after)
    assert state.verdict == SPIKE
    assert not (state.losses == 6.0).any()
    _, state = walk(guard(ADAMW, z=8.0), gradients, [*losses, 6.0, 3.0])
    assert state.verdict == HEALTHY


def test_a_falling_loss_and_a_young_run_have_no_spikes():
    short = jnp.full(64, jnp.nan).at[-ENOUGH + 1 :].set(1.0)
    assert robust_z(jnp.float32(1e6), short) == 0
    falling = jnp.linspace(10.0, 5.0, 64)
    assert robust_z(jnp.float32(1.0), falling) < 0


def test_the_score_is_the_normal_distributions():
    losses = 3 + 0.1 * jax.random.normal(jax.random.key(0), (64,))
    # The median absolute deviation of 64 draws is known to about 10 %.
    assert robust_z(jnp.float32(3.8), losses) == pytest.approx(8.0, rel=0.25)


def test_light_momentum_begins_again():
    light = optax.GradientTransformation(
        lambda params: Light(jax.tree.map(jnp.ones_like, params)),
        lambda grads, state, params: (grads, Light(grads)),
    )
    poisoned = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    params, after = walk(guard(light, light=True), [poisoned], [jnp.nan])
    same(params, PARAMS)
    same(after.inner.momentum, jax.tree.map(jnp.zeros_like, PARAMS))
