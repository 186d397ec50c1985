"""NEFTune's noise: its size, what it depends on, and where there is none."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import model_of, random_params, random_tokens, tiny_config

from teukenjax.model.neftune import Noisy

CONFIG = tiny_config()
SEGMENTS = jnp.array([[1] * 5 + [2] * 7, [1] * 12], jnp.int32)
ALPHA = 5.0


@pytest.fixture(scope="module")
def model() -> Noisy:
    return Noisy(model_of(CONFIG), alpha=ALPHA, seed=1)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CONFIG)


def rows(*numbers: int):
    return jnp.array(numbers, jnp.int32)[:, None]


def test_noise_is_uniform_and_scaled_by_the_length_of_each_conversation(model, params):
    noise = np.asarray(model.bind(params)._noise(rows(0, 1), SEGMENTS))
    assert noise.shape == (2, 12, CONFIG.width)
    for piece, length in ((noise[0, :5], 5), (noise[0, 5:], 7), (noise[1], 12)):
        bound = ALPHA / (length * CONFIG.width) ** 0.5
        assert 0.9 * bound < np.abs(piece).max() <= bound
        assert abs(piece.mean()) < 0.2 * bound


def test_noise_depends_on_the_number_of_the_sample_alone(model, params):
    bound = model.bind(params)
    one = np.asarray(bound._noise(rows(3, 4), SEGMENTS[:1].repeat(2, axis=0)))
    other = np.asarray(bound._noise(rows(4, 3), SEGMENTS[:1].repeat(2, axis=0)))
    np.testing.assert_array_equal(one, other[::-1])
    assert np.abs(one[0] - one[1]).min() > 0
    another = Noisy(model_of(CONFIG), alpha=ALPHA, seed=2).bind(params)
    assert np.abs(one - np.asarray(another._noise(rows(3, 4), SEGMENTS))).max() > 0.1


def test_training_has_noise_and_evaluation_has_none(model, params):
    tokens, weights = random_tokens(CONFIG, (2, 13)), jnp.ones((2, 12))
    clean = model_of(CONFIG).bind(params).loss(tokens, weights)[1]
    np.testing.assert_array_equal(model.bind(params).loss(tokens, weights)[1], clean)
    noisy = model.bind(params).loss(tokens, weights, SEGMENTS, None, rows(0, 1))[1]
    packed = model.bind(params).loss(tokens, weights, SEGMENTS)[1]
    assert np.abs(noisy - packed).min() > 0
