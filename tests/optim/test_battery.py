"""What an optax optimizer is expected to live with, tried on Scion's presets and on AdamW."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import gaussian

from teukenjax.optim import LeafSpec, build_optimizer, newton_schulz, scion
from teukenjax.optim.lmo import Spectral
from teukenjax.optim.scion import preset_norms
from teukenjax.recipe import AdamWConfig

SPECS = {
    "table": LeafSpec("input", (0,), (1,)),
    "hidden": LeafSpec("hidden", (1,), (2,)),
    "gain": LeafSpec("gain", (), (0,)),
    "head": LeafSpec("output", (0,), (1,)),
}
SHAPES = {"table": (12, 8), "hidden": (2, 8, 8), "gain": (8,), "head": (8, 12)}
RADII = dict.fromkeys(("input", "hidden", "output", "gain"), 8.0)
OPTIMIZERS = {
    "tied": functools.partial(scion, radius=RADII),
    "untied": functools.partial(scion, preset="untied", constrained=False),
    "no momentum": functools.partial(scion, preset="untied", constrained=False, momentum=0.0),
    "nesterov": functools.partial(scion, radius=RADII, nesterov=True),
    "decay": functools.partial(scion, preset="untied", constrained=False, weight_decay=0.01),
    "adamw": lambda rate, specs: build_optimizer(AdamWConfig(name="adamw"), _schedule(rate), specs),
}


def _schedule(rate):
    return rate if callable(rate) else lambda step: rate


@pytest.fixture(params=OPTIMIZERS)
def make(request, monkeypatch):
    """``make(learning_rate, specs)``, with a Newton–Schulz that no order of summation changes."""
    exact = functools.partial(newton_schulz, dtype=jnp.float32)
    monkeypatch.setattr(sys.modules[Spectral.__module__], "newton_schulz", exact)
    return OPTIMIZERS[request.param]


def tree(seed=0, dtype=jnp.float32):
    return {
        name: gaussian(*shape, seed=10 * seed + i, dtype=dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def loss(params, tokens):
    """A network of all the roles: one-hot in, two residual layers, a gain, logits out."""
    x = params["table"][tokens]
    for layer in params["hidden"]:
        x = x + jnp.tanh(x @ layer)
    logits = (params["gain"][None, :] * x) @ params["head"] / 8
    targets = (tokens + 1) % SHAPES["table"][0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def updated(optimizer, params, state, gradients):
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def descend(optimizer, loss, params, steps):
    def step(carry, _):
        params, state = carry
        return updated(optimizer, params, state, jax.grad(loss)(params)), None

    start = (params, optimizer.init(params))
    return jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[0][0])(start)


def assert_close(x, y, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), x, y)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# Toy problems. Steps have a fixed size, so the learning rate has to end at zero.


def test_parabola(make):
    target = jax.tree.map(lambda leaf: leaf / 4, tree(1))

    def parabola(params):
        return optax.tree.norm(optax.tree.sub(params, target), squared=True)

    start = optax.tree.zeros_like(target)
    optimizer = make(optax.linear_schedule(0.05, 0.0, 400), SPECS)
    end = descend(optimizer, parabola, start, 400)
    assert parabola(end) < 1e-2 * parabola(start)


@pytest.mark.parametrize("role", ["gain", "output"])
def test_rosenbrock(make, role):
    """The curved valley, with the two coordinates as a gain and as a head for one feature."""
    shape, fan_in, fan_out = ((2,), (), (0,)) if role == "gain" else ((1, 2), (0,), (1,))

    def rosenbrock(params):
        x, y = params["w"].ravel()
        return (1 - x) ** 2 + 10 * (y - x**2) ** 2

    start = {"w": jnp.full(shape, -0.5)}
    optimizer = make(optax.linear_schedule(0.02, 0.0, 2000), {"w": LeafSpec(role, fan_in, fan_out)})
    end = descend(optimizer, rosenbrock, start, 2000)
    assert rosenbrock(end) < 5e-3 * rosenbrock(start)


def test_small_network_learns(make):
    tokens = jnp.arange(12)
    start = jax.tree.map(lambda leaf: leaf / 2, tree())
    optimizer = make(optax.linear_schedule(0.03, 0.0, 200), SPECS)
    end = descend(optimizer, lambda params: loss(params, tokens), start, 200)
    assert loss(end, tokens) < 0.1 < 2.0 < loss(start, tokens)


# How far weights go when the gradient does not turn.


@pytest.mark.parametrize("role", ["input", "output", "gain"])
def test_growth_is_at_most_the_sum_of_the_steps(role):
    """‖W_k‖ <= ‖W_0‖ + η ρ k without decay, and equal from zero: growth is ballistic."""
    spec, norm, weight = one_matrix(role)
    optimizer = scion(0.5, spec, preset="untied", constrained=False)
    loss = functools.partial(jnp.vdot, weight)
    from_zero = descend(optimizer, loss, jnp.zeros_like(weight), 20)
    np.testing.assert_allclose(norm.norm(from_zero), 0.5 * 20, rtol=1e-5)
    start = norm.boundary_init(jax.random.key(0), weight.shape)
    assert norm.norm(descend(optimizer, loss, start, 20)) <= norm.norm(start) + 0.5 * 20 + 1e-4


@pytest.mark.parametrize("role", ["input", "output"])
def test_decay_holds_the_norm_at_radius_over_decay(role):
    spec, norm, weight = one_matrix(role)
    optimizer = scion(0.1, spec, preset="untied", constrained=False, weight_decay=0.5)
    end = descend(optimizer, lambda w: jnp.vdot(weight, w), 5 * weight, 400)
    np.testing.assert_allclose(norm.norm(end), 1 / 0.5, rtol=1e-4)


def one_matrix(role):
    """A spec, its norm in the untied preset, and a matrix to go along."""
    fan_in = () if role == "gain" else (0,)
    norm = preset_norms("untied")[role]
    return LeafSpec(role, fan_in, (0, 1) if role == "gain" else (1,)), norm, gaussian(6, 4)


# Transformations around it.


def test_injected_learning_rate_is_the_learning_rate(make):
    injected = optax.inject_hyperparams(lambda learning_rate: make(learning_rate, SPECS))(
        learning_rate=0.1
    )
    params, gradients = tree(), tree(1)
    state = injected.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.025)
    result, _ = jax.jit(functools.partial(updated, injected))(params, state, gradients)
    plain = make(0.025, SPECS)
    expected, _ = updated(plain, params, plain.init(params), gradients)
    assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_accumulation_is_the_large_batch(make):
    tokens = jnp.asarray(np.random.default_rng(0).integers(12, size=(3, 8)))
    params, gradient = tree(), jax.jit(jax.grad(loss))
    optimizer = make(0.05, SPECS)
    accumulating = optax.MultiSteps(optimizer, every_k_schedule=3)
    step = jax.jit(functools.partial(updated, accumulating))
    result, state = params, accumulating.init(params)
    for part in tokens:
        result, state = step(result, state, gradient(result, part))
    expected, _ = updated(
        optimizer, params, optimizer.init(params), gradient(params, tokens.ravel())
    )
    assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_chain_with_clipping_and_a_schedule_in_front(make):
    """A gradient that is clipped to a tenth points the same way; AdamW has a memory of its size."""
    chained = optax.chain(optax.clip_by_global_norm(0.1), make(0.05, SPECS))
    params, gradients = tree(), tree(1)
    result, _ = jax.jit(functools.partial(updated, chained))(
        params, chained.init(params), gradients
    )
    plain = make(0.05, SPECS)
    expected, _ = updated(plain, params, plain.init(params), gradients)
    assert_close(result, expected, rtol=1e-3, atol=1e-3)


def test_masked_leaves_pass_through(make):
    trained = {name: name != "table" for name in SPECS}
    masked = optax.masked(make(0.05, SPECS), trained)
    params, gradients = tree(), tree(1)
    result, state = jax.jit(functools.partial(updated, masked))(
        params, masked.init(params), gradients
    )
    np.testing.assert_array_equal(result["table"], params["table"] + gradients["table"])
    plain = make(0.05, SPECS)
    expected, _ = updated(plain, params, plain.init(params), gradients)
    for name in ("hidden", "head", "gain"):
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-4, atol=1e-5)
    assert types(state) == types(masked.init(params))


def test_leaves_that_are_none(make):
    frozen = {**tree(), "table": None}
    gradients = {**tree(1), "table": None}
    optimizer = make(0.05, SPECS)
    result, state = jax.jit(functools.partial(updated, optimizer))(
        frozen, optimizer.init(frozen), gradients
    )
    assert result["table"] is None
    assert types(state) == types(optimizer.init(frozen))


# Types, and what jit, scan, vmap and donation ask for.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_do_not_change(make, dtype):
    params, gradients = tree(dtype=dtype), tree(1, dtype)
    optimizer = make(0.05, SPECS)
    state = optimizer.init(params)
    new_params, new_state = jax.eval_shape(
        functools.partial(updated, optimizer), params, state, gradients
    )
    assert types(new_params) == types(params)
    assert types(new_state) == types(state)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_donated_buffers(make):
    optimizer = make(0.05, SPECS)
    step = jax.jit(functools.partial(updated, optimizer), donate_argnums=(0, 1))
    params, gradients = tree(), tree(1)
    expected, _ = updated(optimizer, params, optimizer.init(params), gradients)
    donated = jax.tree.map(jnp.copy, params)
    result, state = step(donated, jax.jit(optimizer.init)(params), gradients)
    assert donated["hidden"].is_deleted()
    assert_close(result, expected, rtol=1e-4, atol=1e-5)
    step(result, state, gradients)  # what came out goes in


def test_vmap_over_learning_rates(make):
    params, gradients = tree(), tree(1)

    def one_step(rate):
        optimizer = make(lambda step: rate, SPECS)
        return updated(optimizer, params, optimizer.init(params), gradients)[0]

    rates = jnp.array([0.01, 0.1, 0.3])
    together = jax.jit(jax.vmap(one_step))(rates)
    for i, rate in enumerate(rates):
        alone = jax.jit(one_step)(rate)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-4, atol=1e-5)
