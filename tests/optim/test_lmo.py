import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import COL_NORM, FIRST_ROW_RMS, GRADIENT, ROW_NORM, SPECTRAL

from teukenjax.errors import UserError
from teukenjax.optim.lmo import BiasRMS, ColNorm, RowNorm, Sign, Spectral
from teukenjax.optim.orthogonalise import polar

G = jnp.asarray(GRADIENT.T, jnp.float32)  # ours is [d_in, d_out] = [5, 3]
EXACT = [
    ColNorm(),
    ColNorm(normalised=True),
    RowNorm(),
    RowNorm(normalised=False),
    Sign(),
    Sign(normalised=False),
    BiasRMS(),
]
NORMS = [*EXACT, Spectral(), Spectral(normalised=False)]


def gaussian(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (RowNorm(), ROW_NORM),
        (ColNorm(), COL_NORM),
        (ColNorm(normalised=True), COL_NORM / 5),
        (Sign(), np.sign(GRADIENT) * 0.2),
    ],
)
def test_golden_maps(norm, expected):
    np.testing.assert_allclose(norm.map(G).T, expected, atol=6e-6)


def test_golden_spectral():
    difference = Spectral().map(G).T - SPECTRAL  # bfloat16, and normalised otherwise
    assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(SPECTRAL)


def test_golden_embedding_rows():
    table = jnp.asarray(GRADIENT, jnp.float32)  # [vocabulary 3, width 5]
    np.testing.assert_allclose(ColNorm().map(table)[0], FIRST_ROW_RMS, atol=1e-5)


def test_golden_bias():
    gain = jnp.asarray(GRADIENT[:1], jnp.float32)
    np.testing.assert_allclose(BiasRMS().map(gain)[0], FIRST_ROW_RMS, atol=1e-5)


def test_norms_by_hand():
    w = jnp.array([[3.0, 4.0], [0.0, -1.0], [0.0, 0.0]])  # d_in 3, d_out 2
    cases = {
        ColNorm(): 5 / math.sqrt(2),
        ColNorm(normalised=True): 3 * 5 / math.sqrt(2),
        RowNorm(): math.sqrt(3) * math.sqrt(17),
        RowNorm(normalised=False): math.sqrt(17),
        Sign(): 3 * 4,
        Sign(normalised=False): 4,
        BiasRMS(): math.sqrt(26 / 6),
        Spectral(): math.sqrt(3 / 2) * np.linalg.norm(w, 2),
        Spectral(normalised=False): np.linalg.norm(w, 2) / math.sqrt(2),
    }
    for norm, expected in cases.items():
        np.testing.assert_allclose(norm.norm(w), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_norm_is_the_operator_norm(norm):
    """No vector is lengthened by more than the norm, for the norms that act on vectors."""
    if isinstance(norm, BiasRMS):
        pytest.skip("the norm of a vector, not of an operator")
    w = norm.boundary_init(jax.random.key(0), (12, 8))
    rms = lambda v: jnp.sqrt(jnp.mean(v**2, -1))  # noqa: E731
    top = lambda v: jnp.max(jnp.abs(v), -1)  # noqa: E731
    one_hot = jnp.eye(12)
    dense = gaussian(500, 12)
    lengths = {
        ColNorm(): rms(one_hot @ w),
        Spectral(): rms(dense @ w) / rms(dense),
        Spectral(normalised=False): rms(dense @ w) / jnp.linalg.norm(dense, axis=-1),
        RowNorm(): top(dense @ w) / rms(dense),
        RowNorm(normalised=False): top(dense @ w) / jnp.linalg.norm(dense, axis=-1),
        Sign(): top(jnp.sign(dense) @ w),
        Sign(normalised=False): top(one_hot @ w),
        ColNorm(normalised=True): rms(jnp.sign(dense) @ w),
    }[norm]
    assert lengths.max() < 1 + 1e-5
    assert lengths.max() > 0.5


@pytest.mark.parametrize("norm", EXACT, ids=str)
def test_map_is_on_the_sphere_and_attains_the_dual_norm(norm):
    g = gaussian(2, 12, 7)
    mapped = norm.map(g)
    np.testing.assert_allclose(norm.norm(mapped), jnp.ones(2), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(g * mapped, (-2, -1)), norm.dual_norm(g), rtol=1e-5)


@pytest.mark.parametrize("norm", [Spectral(), Spectral(normalised=False)], ids=str)
def test_exact_spectral_map_is_on_the_sphere_and_attains_the_dual_norm(norm):
    g = gaussian(2, 12, 7)
    exact = polar(g) * norm.scale(g.shape)
    np.testing.assert_allclose(norm.norm(exact), jnp.ones(2), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(g * exact, (-2, -1)), norm.dual_norm(g), rtol=1e-5)
    values = jnp.linalg.svd(norm.map(g) / norm.scale(g.shape), compute_uv=False)
    assert 0.66 < values.min() < values.max() < 1.16


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_boundary_init_is_on_the_boundary(norm):
    w = norm.boundary_init(jax.random.key(3), (2, 12, 7))
    assert w.shape == (2, 12, 7)
    assert w.dtype == jnp.float32
    expected = jnp.zeros(2) if isinstance(norm, BiasRMS) else jnp.ones(2)
    np.testing.assert_allclose(norm.norm(w), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [Spectral(), RowNorm(), ColNorm(), Sign()], ids=str)
def test_boundary_init_fills_the_boundary(norm):
    """Not one row or direction on it, but all."""
    w = norm.boundary_init(jax.random.key(3), (6, 9))
    np.testing.assert_allclose(norm.lengths(w), norm.scale((6, 9)), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_size_of_the_gradient_cancels(norm):
    g = gaussian(12, 7)
    np.testing.assert_array_equal(norm.map(g * 2.0**50), norm.map(g * 2.0**40))


@pytest.mark.parametrize("norm", EXACT, ids=str)
def test_permutation_equivariance(norm):
    g = gaussian(12, 7)
    rows, columns = np.random.default_rng(0).permutation(12), np.arange(7)[::-1]
    shuffled = g[rows][:, columns]
    np.testing.assert_allclose(norm.map(shuffled), norm.map(g)[rows][:, columns], rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_zero_nan_and_dtype(norm):
    g = jnp.stack([jnp.zeros((5, 3)), gaussian(5, 3).at[2, 1].set(jnp.nan)])
    mapped = norm.map(g)
    assert not mapped[0].any()
    assert jnp.isnan(mapped[1, 2, 1])
    assert norm.map(g.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_rows_without_gradient_stay():
    g = gaussian(5, 3).at[2].set(0)
    np.testing.assert_allclose(jnp.linalg.norm(ColNorm().map(g), axis=-1) > 0, [1, 1, 0, 1, 1])


def test_epsilon_is_added_to_the_scaled_norm():
    g = jnp.full((2, 8), 1e-3)  # rows of RMS 1e-3
    np.testing.assert_allclose(ColNorm(epsilon=1e-3).map(g), 0.5, rtol=1e-6)
    g = jnp.full((4, 3), 1e-3)  # columns of length 2e-3, scaled 4e-3
    np.testing.assert_allclose(RowNorm(epsilon=4e-3).map(g), 0.125, rtol=1e-6)
    np.testing.assert_allclose(BiasRMS(epsilon=1e-3).map(g), 0.5, rtol=1e-6)


def test_tiny_gradients_have_full_steps_when_epsilon_allows():
    g = gaussian(6, 9) * 1e-18
    for norm in (ColNorm(epsilon=1e-30), RowNorm(epsilon=1e-30), Spectral(epsilon=1e-30)):
        np.testing.assert_allclose(norm.map(g), norm.map(g * 1e18), rtol=1e-3, atol=0.02)


def test_unknown_coefficients_are_found_at_once():
    with pytest.raises(UserError, match=r"coefficients='jk'"):
        Spectral(coefficients="jk")
