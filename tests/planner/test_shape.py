"""Parameters and FLOPs, against the model itself and against published figures."""

import dataclasses

import pytest

from tests.tiny import proxy_config, tiny_config
from teukenjax.errors import UserError
from teukenjax.model import Functional, flops_per_token, single_device
from teukenjax.planner.remat import POLICIES, remat
from teukenjax.planner.shape import MPT, Shape
from teukenjax.planner.table import PUBLISHED, read_rows
from teukenjax.recipe import load


def gains(model: Functional) -> int:
    config = model.config
    return (2 * config.layers + 1) * config.width if config.norm_gain else 0


@pytest.mark.parametrize("config", [tiny_config(), proxy_config()], ids=["tied", "untied"])
def test_parameters_are_those_of_the_model_without_its_gains(config):
    model = single_device(config)
    held = sum(array.size for array in _leaves(model.abstract))
    assert Shape.of(config).parameters == held - gains(model)


@pytest.mark.parametrize("config", [tiny_config(), proxy_config()], ids=["tied", "untied"])
def test_flops_are_those_of_training_but_for_padding_and_gains(config):
    shape = dataclasses.replace(Shape.of(config), vocab=config.vocab_size)
    counted = flops_per_token(config) - 6 * gains(single_device(config))
    assert shape.model_flops(config.context) == counted


def test_matrices_are_all_the_weights_of_the_layers():
    shape = Shape.of(load("configs/recipes/teuken-7b.yaml").model)
    assert sum(count * m * n for count, m, n in shape.matrices()) == shape.layer_weights


def test_the_published_mfu_column_is_reproduced():
    for row in read_rows(PUBLISHED / "mosaic_h100.csv"):
        sequence = int(row["seq_len"])
        flops = Shape.mpt(row["model"], sequence).model_flops(sequence, full_square=True)
        mfu = 100 * float(row["tokens_per_s_per_gpu"]) * flops / 989.4e12
        assert mfu == pytest.approx(float(row["mfu_pct"]), rel=3e-3)


def test_an_unknown_model_is_answered_with_the_known():
    with pytest.raises(UserError, match="model '6b' is not known"):
        Shape.mpt("6b", 2048)


@pytest.mark.parametrize("name", ["760m", "70b"])
def test_models_are_called_by_what_they_hold(name):
    billions = float(name[:-1]) / (1000 if name.endswith("m") else 1)
    assert Shape.mpt(name, 2048).parameters / 1e9 == pytest.approx(billions, rel=0.1)
    assert name in MPT


def test_policies_that_keep_more_compute_less():
    shape = Shape.of(tiny_config())
    rows = [remat(shape, policy) for policy in POLICIES]  # from "none" to "full"
    kept, again = [row.kept for row in rows], [row.matmul for row in rows]
    assert kept == sorted(kept, reverse=True)
    assert again == sorted(again)
    assert again[0] == 0


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
