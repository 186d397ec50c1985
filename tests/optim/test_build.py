import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import gaussian

from teukenjax.errors import UserError
from teukenjax.optim import LeafSpec, build_optimizer, read_norms, scion
from teukenjax.recipe import AdamWConfig, RoleValues, ScionConfig, TelemetryConfig

SPECS = {
    "embedding": LeafSpec("input", (0,), (1,)),
    "up": LeafSpec("hidden", (1,), (2,)),
    "gain": LeafSpec("gain", (), (1,)),
    "head": LeafSpec("output", (0,), (1,)),
}
SHAPES = {"embedding": (12, 4), "up": (2, 4, 6), "gain": (2, 4), "head": (4, 12)}


def tree(seed):
    return {
        name: gaussian(*shape, seed=10 * seed + i) for i, (name, shape) in enumerate(SHAPES.items())
    }


def rate(step):
    return 0.1 / (1 + step)


def run(optimizer, steps=3):
    params = tree(0)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for seed in range(1, steps + 1):
        updates, state = update(tree(seed), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(x, y, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), x, y)


def test_adamw_decays_all_but_gains():
    optimizer = build_optimizer(AdamWConfig(name="adamw", weight_decay=0.5), rate, SPECS)
    params = tree(0)
    zeros = optax.tree.zeros_like(params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name in SHAPES:
        decay = 0.0 if name == "gain" else 0.5
        np.testing.assert_allclose(updates[name], -0.1 * decay * params[name], rtol=1e-6)


def test_adamw_by_hand():
    """Two steps of the published rule, with Teuken's numbers and clipping to global norm 1."""
    config = AdamWConfig(name="adamw")
    params = jax.tree.map(np.asarray, tree(0))
    mean, square = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for t in (1, 2):
        gradients = jax.tree.map(np.asarray, tree(t))
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, w in params.items():
            g = gradients[name] / norm
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g**2
            step = mean[name] / (1 - 0.9**t)
            step = step / (np.sqrt(square[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.0 if name == "gain" else 0.1
            params[name] = w - rate(t - 1) * (step + decay * w)
    result = run(build_optimizer(config, rate, SPECS), steps=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, params
    )


@pytest.mark.parametrize("norm", [None, 1e-3])
def test_clipping(norm):
    config = AdamWConfig(name="adamw", clip_norm=norm, epsilon=1.0, weight_decay=0.0)
    params = tree(0)
    optimizer = build_optimizer(config, rate, SPECS)
    updates, _ = jax.jit(optimizer.update)(tree(1), optimizer.init(params), params)
    size = float(optax.tree.norm(updates))
    assert size < 1.1e-4 if norm else size > 1e-2


def test_scion_from_the_default_section():
    built = build_optimizer(ScionConfig(name="scion"), rate, SPECS)
    assert_same(run(built), run(scion(rate, SPECS)))


HANDED_ON = {"name", "learning_rate", "clip_norm", "norm_target"}  # to others than scion()


def test_scion_hands_on_every_key():
    config = ScionConfig(
        name="scion",
        momentum=0.5,
        nesterov=True,
        constrained=False,
        weight_decay=0.01,
        preset="untied",
        radius=RoleValues(hidden=5.0),
        multiplier=RoleValues(output=0.25),
        epsilon=1e-3,
        coefficients="you",
        iterations=3,
        method="gram",
    )
    options = config.model_dump(exclude=HANDED_ON)
    default = ScionConfig(name="scion").model_dump(exclude={*HANDED_ON, "light"})
    assert not [key for key, value in default.items() if options[key] == value]
    options.update(radius={"hidden": 5.0}, multiplier={"output": 0.25})
    assert_same(
        run(build_optimizer(config, rate, SPECS), steps=2),
        run(scion(rate, SPECS, **options), steps=2),
    )


def test_light_scion_is_handed_on_with_the_gap_of_the_full_one():
    """With β = 1/2 and a first gradient g, the one buffer holds g/2 and the other g."""
    gaps = []
    for light in (False, True):
        config = ScionConfig(name="scion", momentum=0.5, light=light, epsilon=1e-20)
        optimizer = build_optimizer(config, rate, SPECS, TelemetryConfig(every=1))
        params = tree(0)
        _, state = jax.jit(optimizer.update)(tree(1), optimizer.init(params), params)
        gaps.append(read_norms(state, SPECS)["gap"])
    for name in SHAPES:
        np.testing.assert_allclose(gaps[0][name], gaps[1][name], rtol=1e-4)


def test_scion_clips_before_the_average():
    config = ScionConfig(name="scion", clip_norm=0.1)
    expected = optax.chain(optax.clip_by_global_norm(0.1), scion(rate, SPECS))
    assert_same(run(build_optimizer(config, rate, SPECS)), run(expected))


def test_unknown_coefficients_fail_when_building():
    with pytest.raises(UserError, match="coefficients='kjj'"):
        build_optimizer(ScionConfig(name="scion", coefficients="kjj"), rate, SPECS)


@pytest.mark.parametrize("name", ["scion", "adamw"])
def test_telemetry_sees_what_was_clipped_and_the_rate_of_each_role(name):
    multiplier = RoleValues(output=0.25)
    config = {
        "scion": ScionConfig(
            name="scion", momentum=0.0, constrained=False, clip_norm=0.1, multiplier=multiplier
        ),
        "adamw": AdamWConfig(name="adamw"),
    }[name]
    optimizer = build_optimizer(config, rate, SPECS, TelemetryConfig(every=2))
    params, gradients = tree(0), tree(1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2):
        _, state = update(gradients, state, params)
    norms = read_norms(state, SPECS)
    assert ("gap" in norms) == (name == "scion")
    if name == "scion":  # the tied preset's head: 3000 Σ|d|/d_in, here with d_in = 4
        clipped = 0.1 * np.asarray(gradients["head"]) / float(optax.tree.norm(gradients))
        assert norms["gap"]["head"] == pytest.approx(3000 / 4 * np.abs(clipped).sum(), rel=1e-5)
        assert norms["update"]["head"]["sign"] == pytest.approx(0.25 * rate(1) * 3000, rel=1e-5)


def test_specs_may_be_nested_and_stateful_under_jit():
    specs = {"a": [SPECS["up"], {"b": SPECS["gain"]}]}
    params = {"a": [jnp.ones((2, 4, 6)), {"b": jnp.ones((2, 4))}]}
    for config in (AdamWConfig(name="adamw"), ScionConfig(name="scion")):
        optimizer = build_optimizer(config, rate, specs)
        updates, _ = jax.jit(optimizer.update)(params, jax.jit(optimizer.init)(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
