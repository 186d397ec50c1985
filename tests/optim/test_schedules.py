import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from teukenjax.errors import UserError
from teukenjax.optim import schedule
from teukenjax.recipe import PhaseConfig

CONSTANT = PhaseConfig(shape="constant")


def values(phases, steps, upto=None, learning_rate=1.0):
    rate = schedule(phases, learning_rate=learning_rate, steps=steps)
    return [float(rate(step)) for step in range(upto or steps)]


def test_constant():
    assert values([CONSTANT], 3, learning_rate=0.5) == [0.5, 0.5, 0.5]


def test_warm_up_starts_above_zero_and_ends_full():
    phases = [PhaseConfig(shape="linear", steps=4, start=0.0), CONSTANT]
    np.testing.assert_allclose(values(phases, 7), [0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_cool_down_starts_full_and_ends_above_zero():
    phases = [CONSTANT.model_copy(update={"steps": 2}), PhaseConfig(shape="linear", end=0.0)]
    np.testing.assert_allclose(values(phases, 6), [1, 1, 1, 0.75, 0.5, 0.25])


def test_cosine_counts_from_zero():
    phase = PhaseConfig(shape="cosine", start=1.0, end=0.5)
    expected = [3e-5 * (0.5 + 0.25 * (1 + math.cos(math.pi * k / 8))) for k in range(8)]
    np.testing.assert_allclose(values([phase], 8, learning_rate=3e-5), expected, rtol=1e-6)


def test_rising_cosine_ends_full():
    phase = PhaseConfig(shape="cosine", steps=2, start=0.0)
    np.testing.assert_allclose(values([phase, CONSTANT], 4), [0.5, 1, 1, 1], atol=1e-6)


def test_warm_up_then_cosine_is_megatrons_but_for_the_lag_of_the_warm_up():
    warmup, steps, low = 5, 25, 0.1
    phases = [
        PhaseConfig(shape="linear", steps=warmup, start=0.0),
        PhaseConfig(shape="cosine", end=low),
    ]
    ours = values(phases, steps)
    for k in range(steps):
        t = (k - warmup) / (steps - warmup)
        cosine = low + 0.5 * (1 + math.cos(math.pi * t)) * (1 - low)
        assert ours[k] == pytest.approx((k + 1) / warmup if k < warmup else cosine, rel=1e-6)


def test_the_last_value_holds():
    phases = [PhaseConfig(shape="linear", steps=2, start=1.0, end=0.2)]
    np.testing.assert_allclose(values(phases, 2, upto=6), [1, 0.6, 0.2, 0.2, 0.2, 0.2], rtol=1e-6)


def test_three_phases_join():
    phases = [
        PhaseConfig(shape="linear", steps=2, start=0.0),
        PhaseConfig(shape="constant", steps=3),
        PhaseConfig(shape="linear", steps=2, end=0.0),
    ]
    np.testing.assert_allclose(values(phases, 7, upto=8), [0.5, 1, 1, 1, 1, 1, 0.5, 0])


def test_traced_counter():
    phases = [PhaseConfig(shape="linear", steps=3, start=0.0), PhaseConfig(shape="cosine", end=0.1)]
    rate = schedule(phases, learning_rate=2.0, steps=12)
    traced = jax.jit(jax.vmap(rate))(jnp.arange(12))
    np.testing.assert_allclose(traced, values(phases, 12, learning_rate=2.0), rtol=1e-6)
    assert traced.dtype == jnp.float32


def test_long_runs_keep_their_precision():
    rate = schedule([PhaseConfig(shape="linear", end=0.0)], learning_rate=1.0, steps=1_000_000)
    assert float(rate(999_999)) == pytest.approx(1e-6, rel=0.1)


def test_a_run_cut_short_is_the_beginning_of_the_long_one():
    phases = [PhaseConfig(shape="linear", steps=10, start=0.0), PhaseConfig(shape="linear", end=0)]
    short, long = (schedule(phases, learning_rate=1.0, steps=steps) for steps in (10, 1000))
    assert [short(k) for k in range(10)] == [long(k) for k in range(10)]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "schedule: empty"),
        ([CONSTANT, CONSTANT], r"schedule\.0\.steps is missing: only the last"),
    ],
)
def test_mistakes_name_the_phase(phases, message):
    with pytest.raises(UserError, match=message):
        schedule(phases, learning_rate=1.0, steps=10)
