import functools

import jax
import numpy as np
import pytest

from teukenjax.errors import UserError
from teukenjax.infer.sampling import Choice, Sampling, sample

LOGITS = np.random.default_rng(0).standard_normal(37).astype(np.float32)
BEST = int(LOGITS.argmax())


def draw(logits, how: Sampling, number: int, seen=()):
    """That many draws, at as many positions of a row."""
    held = np.zeros((1, len(logits)), bool)
    held[0, list(seen)] = True
    return draws(logits[None], held, Choice.of([how]), number)


@functools.partial(jax.jit, static_argnums=3)
def draws(logits, seen, choice, number: int):
    positions = jax.numpy.arange(number)[:, None]
    return jax.vmap(lambda at: sample(logits, seen, choice, at)[0])(positions)


def support(probabilities, draws: int = 2000, **how) -> set[int]:
    """Which tokens appear; of these examples none is likelier than 1e-30 to stay away."""
    logits = np.log(np.asarray(probabilities, np.float32))
    how = Sampling(**({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | how))
    return set(np.asarray(draw(logits, how, draws)).tolist())


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.0, top_k=0, top_p=1.0),
        Sampling(temperature=5.0, top_k=1, top_p=1.0),
        Sampling(temperature=5.0, top_k=0, top_p=1e-6),
        Sampling(temperature=1e-4, top_k=0, top_p=1.0),
    ],
    ids=str,
)
def test_greedy_in_all_its_forms_is_the_argmax(how):
    assert set(np.asarray(draw(LOGITS, how, 200)).tolist()) == {BEST}


@pytest.mark.parametrize("top_k", [2, 5, 36, 37, 1000])
def test_top_k_draws_the_k_likeliest_and_only_them(top_k):
    flat = np.exp(0.1 * LOGITS)
    likeliest = set(np.argsort(-flat)[:top_k].tolist())
    assert support(flat / flat.sum(), draws=20_000, top_k=top_k) == likeliest


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.3, {2}), (0.41, {2, 0}), (0.69, {2, 0}), (0.71, {2, 0, 3}), (0.99, {0, 1, 2, 3})],
)
def test_top_p_draws_the_fewest_that_hold_the_probability(top_p, expected):
    assert support([0.3, 0.1, 0.4, 0.2], top_p=top_p) == expected


def test_everything_can_be_drawn_without_limits():
    assert support(np.full(37, 1 / 37), draws=20_000) == set(range(37))


def test_top_p_counts_what_top_k_left_as_hugging_face_does():
    """Two of [.4 .3 .2 .1] are [.57 .43]: the first alone holds .5, which .4 does not."""
    assert support([0.4, 0.3, 0.2, 0.1], top_p=0.5) == {0, 1}
    assert support([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == {0}


def test_top_p_counts_after_the_temperature_as_hugging_face_does():
    """At temperature ½ [.4 .3 .2 .1] is [.53 .3 .13 .03]."""
    assert support([0.4, 0.3, 0.2, 0.1], temperature=0.5, top_p=0.5) == {0}
    assert support([0.4, 0.3, 0.2, 0.1], temperature=2.0, top_p=0.65) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature):
    number = 20_000
    how = Sampling(temperature=temperature, top_k=0, top_p=1.0)
    counts = np.bincount(draw(LOGITS, how, number), minlength=LOGITS.size)
    expected = np.exp(LOGITS.astype(np.float64) / temperature)
    expected *= number / expected.sum()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 78.7  # 36 degrees of freedom: exceeded by chance once in 20,000


def test_seeds_reproduce_and_differ():
    one, same, other = (np.asarray(draw(LOGITS, Sampling(seed=s), 100)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_the_penalty_weighs_down_what_was_there_whatever_its_sign():
    """As in Hugging Face: a positive score is divided, a negative one multiplied."""
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)
    assert set(np.asarray(draw(logits, greedy, 4))) == {0}
    assert set(np.asarray(draw(logits, greedy, 4, seen=[0]))) == {1}
    assert set(np.asarray(draw(logits[2:], greedy, 4, seen=[0]))) == {1}


def test_rows_choose_their_own_way():
    rows = jax.numpy.stack([LOGITS, LOGITS, -LOGITS])
    how = [Sampling(temperature=0.0), Sampling(temperature=9.0, top_k=0, top_p=1.0, seed=5)]
    choice = Choice.of([*how, Sampling(temperature=0.0)])
    found = np.asarray([sample(rows, rows > 9, choice, jax.numpy.full(3, at)) for at in range(20)])
    assert set(found[:, 0]) == {BEST}
    assert len(set(found[:, 1])) > 5
    assert set(found[:, 2]) == {int(LOGITS.argmin())}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: allowed: 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan: allowed: 0 or more"),
        ({"temperature": float("inf")}, "temperature=inf: allowed: 0 or more"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: allowed: above 0"),
        ({"seed": -1}, "seed=-1: allowed: 0 to 4294967295"),
        ({"top_k": -1}, "top_k=-1: allowed: 0 or more"),
        ({"top_p": 0.0}, "top_p=0.0: allowed: above 0, up to 1"),
        ({"top_p": 1.1}, "top_p=1.1: allowed: above 0, up to 1"),
        ({"top_p": float("nan")}, "top_p=nan: allowed: above 0, up to 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UserError) as caught:
        Sampling(**values)
    assert str(caught.value) == message
