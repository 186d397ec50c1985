import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import COL_NORM, FIRST_ROW_RMS, GRADIENT, ROW_NORM, SPECTRAL, gaussian

from teukenjax.errors import UserError
from teukenjax.optim.lmo import BiasRMS, ColNorm, RowNorm, Sign, Spectral, SpectralConv
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
SPECTRAL_NORMS = [
    Spectral(),
    Spectral(normalised=False),
    Spectral(least_scale=1.0),
    Spectral(method="gram"),
    SpectralConv(taps=3),
]
NORMS = [*EXACT, *SPECTRAL_NORMS]


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


OPERATORS = [*EXACT[:-1], *SPECTRAL_NORMS[:2]]


@pytest.mark.parametrize("norm", OPERATORS, ids=str)
def test_norm_is_the_operator_norm(norm):
    """No vector is lengthened by more than the norm, for the norms that act on vectors."""
    w = norm.boundary_init(jax.random.key(0), (12, 7))
    w, dense, one_hot = np.asarray(w), np.asarray(gaussian(500, 12)), np.eye(12)
    rms = lambda v: np.sqrt(np.mean(v**2, -1))  # noqa: E731
    top = lambda v: np.max(np.abs(v), -1)  # noqa: E731
    lengths = {
        ColNorm(): rms(one_hot @ w),
        Spectral(): rms(dense @ w) / rms(dense),
        Spectral(normalised=False): rms(dense @ w) / np.linalg.norm(dense, axis=-1),
        RowNorm(): top(dense @ w) / rms(dense),
        RowNorm(normalised=False): top(dense @ w) / np.linalg.norm(dense, axis=-1),
        Sign(): top(np.sign(dense) @ w),
        Sign(normalised=False): top(one_hot @ w),
        ColNorm(normalised=True): rms(np.sign(dense) @ w),
    }[norm]
    assert lengths.max() < 1 + 1e-5
    assert lengths.max() > 0.4  # and random vectors come near it


@pytest.mark.parametrize("norm", EXACT, ids=str)
def test_map_is_on_the_sphere_and_attains_the_dual_norm(norm):
    g = gaussian(2, 12, 7)
    mapped = norm.map(g)
    np.testing.assert_allclose(norm.norm(mapped), np.ones(2), rtol=1e-5)
    np.testing.assert_allclose(
        np.sum(g * np.asarray(mapped), (-2, -1)), norm.dual_norm(g), rtol=1e-5
    )


@pytest.mark.parametrize("norm", SPECTRAL_NORMS, ids=str)
def test_exact_spectral_map_is_on_the_sphere_and_attains_the_dual_norm(norm):
    g = gaussian(2, 12, 7)
    exact = polar(g) * norm.scale(g.shape)
    np.testing.assert_allclose(norm.norm(exact), np.ones(2), rtol=1e-5)
    np.testing.assert_allclose(
        np.sum(g * np.asarray(exact), (-2, -1)), norm.dual_norm(g), rtol=1e-5
    )
    values = np.linalg.svd(norm.map(g), compute_uv=False) / norm.scale(g.shape)
    assert 0.66 < values.min() < values.max() < 1.16


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_boundary_init_is_on_the_boundary(norm):
    w = norm.boundary_init(jax.random.key(3), (2, 12, 7))
    assert w.shape == (2, 12, 7)
    assert w.dtype == jnp.float32
    expected = np.zeros(2) if isinstance(norm, BiasRMS) else np.ones(2)
    np.testing.assert_allclose(norm.norm(w), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", [Spectral(), RowNorm(), ColNorm(), Sign()], ids=str)
def test_boundary_init_fills_the_boundary(norm):
    """Not one row or direction on it, but all."""
    w = norm.boundary_init(jax.random.key(3), (2, 12, 7))
    np.testing.assert_allclose(norm.lengths(w), norm.scale(w.shape), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_size_of_the_gradient_cancels(norm):
    g = gaussian(12, 7)
    np.testing.assert_array_equal(norm.map(g * 2.0**50), norm.map(g * 2.0**40))


@pytest.mark.parametrize("norm", EXACT, ids=str)
def test_permutation_equivariance(norm):
    g = np.asarray(gaussian(12, 7))
    order = np.ix_(np.random.default_rng(0).permutation(12), np.arange(7)[::-1])
    mapped = np.asarray(norm.map(jnp.asarray(g)))
    np.testing.assert_allclose(norm.map(jnp.asarray(g[order])), mapped[order], rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_zero_nan_and_dtype(norm):
    g = np.array(gaussian(2, 12, 7))
    g[0], g[1, 2, 1] = 0, np.nan
    g = jnp.asarray(g)
    mapped = np.asarray(norm.map(g))
    assert not mapped[0].any()
    spoiled = np.zeros((12, 7), bool)
    where = {Sign: (2, 1), ColNorm: (2, ...), RowNorm: (..., 1)}.get(type(norm), ...)
    spoiled[where] = True
    np.testing.assert_array_equal(np.isnan(mapped[1]), spoiled)
    assert norm.map(g.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("norm", "of_the_transpose"),
    [
        (ColNorm(), RowNorm(normalised=False)),
        (Sign(normalised=False), Sign(normalised=False)),
        (BiasRMS(), BiasRMS()),
    ],
    ids=str,
)
def test_map_of_the_transpose(norm, of_the_transpose):
    """map(Gᵀ) = map(G)ᵀ up to scale: what is a row in one is a column in the other."""
    g = gaussian(12, 7)
    sizes = norm.scale((12, 7)) / of_the_transpose.scale((7, 12))
    np.testing.assert_allclose(norm.map(g), of_the_transpose.map(g.T).T * sizes, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_infinite_gradients_do_not_pass_for_finite(norm):
    """What has no direction gives NaN, not a step: except the sign, which infinity does have."""
    g = np.array(gaussian(12, 7))
    g[2, 1] = np.inf
    mapped = np.asarray(norm.map(jnp.asarray(g)))
    if isinstance(norm, Sign):
        np.testing.assert_array_equal(mapped, norm.scale(g.shape) * np.sign(g))
    else:
        assert np.isnan(mapped[2, 1])


def test_rows_without_gradient_stay():
    g = np.array(gaussian(12, 7))
    g[2] = 0
    moved = np.asarray(ColNorm().map(jnp.asarray(g))).any(-1)
    np.testing.assert_array_equal(moved, np.arange(12) != 2)


def test_epsilon_is_added_to_the_scaled_norm():
    g = jnp.full((2, 8), 1e-3)  # rows of RMS 1e-3
    np.testing.assert_allclose(ColNorm(epsilon=1e-3).map(g), 0.5, rtol=1e-6)
    g = jnp.full((4, 3), 1e-3)  # columns of length 2e-3, scaled 4e-3
    np.testing.assert_allclose(RowNorm(epsilon=4e-3).map(g), 0.125, rtol=1e-6)
    np.testing.assert_allclose(BiasRMS(epsilon=1e-3).map(g), 0.5, rtol=1e-6)


def test_tiny_gradients_have_full_steps_when_epsilon_allows():
    g = gaussian(12, 7) * 2.0**-60  # about 1e-18
    for norm in (ColNorm(epsilon=1e-30), RowNorm(epsilon=1e-30), Spectral(epsilon=1e-30)):
        np.testing.assert_allclose(norm.map(g), norm.map(g * 2.0**60), rtol=1e-6)


def test_unknown_coefficients_are_found_at_once():
    with pytest.raises(UserError, match=r"coefficients='jk'"):
        Spectral(coefficients="jk")


def test_a_long_stack_is_its_parts():
    stack = jax.random.normal(jax.random.key(3), (3, 4, 6, 10))  # 12: in groups of 6
    compiled = jax.jit(Spectral().map)  # one by one, its operations round differently
    parts = [compiled(part) for part in stack.reshape(2, 6, 6, 10)]
    np.testing.assert_array_equal(compiled(stack), np.reshape(parts, stack.shape))
