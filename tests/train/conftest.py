"""A real token store and a recipe small enough to train in seconds."""

import functools
from pathlib import Path

import jax.numpy as jnp
import pytest
from conversations import ADAMW, write_chat
from rich.console import Console

from teukenjax.optim import lmo, sharded
from teukenjax.recipe import Recipe, validate
from teukenjax.train.loop import train


@pytest.fixture
def make_recipe(make_recipe_at, tmp_path):
    """A function from changes to a recipe: ``make_recipe(steps=3, sharding={...})``."""
    return functools.partial(make_recipe_at, tmp_path)


@pytest.fixture(scope="session")
def make_recipe_at(store):
    """The same, of a run in a folder that is given first."""

    def make(folder: Path, name: str = "run", **changes) -> Recipe:
        values = {
            "out": str(folder / name),
            "steps": 20,
            "seed": 7,
            "model": {
                "vocab_size": 900,
                "width": 32,
                "layers": 2,
                "heads": 4,
                "kv_heads": 2,
                "head_dim": 8,
                "ffn": 64,
                "context": 32,
            },
            "data": {"store": str(store.path)},
            "batch": {"sequences": 16, "accumulation": 2},
            "optimizer": {"name": "scion", "learning_rate": 1e-4},
            "compute": {"dtype": "float32", "head_chunk": 16},
            "checkpoint": {"every": 10},
            "evaluation": {"documents": 1},
            "telemetry": {"every": None},  # compiles faster; test_norms has it on
        }
        return validate(Recipe, values | changes, "test")

    return make


@pytest.fixture
def exact_newton_schulz(monkeypatch):
    """Newton–Schulz in fp32: bf16 would carry a last-bit difference of two meshes into 2⁻⁸."""
    fp32 = functools.partial(lmo.newton_schulz, dtype=jnp.float32)
    monkeypatch.setattr(lmo, "newton_schulz", fp32)
    monkeypatch.setattr(sharded, "TRAVELS_AS", jnp.float32)


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """A file of conversations."""
    return write_chat(tmp_path_factory.mktemp("chat") / "chat.jsonl")


@pytest.fixture(scope="session")
def base(make_recipe_at, tmp_path_factory):
    """A run to tune."""
    recipe = make_recipe_at(tmp_path_factory.mktemp("base"), "base", steps=2, optimizer=ADAMW)
    return train(recipe, Console(quiet=True))


@pytest.fixture
def make_sft(make_recipe, chat, base):
    """``make_sft(name, lora=…, **other sections)``: a recipe that tunes the base."""

    def make(name="tuned", steps=4, sft=None, **changes) -> Recipe:
        model = make_recipe().model.model_dump() | {"context": 64}
        section = {"base": str(base), "sources": [{"data": str(chat)}], "holdout": 0.25}
        values = {
            "optimizer": ADAMW, "model": model, "data": {"packing": "best_fit"},
            "batch": {"sequences": 8}, "checkpoint": {"every": 2},
            "sft": section | (sft or {}),
        }  # fmt: skip
        return make_recipe(name, steps=steps, **values | changes)

    return make
