"""A steered norm arrives, whatever rate it began with; nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from teukenjax.errors import UserError
from teukenjax.optim import LeafSpec, scion, track_norms
from teukenjax.optim.guard import guard
from teukenjax.optim.lmo import RowNorm
from teukenjax.optim.steer import applied_factor, steer_to_norm

SPECS = {"head": LeafSpec("output", fan_in=(1,), fan_out=(0,))}
PARAMS = {"head": jnp.full((4, 8), 0.125)}  # norm 1
STEPS = 256


def norm(params):
    return float(RowNorm().norm(params["head"].T).max())


def end(rate: float, target: float | None, *, decay: bool = False, skipped: int = 0):
    """Norm and factor after a run of half drift, half noise, whose guard skips some steps."""
    schedule = optax.linear_schedule(rate, 0.0 if decay else rate, STEPS)
    optimizer = scion(schedule, SPECS, preset="untied", constrained=False, momentum=0.0)
    if target is not None:
        how = {"target": target, "learning_rate": schedule, "steps": STEPS}
        optimizer = steer_to_norm(optimizer, SPECS, **how)
    optimizer = guard(optimizer)
    losses = jnp.ones(STEPS).at[STEPS // 4 : STEPS // 4 + skipped].set(jnp.nan)

    @jax.jit
    def run(params):
        def step(carry, given):
            params, state = carry
            key, loss = given
            gradient = {"head": jax.random.normal(key, (4, 8)) - 0.3}
            updates, state = optimizer.update(gradient, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        carry, keys = (params, optimizer.init(params)), jax.random.split(jax.random.key(0), STEPS)
        return jax.lax.scan(step, carry, (keys, losses))[0]

    params, state = run(PARAMS)
    return norm(params), float(applied_factor(state))


@pytest.mark.parametrize("decay", [False, True], ids=["constant", "decay"])
def test_the_norm_arrives_from_any_rate(decay):
    for rate in (2.0**-6, 2.0**-3, 1.0):
        free, _ = end(rate, None, decay=decay)
        steered, _ = end(rate, 20.0, decay=decay)
        assert abs(free / 20 - 1) > 0.3
        assert steered == pytest.approx(20.0, rel=0.05)  # noise of the last look's interval


def test_the_norm_arrives_though_steps_were_skipped():
    steered, _ = end(2.0**-3, 20.0, skipped=STEPS // 4)
    assert steered == pytest.approx(20.0, rel=0.05)


def test_a_rate_that_was_right_is_left_about_where_it_was():
    free, one = end(0.125, None)
    _, factor = end(0.125, free)
    assert one == 1.0
    assert 0.4 < factor < 2.5


def test_the_gap_knows_the_rate_that_was_applied():
    scale = scion(0.5, SPECS, preset="untied", constrained=False, momentum=0.0)
    how = {"target": 5.0, "learning_rate": lambda step: 0.5, "steps": 4}
    plain = track_norms(scale, SPECS, every=1, learning_rate=0.5)
    steered = track_norms(steer_to_norm(scale, SPECS, **how), SPECS, every=1, learning_rate=0.5)
    gaps, factors = [], []
    for optimizer in (plain, steered):
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(3):
            updates, state = optimizer.update(PARAMS, state, params)  # one gradient: one gap
            params = optax.apply_updates(params, updates)
            gaps.append(float(state.numbers["head"][..., -1]))
        factors.append(float(applied_factor(state)))
    assert factors[0] == 1.0
    assert factors[1] != 1.0
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-5)


def test_a_model_without_an_output_is_refused():
    hidden = {"w": LeafSpec("hidden", fan_in=(0,), fan_out=(1,))}
    how = {"target": 8.0, "learning_rate": lambda step: 0.5, "steps": 4}
    with pytest.raises(UserError, match=r"norm_target=8: no weight has the role output"):
        steer_to_norm(optax.sgd(0.5), hidden, **how)
