"""Sets of flags: known to this XLA, given to the step, and mistakes named."""

import pytest

from teukenjax.errors import UserError
from teukenjax.flags import catalogue, compiler_options, describe, launch
from teukenjax.recipe import ComputeConfig


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize("name", catalogue())
def test_every_set_is_known_to_this_xla(name):
    launch(ComputeConfig(flags=name))


def test_flags_of_the_recipe_win_over_the_set():
    config = ComputeConfig(xla_flags={"xla_disable_hlo_passes": ""})
    assert compiler_options(config) == {"xla_disable_hlo_passes": ""}


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ({"flags": "defualt"}, "compute.flags=defualt: did you mean 'default'?"),
        (
            {"xla_flags": {"xla_gpu_enable_latency_hidden_scheduler": True}},
            "^compute.xla_flags: .*No such compile option.*did you mean "
            "'xla_gpu_enable_latency_hiding_scheduler'",
        ),
        (
            {"xla_flags": {"xla_gpu_enable_latency_hiding_scheduler": "maybe"}},
            "'maybe' is not a valid bool value",
        ),
    ],
)
def test_a_mistake_is_named_and_does_not_abort(flags, hint):
    with pytest.raises(UserError, match=hint):
        launch(ComputeConfig(**flags))


def test_what_is_set_already_stays_and_is_printed():
    launch(ComputeConfig())
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5" in describe(ComputeConfig())
