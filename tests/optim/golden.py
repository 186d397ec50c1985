"""Values computed with the Scion authors' PyTorch code, eager on CPU; their W is [3, 5]."""

import jax.numpy as jnp
import numpy as np

from teukenjax.optim.coefficients import steps_of
from teukenjax.optim.orthogonalise import quintic

GRADIENT = np.sin(np.outer(np.arange(1, 4), np.arange(2, 7)))
START = np.cos(0.5 * np.arange(3)[:, None] - 0.3 * np.arange(5)[None, :])

SINGULAR_VALUES = np.array([1.77014, 1.39024, 1.04265])
KJ_SINGULAR_VALUES = np.array([1.12654, 1.09534, 0.68219])
POLAR = np.array([
    [0.49937, 0.08601, -0.41830, -0.68526, -0.31412],
    [-0.45241, -0.14156, 0.55927, -0.45868, -0.50212],
    [-0.24903, 0.32602, -0.39984, 0.42483, -0.70096],
])  # fmt: skip
KJ_FLOAT64 = np.array([
    [0.49966, 0.15080, -0.53246, -0.57028, -0.37636],
    [-0.54154, -0.10027, 0.54107, -0.33144, -0.58459],
    [-0.21530, 0.28600, -0.34086, 0.20332, -0.76034],
])  # fmt: skip
KJ_BFLOAT16 = np.array([
    [0.51172, 0.15039, -0.54688, -0.56250, -0.38281],
    [-0.54688, -0.09961, 0.55469, -0.33594, -0.58594],
    [-0.21094, 0.28906, -0.35156, 0.21094, -0.76953],
])  # fmt: skip
SPECTRAL = np.array([
    [0.39648, 0.11670, -0.42383, -0.43555, -0.29688],
    [-0.42383, -0.07715, 0.42969, -0.25977, -0.45312],
    [-0.16309, 0.22363, -0.27148, 0.16309, -0.59766],
])  # fmt: skip
ROW_NORM = np.array([
    [0.26156, 0.04059, -0.21770, -0.27584, -0.08037],
    [-0.22749, -0.08399, 0.29739, -0.16353, -0.16129],
    [-0.10127, 0.14936, -0.19446, 0.23568, -0.27217],
])  # fmt: skip
COL_NORM = np.array([
    [1.29563, 0.47230, -0.96648, -1.29759, -0.50185],
    [-1.07835, -0.93515, 1.26347, -0.73616, -0.96373],
    [-0.39813, 1.37928, -0.68524, 0.87995, -1.34884],
])  # fmt: skip
FIRST_ROW_RMS = np.array([1.30781, 0.20297, -1.08848, -1.37918, -0.40187])


def gaussian(*shape, seed=0, dtype=jnp.float32):
    """Drawn by NumPy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def distance(x, y):
    """Relative Frobenius distance."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / np.linalg.norm(y)


def polynomial(steps, sigma):
    """p of p of … σ in float64: what Newton–Schulz makes of each singular value."""
    for a, b, c in steps:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


def polynomial_factor(x, steps):
    """U diag(p(σ/‖X‖_F)) Vᵀ in float64, of the matrices rounded to bfloat16 as the code does."""
    x = np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    sigma = sigma / np.linalg.norm(sigma, axis=-1, keepdims=True)
    return (u * polynomial(steps, sigma)[..., None, :]) @ vt


def authors_newton_schulz(x, **_):
    """Theirs differs from ours by a normalisation in bfloat16; from there on bit for bit."""
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).astype(jnp.bfloat16)
    norm = jnp.sqrt(jnp.sum(jnp.square(y.astype(jnp.float32)))).astype(jnp.bfloat16)
    y = (y.astype(jnp.float32) / norm.astype(jnp.float32)).astype(jnp.bfloat16)
    for a, b, c in steps_of("kj", 5):
        y = quintic(y, a, b, c)
    return (y.mT if tall else y).astype(jnp.float32)
