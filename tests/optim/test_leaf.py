import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import gaussian

from teukenjax.errors import UserError
from teukenjax.optim import LeafSpec, light_start, match_specs, scion
from teukenjax.optim.lmo import Sign

DENSE = {"fan_in": (0,), "fan_out": (1,)}
MISSPELT = LeafSpec("hidden", **DENSE)
object.__setattr__(MISSPELT, "role", "hiden")  # past the type checks of the tests
SPLIT = LeafSpec("hidden", (0,), (1, 2), parts=(4, 1, 1))  # a fused query-key-value


def one_update(spec, gradient, **options):
    optimizer = scion(1.0, {"w": spec}, constrained=False, momentum=0.0, **options)
    params = {"w": gradient}
    return jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0]["w"])(params)


# What a leaf may want for itself.


def test_a_fused_matrix_takes_the_steps_of_its_parts():
    fused = gaussian(8, 6, 3, seed=0)
    query, key, value = fused[:, :4], fused[:, 4:5], fused[:, 5:]
    spec = LeafSpec("hidden", (0,), (1, 2))
    separate = [one_update(spec, part) for part in (query, key, value)]
    update = one_update(SPLIT, fused)
    np.testing.assert_allclose(update, np.concatenate(separate, axis=1), rtol=1e-6)
    assert np.abs(update - one_update(spec, fused)).max() > 0.1


def test_radius_and_multiplier_of_a_leaf_go_before_its_roles():
    g = gaussian(6, 4, seed=1)
    plain = one_update(LeafSpec("hidden", **DENSE), g, preset="untied")
    own = LeafSpec("hidden", **DENSE, radius=3.0, multiplier=0.5)
    update = one_update(own, g, preset="untied", radius={"hidden": 7.0}, multiplier={"hidden": 9.0})
    np.testing.assert_allclose(update, 1.5 * plain, rtol=1e-6)


def test_the_multiplier_of_a_leaf_holds_for_its_decay():
    w = {"w": gaussian(6, 4, seed=2)}
    optimizer = scion(0.1, {"w": LeafSpec("hidden", **DENSE, multiplier=0.5)})
    update, _ = optimizer.update({"w": jnp.zeros((6, 4))}, optimizer.init(w), w)
    np.testing.assert_allclose(update["w"], -0.05 * w["w"], rtol=1e-6)


def test_the_norm_of_a_leaf_goes_before_its_roles():
    g = gaussian(6, 4, seed=3)
    spec = LeafSpec("hidden", **DENSE, norm=Sign())
    np.testing.assert_allclose(one_update(spec, g, preset="untied"), -np.sign(g) / 6, rtol=1e-6)


def test_a_named_stack_is_the_stack_that_is_left_over():
    g = gaussian(3, 6, 4, seed=4)
    named = LeafSpec("hidden", (1,), (2,), stack=(0,))
    unnamed = LeafSpec("hidden", (1,), (2,))
    np.testing.assert_array_equal(one_update(named, g), one_update(unnamed, g))


# Mistakes are found at construction where that can be, by the leaf's path.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hidden", "no role: 'hidden' is no LeafSpec"),
        (MISSPELT, "role='hiden': one of input, hidden, output, gain"),
        (LeafSpec("hidden", **DENSE, radius=0.0), "radius=0.0: must be positive"),
        (LeafSpec("hidden", **DENSE, radius=-1.0), "radius=-1.0: must be positive"),
        (LeafSpec("hidden", **DENSE, radius=float("nan")), "radius=nan: must be positive"),
        (LeafSpec("hidden", **DENSE, multiplier=-0.5), "multiplier=-0.5: must be positive"),
        (LeafSpec("hidden", (1,), (2,), stack=(1,)), r"stack=\(1,\): axis 1 is also in a fan"),
        (LeafSpec("hidden", (1,), (1,)), "an axis is named twice"),
    ],
)
def test_wrong_specs_fail_at_construction(spec, message):
    with pytest.raises(ValueError, match=rf"^layers\.w: .*{message}"):
        scion(1.0, {"layers": {"w": spec}})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LeafSpec("hidden", (0,), (1,), stack=()), "axis 2 of .8, 6, 3. is in none of them"),
        (LeafSpec("hidden", (0,), (1, 2), parts=(4, 1)), "add up to 5, but axis 1 .* has 6"),
    ],
)
def test_what_only_the_array_tells_fails_at_init(spec, message):
    optimizer = scion(1.0, {"w": spec})
    with pytest.raises(ValueError, match=rf"^w: .*{message}"):
        optimizer.init({"w": jnp.ones((8, 6, 3))})


@pytest.mark.parametrize("name", ["radius", "multiplier"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_values_of_roles_are_positive(name, value):
    with pytest.raises(UserError, match=rf"{name}\.hidden={value}: must be positive"):
        scion(1.0, {"w": LeafSpec("hidden", **DENSE)}, **{name: {"hidden": value}})


# Specs by path.

RULES = {
    "embed": LeafSpec("input", **DENSE),
    "bias": LeafSpec("gain", (), (0,)),
    "kernel": LeafSpec("hidden", **DENSE),
}
PARAMS = {
    "embed": {"kernel": jnp.ones((9, 4))},
    "mlp": [{"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}],
}


def test_the_first_rule_that_matches_a_path_decides():
    specs = match_specs(PARAMS, RULES)
    assert specs["embed"]["kernel"].role == "input"
    assert specs["mlp"][0]["kernel"].role == "hidden"
    assert specs["mlp"][0]["bias"].role == "gain"
    optimizer = scion(0.1, specs)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"embed|kernel": RULES["kernel"]}, r"mlp\.0\.bias: has no role"),
        (RULES | {"head": RULES["kernel"]}, "'head': decides no parameter"),
        (RULES | {"bias": RULES["kernel"]}, r"mlp\.0\.bias: .* the array has 1 axes"),
        (RULES | {"bias": LeafSpec("gain", (), (0,), parts=(3,))}, r"mlp\.0\.bias: parts=\(3,\)"),
    ],
)
def test_rules_and_parameters_must_fit(rules, message):
    with pytest.raises(ValueError, match=message):
        match_specs(PARAMS, rules)


# The light form.


def test_the_light_form_is_the_same_optimizer_with_one_buffer_less():
    """Directions do not see that d is 1/(1 − β) times as long; twice as long rounds alike."""
    specs, beta = match_specs(PARAMS, RULES), 0.5
    full = scion(0.05, specs, momentum=beta, epsilon=1e-20)
    light = scion(0.05, specs, momentum=beta, epsilon=1e-20, light=True)
    x, y = PARAMS, PARAMS
    state_x, state_y = full.init(x), light.init(y)
    for seed in range(4):
        g = jax.tree.map(lambda p: gaussian(*p.shape, seed=seed + p.size), PARAMS)  # noqa: B023
        updates, state_x = full.update(g, state_x, x)
        x = optax.apply_updates(x, updates)
        summed = jax.tree.map(jnp.add, light_start(state_y, beta), g)
        updates, state_y = light.update(summed, state_y, y)
        y = optax.apply_updates(y, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), x, y)
    assert jax.tree.structure(state_x) == jax.tree.structure(state_y)


@pytest.mark.parametrize("options", [{"nesterov": True}, {"momentum": 0.0}])
def test_the_light_form_wants_plain_momentum(options):
    with pytest.raises(UserError, match="light with momentum"):
        scion(0.1, match_specs(PARAMS, RULES), light=True, **options)
