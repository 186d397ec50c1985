"""Adapters: what they compute, what is trained, and where they live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import eight_devices, model_of, random_params, random_tokens, tiny_config

from teukenjax.model.lora import Adapted
from teukenjax.recipe import LoraConfig
from teukenjax.sharding import tree_shardings

CONFIG = tiny_config()
ALL = LoraConfig(rank=3, alpha=6.0)
SOME = LoraConfig(rank=3, alpha=6.0, targets=("query", "down"))


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CONFIG)


def with_adapters(params: dict, config: LoraConfig) -> tuple[Adapted, dict]:
    """Both factors drawn, so that every adapter shows."""
    model = Adapted(model_of(CONFIG), config)
    tree = model.around(params, jnp.uint32(0))
    rng = np.random.default_rng(3)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape) / 4, jnp.float32)  # noqa: E731
    return model, tree | {"adapters": jax.tree.map(draw, tree["adapters"])}


def test_fresh_adapters_change_nothing(params):
    model = Adapted(model_of(CONFIG), ALL)
    merged = model.merged(model.around(params, jnp.uint32(7)))
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    adapters = model.around(params, jnp.uint32(7))["adapters"]
    assert all(np.abs(factors["down"]).min() > 0 for factors in adapters.values())


def test_the_merged_weight_is_base_plus_scaled_product(params):
    model, tree = with_adapters(params, SOME)
    merged, adapters = model.merged(tree), tree["adapters"]
    assert adapters.keys() == {"query", "down"}
    L, D, H, N, F = CONFIG.layers, CONFIG.width, CONFIG.heads, CONFIG.head_dim, CONFIG.ffn
    for name, group, shape in (("query", "attention", (L, D, H, N)), ("down", "mlp", (L, F, D))):
        down, up = (np.asarray(adapters[name][key], np.float64) for key in ("down", "up"))
        product = np.stack([d @ u.reshape(3, -1) for d, u in zip(down, up, strict=True)])
        expected = np.asarray(params["layers"][group][name]) + 2.0 * product.reshape(shape)
        np.testing.assert_allclose(merged["layers"][group][name], expected, atol=1e-5)
    for name in ("key", "value", "output"):
        same = merged["layers"]["attention"][name] is params["layers"]["attention"][name]
        assert same, name


def test_every_kind_of_weight_can_have_an_adapter(params):
    model, tree = with_adapters(params, ALL)
    assert tree["adapters"].keys() == set(ALL.targets)
    merged = model.merged(tree)
    for group, names in (("attention", ALL.targets[:4]), ("mlp", ALL.targets[4:])):
        for name in names:
            before, after = params["layers"][group][name], merged["layers"][group][name]
            assert np.abs(np.asarray(after - before)).min(axis=tuple(range(1, after.ndim))).all()


def test_only_adapters_are_trained(params):
    model, tree = with_adapters(params, SOME)
    trained, frozen = model.split(tree)
    assert trained is tree["adapters"]
    jax.tree.map(np.testing.assert_array_equal, model.join(trained, frozen), tree)
    tokens = random_tokens(CONFIG, (2, 13))
    weights = jnp.ones((2, 12)) / 24

    def loss(trained):
        return model.bind(model.join(trained, frozen)).loss(tokens, weights)[0]

    gradients = jax.grad(loss)(trained)
    assert jax.tree.structure(gradients) == jax.tree.structure(trained)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_factors_are_sharded_as_the_axes_of_their_weight(strategy):
    layout = eight_devices(strategy)
    model = Adapted(model_of(CONFIG, layout), SOME)
    placed = tree_shardings(layout, model.specs, model.abstract, layout.row.parameters)
    specs = {key: placed["adapters"]["query"][key].spec for key in ("down", "up")}
    assert tuple(specs["down"]) == (None, "fsdp", None)  # layers, width, rank
    heads = "tensor" if strategy == "fsdp_tp" else None
    assert tuple(specs["up"]) == (None, None, heads, None)  # layers, rank, heads, head_dim
