"""The spectral norms: factor and scale, the Gram method, convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import distance, gaussian, polynomial_factor

from teukenjax.errors import UserError
from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.lmo import Spectral, SpectralConv
from teukenjax.optim.orthogonalise import gram_newton_schulz, newton_schulz, polar

METHODS = ["standard", "gram"]
ONE = [
    Spectral(),
    Spectral(normalised=False),
    Spectral(least_scale=1.0),
    Spectral(method="gram"),
    SpectralConv(taps=9),
]


@pytest.mark.parametrize("norm", ONE, ids=str)
def test_map_is_scale_times_factor(norm):
    g = gaussian(2, 18, 6)
    separate = norm.factor(g) * norm.scale(g.shape)
    np.testing.assert_array_equal(norm.map(g), separate)


@pytest.mark.parametrize("norm", ONE, ids=str)
def test_factor_may_travel_in_bfloat16_there_and_back(norm):
    g = gaussian(2, 18, 6)
    factor = jax.jit(norm.factor)
    there = factor(g.astype(jnp.bfloat16))
    assert there.dtype == jnp.bfloat16
    np.testing.assert_array_equal(there.astype(jnp.float32), factor(g))


@pytest.mark.parametrize("norm", ONE, ids=str)
def test_factor_commutes_with_transposition(norm):
    g = gaussian(2, 18, 6)
    np.testing.assert_array_equal(norm.factor(g.mT), norm.factor(g).mT)


@pytest.mark.parametrize("method", METHODS)
def test_factor_of_permuted_rows_and_columns(method):
    """Up to the order of summation, which flips roundings; so as near as its own error."""
    norm, g = Spectral(method=method, coefficients="you"), np.asarray(gaussian(36, 12))
    order = np.ix_(np.random.default_rng(0).permutation(36), np.arange(12)[::-1])
    factor = np.asarray(norm.factor(jnp.asarray(g)))
    own_error = distance(factor, polynomial_factor(g, steps_of("you")))
    assert distance(norm.factor(jnp.asarray(g[order])), factor[order]) < 1.5 * own_error


@pytest.mark.parametrize("shape", [(16, 20), (20, 16), (16, 16)])
def test_gram_leaves_nearly_square_matrices_to_the_standard_form(shape):
    g = gaussian(*shape)
    np.testing.assert_array_equal(Spectral(method="gram").factor(g), newton_schulz(g))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (16, 64)])
def test_gram_takes_the_others(shape):
    g = gaussian(*shape)
    expected = gram_newton_schulz(g)
    # It only rounds to what can travel.
    np.testing.assert_allclose(Spectral(method="gram").factor(g), expected, rtol=2**-8)
    assert distance(Spectral().factor(g), expected) > 0.01


def test_least_scale():
    norm = Spectral(least_scale=1.0)
    assert norm.scale((8, 2)) == 1.0
    assert norm.scale((2, 8)) == 2.0
    g = gaussian(8, 2)
    np.testing.assert_allclose(norm.norm(polar(g)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(norm.norm(norm.boundary_init(jax.random.key(0), (8, 2))), 1.0, 1e-5)
    np.testing.assert_allclose(norm.dual_norm(g), np.linalg.norm(g, "nuc"), rtol=1e-5)


# Convolutions.


def test_scale_of_a_convolution():
    assert SpectralConv(taps=9).scale((9 * 4, 16)) == pytest.approx(2 / 9)  # Conv2d, 3 × 3
    assert SpectralConv(taps=5).scale((5 * 4, 16)) == pytest.approx(2 / 5)  # Conv1d
    assert SpectralConv(taps=1).scale((4, 16)) == Spectral().scale((4, 16))


def test_a_convolution_of_norm_one_lengthens_no_typical_vector():
    kernel = SpectralConv(taps=3).boundary_init(jax.random.key(0), (3 * 4, 6))
    np.testing.assert_allclose(SpectralConv(taps=3).norm(kernel), 1.0, rtol=1e-5)
    kernel = np.asarray(kernel).reshape(3, 4, 6)
    x = np.asarray(gaussian(50, 8, 4))  # a signal that repeats every 8
    y = sum(np.roll(x, tap, axis=1) @ kernel[tap] for tap in range(3))
    gain = np.sqrt(np.mean(y**2, (1, 2)) / np.mean(x**2, (1, 2)))
    assert gain.max() < 1
    assert gain.max() > 0.3


def test_order_of_taps_and_channels_is_free():
    g = gaussian(3, 4, 6)
    norm = SpectralConv(taps=3, coefficients="you")
    taps_first = np.asarray(norm.map(g.reshape(12, 6))).reshape(3, 4, 6)
    channels_first = np.asarray(norm.map(g.transpose(1, 0, 2).reshape(12, 6))).reshape(4, 3, 6)
    assert distance(channels_first.swapaxes(0, 1), taps_first) < 0.03


def test_taps_that_do_not_divide():
    with pytest.raises(UserError, match=r"taps=9: does not divide d_in=20"):
        SpectralConv(taps=9).map(gaussian(20, 6))
