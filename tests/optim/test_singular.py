"""Power iteration: what its value and residual bound must hold on every draw, converged or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from teukenjax.optim.singular import largest_singular

ROUNDING = 3e-6  # of float32 sums over the few dozen entries here, relative to σ_max


@functools.partial(jax.jit, static_argnames="iterations")
def power(w, start, iterations):
    return largest_singular(w, start, iterations=iterations)


def unit(*shape, seed=0):
    start = gaussian(*shape, seed=seed)
    return start / jnp.linalg.norm(start, axis=-1, keepdims=True)


def matrix(rng, shape, spectrum):
    """A matrix with these singular values, or as many of them as fit."""
    rank = min(shape)
    left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in shape)
    return (left * np.resize(spectrum, rank)) @ right.T


SPECTRA = {
    "gaussian": lambda rng, n: np.linalg.svd(rng.standard_normal((n, n)), compute_uv=False),
    "flat": lambda rng, n: rng.uniform(0.68, 1.13, n),
    "all equal": lambda rng, n: np.ones(n),
    "ill conditioned": lambda rng, n: np.logspace(0, -7, n),
    "two close at the top": lambda rng, n: np.r_[1.0, 0.999, np.logspace(-1, -3, n - 2)],
    "one dominates": lambda rng, n: np.r_[100.0, rng.uniform(0, 1, n - 1)],
    "rank one": lambda rng, n: np.r_[3.0, np.zeros(n - 1)],
    "tiny": lambda rng, n: 1e-18 * rng.uniform(0.1, 1, n),
}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(sorted(SPECTRA)),
    shape=st.sampled_from([(12, 20), (20, 12), (16, 16)]),
    iterations=st.sampled_from([1, 8]),
)
def test_the_error_statement_holds(seed, kind, shape, iterations):
    rng = np.random.default_rng(seed)
    w = np.stack([matrix(rng, shape, SPECTRA[kind](rng, min(shape))) for _ in range(3)])
    w = w.astype(np.float32)
    found = power(w, unit(3, shape[1], seed=seed), iterations)
    exact = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    sigma, r = np.asarray(found.value, np.float64), np.asarray(found.residual, np.float64)
    top = exact[:, 0]
    slack = ROUNDING * top
    assert (np.hypot(sigma, r) <= top + slack).all()  # 1
    values = np.pad(exact, ((0, 0), (0, int(shape[0] != shape[1]))))  # the kernel's 0
    nearest = np.abs(values - sigma[:, None]).min(axis=1)
    assert (nearest <= r / np.sqrt(2) + slack).all()  # 2
    left = np.sqrt(np.maximum((exact**2).sum(axis=1) - sigma**2 - r**2, 0))
    corner = np.stack([np.stack([sigma, r], -1), np.stack([0 * left, left], -1)], -2)
    assert (top <= np.linalg.norm(corner, 2, axis=(-2, -1)) + slack).all()  # 3
    certain = left < 0.9 * sigma
    gap = np.where(certain, sigma - left, 1)
    assert ((top - sigma)[certain] <= (r**2 / (2 * gap) + slack)[certain]).all()  # 4


def test_warm_starts_go_on_where_the_last_one_ended():
    """On a matrix that moves by 1 % at a time, as weights do, the error falls to a tenth."""
    w, vector = gaussian(4, 64, 96), unit(4, 96)
    errors = []
    for step in range(8):
        found = power(w, vector, 8)
        exact = np.linalg.svd(w, compute_uv=False)[:, 0]
        errors.append(float((1 - found.value / exact).max()))
        vector, w = found.vector, w + 0.01 * gaussian(4, 64, 96, seed=step + 1)
    assert errors[0] > 0.01
    assert errors[-1] < 0.1 * errors[0]


def test_vectors_stay_unit_and_start_the_next_call():
    w, start = gaussian(2, 8, 12), unit(2, 12)
    whole = power(w, start, 6)
    half = power(w, power(w, start, 3).vector, 3)
    np.testing.assert_allclose(np.linalg.norm(whole.vector, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(half.value, whole.value, rtol=1e-6)
    np.testing.assert_allclose(half.residual, whole.residual, rtol=1e-3)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_matrix_without_an_answer_keeps_its_start(poison):
    w, start = jnp.stack([gaussian(8, 12), jnp.zeros((8, 12)), gaussian(8, 12)]), unit(3, 12)
    found = power(w.at[2, 1, 1].set(poison), start, 4)
    assert float(found.value[1]) == float(found.residual[1]) == 0
    assert not np.isfinite(found.value[2])
    np.testing.assert_array_equal(found.vector[1:], start[1:])
    assert (found.vector[0] != start[0]).any()


def test_bfloat16_matrices_are_measured_in_float32():
    w, start = gaussian(8, 12).astype(jnp.bfloat16), unit(12)
    found = power(w, start, 4)
    wide = power(w.astype(jnp.float32), start, 4)
    assert found.value.dtype == jnp.float32
    np.testing.assert_array_equal(found.value, wide.value)
