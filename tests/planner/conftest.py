"""Recipes and questions small enough to check against arrays and programs."""

import pytest

from teukenjax.hardware import named
from teukenjax.planner.search import Question
from teukenjax.planner.step_time import Setting
from teukenjax.recipe import Recipe, load, validate


@pytest.fixture
def small():
    """A function from changes to a recipe that every strategy can place on eight devices."""

    def make(**changes) -> Recipe:
        shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
        values = {
            "out": "run",
            "steps": 20,
            "model": {"vocab_size": 500, "vocab_multiple": 64, "context": 32, **shape},
            "data": {"store": "store"},
            "batch": {"sequences": 32, "accumulation": 2},
            "optimizer": {"name": "adamw"},
            "telemetry": {"every": None},  # its vectors are no moments
        }
        return validate(Recipe, values | changes, "test")

    return make


@pytest.fixture
def teuken():
    """A function from hardware, devices and overrides to a question about Teuken-7B."""

    def ask(hardware: str = "h100-sxm", devices: int = 64, *overrides: str) -> Question:
        recipe = load("configs/recipes/teuken-7b.yaml", overrides)
        return Question(recipe, named(hardware), devices)

    return ask


@pytest.fixture
def setting_of():
    """A function from a recipe to what its plans have in common, on H100s."""

    def setting(recipe: Recipe) -> Setting:
        return Question(recipe, named("h100-sxm"), 8).setting

    return setting
