import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import (
    GRADIENT,
    KJ_BFLOAT16,
    KJ_FLOAT64,
    KJ_SINGULAR_VALUES,
    POLAR,
    SINGULAR_VALUES,
    authors_newton_schulz,
    distance,
    gaussian,
    polynomial,
)

from teukenjax.errors import UserError
from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.orthogonalise import euclidean_norm, newton_schulz, polar


def by_the_recipe(x, constant):
    """KJ in bfloat16 on a wide matrix; ``constant(k, x)`` decides how a number multiplies."""

    def dot(x, y):
        return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    x = (x / (jnp.linalg.norm(x) + 1e-7)).astype(jnp.bfloat16)
    for _ in range(5):
        a = dot(x, x.T)
        b = constant(-4.7750, a) + dot(constant(2.0315, a), a)
        x = constant(3.4445, x) + dot(b, x)
    return x.astype(jnp.float32)


def in_float32(k, x):
    return (jnp.float32(k) * x.astype(jnp.float32)).astype(jnp.bfloat16)


def in_bfloat16(k, x):
    return k * x


def test_polar_golden():
    np.testing.assert_allclose(polar(jnp.asarray(GRADIENT, jnp.float32)), POLAR, atol=1e-5)


def test_golden_singular_values():
    np.testing.assert_allclose(np.linalg.svd(GRADIENT, compute_uv=False), SINGULAR_VALUES, 1e-5)
    values = SINGULAR_VALUES / np.linalg.norm(SINGULAR_VALUES)
    expected = np.sort(polynomial(steps_of("kj"), values))[::-1]
    np.testing.assert_allclose(expected, KJ_SINGULAR_VALUES, rtol=2e-5)


def test_kj_golden_float64():
    with jax.enable_x64(True):
        result = newton_schulz(jnp.asarray(GRADIENT), dtype=jnp.float64)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, KJ_FLOAT64, atol=6e-6)


def test_kj_golden_float32():
    result = newton_schulz(jnp.asarray(GRADIENT, jnp.float32), dtype=jnp.float32)
    np.testing.assert_allclose(result, KJ_FLOAT64, atol=2e-5)


def test_kj_golden_bfloat16_bit_for_bit():
    result = authors_newton_schulz(jnp.asarray(GRADIENT, jnp.float32))
    np.testing.assert_allclose(result, KJ_BFLOAT16, atol=6e-6)


def test_kj_golden_bfloat16():
    assert distance(newton_schulz(jnp.asarray(GRADIENT, jnp.float32)), KJ_BFLOAT16) < 0.03


@pytest.mark.parametrize("shape", [(64, 64), (128, 512)])
def test_constants_are_not_rounded_to_bfloat16(shape):
    x = gaussian(*shape)
    result = newton_schulz(x)
    assert distance(result, by_the_recipe(x, in_float32)) < 0.01
    assert distance(result, by_the_recipe(x, in_bfloat16)) > 0.025
    assert distance(result, newton_schulz(x, dtype=jnp.float32)) < 0.035


def test_matrices_may_have_travelled_in_bfloat16():
    x = gaussian(3, 16, 24)
    rounded = x.astype(jnp.bfloat16)
    result = jax.jit(newton_schulz)
    np.testing.assert_array_equal(result(x), result(rounded).astype(jnp.float32))
    np.testing.assert_array_equal(result(x), result(rounded.astype(jnp.float32)))
    assert (
        newton_schulz(x, dtype=jnp.float32)
        != newton_schulz(rounded.astype(jnp.float32), dtype=jnp.float32)
    ).any()


def test_polar_express_converges_with_more_iterations():
    x = gaussian(16, 24)
    result = newton_schulz(x, coefficients="polar_express", iterations=10, dtype=jnp.float32)
    np.testing.assert_allclose(result, polar(x), atol=2e-4)


def test_tall_is_the_transpose_of_wide():
    x = gaussian(16, 24)
    np.testing.assert_array_equal(newton_schulz(x.T), newton_schulz(x).T)


def test_stack_is_each_matrix_alone():
    x = gaussian(2, 3, 16, 24)
    result = np.asarray(newton_schulz(x))
    for index in np.ndindex(2, 3):
        assert distance(result[index], newton_schulz(x[index])) < 0.05


def test_orthogonal_equivariance():
    x = gaussian(16, 24)
    u, v = (np.linalg.qr(gaussian(n, n, seed=n))[0] for n in (16, 24))
    turned = newton_schulz(jnp.asarray(u @ x @ v), dtype=jnp.float32)
    expected = u @ np.asarray(newton_schulz(x, dtype=jnp.float32)) @ v
    np.testing.assert_allclose(turned, expected, atol=1e-4)


def test_powers_of_two_do_not_matter():
    x = gaussian(16, 24)
    np.testing.assert_array_equal(newton_schulz(x * 2.0**40), newton_schulz(x * 2.0**20))


def test_zero_stays_zero_and_nan_stays_within_its_matrix():
    x = np.array(gaussian(3, 4, 6))
    x[0], x[2, 1, 2] = 0, np.nan
    result = np.asarray(newton_schulz(jnp.asarray(x)))
    assert not result[0].any()
    assert np.isfinite(result[1]).all()
    assert np.isnan(result[2]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    assert newton_schulz(gaussian(4, 6).astype(dtype)).dtype == dtype


def test_unknown_coefficients():
    with pytest.raises(UserError, match=r"coefficients='polarexpress': did you mean 'polar_exp"):
        newton_schulz(gaussian(4, 6), coefficients="polarexpress")


def test_euclidean_norm_has_no_underflow():
    x = jnp.array([[3e-25, 4e-25], [0.0, 0.0], [3e30, 4e30]])
    result = euclidean_norm(x, -1)
    np.testing.assert_allclose(result, [[5e-25], [0.0], [5e30]], rtol=1e-6)
