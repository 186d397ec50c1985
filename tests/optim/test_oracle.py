"""Whole steps of Scion against pytorch-optimizer's (uv run --extra oracles pytest -m oracle)."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import authors_newton_schulz, distance, gaussian

from teukenjax.optim import LeafSpec, newton_schulz, scion
from teukenjax.optim.lmo import BiasRMS, ColNorm, RowNorm, Sign, Spectral, SpectralConv

pytestmark = pytest.mark.oracle

STEPS, RATE, RADIUS = 4, 0.05, 3.0
FORMS = [(True, 1.0), (True, 0.1), (False, 1.0), (False, 0.1)]  # constrained, α
WIDE = {"fan_in": (1,), "fan_out": (0,)}  # stored [d_out, d_in], as theirs
TABLE = {"fan_in": (0,), "fan_out": (1,)}  # [vocabulary, width], which they transpose

# ours, theirs (name of LMONorm, options), shape, axes
EXACT = {
    "ColNorm": (ColNorm(), ("COL", {}), (7, 12), WIDE),
    "ColNorm normalised": (ColNorm(normalised=True), ("COL", {"normalized": True}), (7, 12), WIDE),
    "ColNorm of a table": (ColNorm(), ("COL", {"transpose": True}), (12, 7), TABLE),
    "RowNorm": (RowNorm(), ("ROW", {}), (7, 12), WIDE),
    "RowNorm plain": (RowNorm(normalised=False), ("ROW", {"normalized": False}), (7, 12), WIDE),
    "Sign": (Sign(), ("SIGN", {}), (7, 12), WIDE),
    "Sign plain": (Sign(normalised=False), ("SIGN", {"normalize": False}), (7, 12), WIDE),
    "BiasRMS": (BiasRMS(), ("BIAS", {}), (12, 1), WIDE),
}
SPECTRAL = {
    "Spectral": (Spectral(), ("SPECTRAL", {}), (32, 48), WIDE),
    "Spectral tall": (Spectral(), ("SPECTRAL", {}), (48, 32), WIDE),
    "Spectral plain": (
        Spectral(normalised=False),
        ("SPECTRAL", {"normalize": False}),
        (32, 48),
        WIDE,
    ),
    "Spectral of images": (
        Spectral(least_scale=1.0),
        ("SPECTRAL", {"max_scale": True}),
        (32, 48),
        WIDE,
    ),
    "Conv1d": (
        SpectralConv(taps=3),
        ("SPECTRALCONV", {}),
        (32, 16, 3),
        {"fan_in": (1, 2), "fan_out": (0,)},
    ),
    "Conv2d": (
        SpectralConv(taps=9),
        ("SPECTRALCONV", {}),
        (32, 4, 3, 3),
        {"fan_in": (1, 2, 3), "fan_out": (0,)},
    ),
}


def ours(case, constrained, alpha, gradients):
    norm, _, shape, axes = case
    spec = {"w": LeafSpec("hidden", **axes, norm=norm, radius=RADIUS)}
    optimizer = scion(RATE, spec, momentum=1 - alpha, constrained=constrained)
    params = {"w": gaussian(*shape, seed=99)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)({"w": gradient}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


def theirs(case, constrained, alpha, gradients):
    import torch
    from pytorch_optimizer.optimizer.scion import SCION, LMONorm

    _, (name, options), shape, _ = case
    stored = shape[:1] if name == "BIAS" else shape  # a vector has no axis of length one there
    start = np.array(gaussian(*shape, seed=99))
    weight = torch.nn.Parameter(torch.from_numpy(start.reshape(stored)))
    optimizer = SCION(
        [weight],
        lr=RATE,
        momentum=alpha,
        constraint=constrained,
        norm_type=LMONorm[name],
        norm_kwargs=options,
        scale=RADIUS,
    )
    for gradient in gradients:
        weight.grad = torch.from_numpy(np.array(gradient).reshape(stored))
        optimizer.step()
    return weight.detach().numpy().reshape(shape)


def both(case, form):
    gradients = [gaussian(*case[2], seed=seed) for seed in range(STEPS)]
    return ours(case, *form, gradients), theirs(case, *form, gradients)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EXACT)
def test_maps_that_do_not_iterate(name, form):
    """To the last bits of float32: what the reference differs from the authors' code by."""
    x, y = both(EXACT[name], form)
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SPECTRAL)
def test_newton_schulz(name, form, monkeypatch):
    """In float32 the same. In bfloat16 as far from that as the authors' rounding, not more.

    Theirs is half as far: it rounds a sum of products once, where the authors round each.
    """
    import torch
    from pytorch_optimizer.optimizer import scion as reference

    case = SPECTRAL[name]
    start = np.asarray(gaussian(*case[2], seed=99))
    here, there = sys.modules[Spectral.__module__], "zero_power_via_newton_schulz_5"
    with monkeypatch.context() as patch:
        wide = functools.partial(getattr(reference, there), dtype=torch.float32)
        patch.setattr(reference, there, wide)
        patch.setattr(here, "newton_schulz", functools.partial(newton_schulz, dtype=jnp.float32))
        exact, same = both(case, form)
    np.testing.assert_allclose(exact, same, rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(here, "newton_schulz", authors_newton_schulz)
        authors, _ = both(case, form)
    rounded = both(case, form)
    x, y, z = (distance(w - start, exact - start) for w in (*rounded, authors))
    assert 0.3 * z < y < x < 1.2 * z
