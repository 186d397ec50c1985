"""Rewrites every golden text file; review the difference before committing it.

uv run python tests/goldens/regenerate.py

A golden is a function in ``GOLDENS`` that gives file name → text; a test compares with ``check``
(the loss curves with a tolerance).
"""

import json
from pathlib import Path

import jax
import numpy as np

from teukenjax.model import Functional
from teukenjax.recipe import (
    ComputeConfig,
    ModelConfig,
    Recipe,
    ShardingConfig,
    load,
    read_yaml,
    to_yaml,
    validate,
)
from teukenjax.sharding import STRATEGIES, abstract_layout, make_layout, tree_shardings
from teukenjax.train.batch import Batch, batch_sharding
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
RECIPES = (CONFIGS / "quickstart.yaml", *sorted((CONFIGS / "recipes").glob("*.yaml")))
STEPS = 20
OPTIMIZERS = {
    "scion": {"name": "scion", "learning_rate": 2e-4},
    "adamw": {"name": "adamw", "learning_rate": 3e-3},
}
TINY = {
    "out": "unused",
    "steps": STEPS,
    "model": {
        "vocab_size": 500,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "ffn": 64,
        "context": 32,
    },
    "data": {},
    "batch": {"sequences": 16, "accumulation": 2},
    "schedule": [
        {"shape": "linear", "steps": 4, "start": 0.0},
        {"shape": "cosine", "end": 0.1},
    ],
    "sharding": {"strategy": "ddp"},
    "compute": {"dtype": "float32", "head_chunk": 64},
}
MESHES = {"hsdp": {"replica": 2}, "fsdp_tp": {"tensor": 2}}  # of 8 devices; else fsdp=8


def recipes() -> dict[str, str]:
    """Every shipped recipe, resolved."""
    return {f"recipes/{path.stem}.yaml": to_yaml(load(path)) for path in RECIPES}


def shardings() -> dict[str, str]:
    """Where each array of Teuken-7B lives on eight devices, for each strategy."""
    path = CONFIGS / "models" / "teuken-7b.yaml"
    config = validate(ModelConfig, read_yaml(path), str(path))
    return {"shardings.txt": "\n".join(_placements(config, strategy) for strategy in STRATEGIES)}


def _placements(config: ModelConfig, strategy: str) -> str:
    layout = abstract_layout(ShardingConfig(strategy=strategy, **MESHES.get(strategy, {})), 8)
    model = Functional(config, ComputeConfig(), layout)
    row = layout.row
    columns = [
        tree_shardings(layout, model.specs, model.abstract, rule)
        for rule in (row.parameters, row.gradients, row.optimizer)
    ]
    mesh = " ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    lines = [_row(f"{strategy}: {mesh}", "shape", "parameter", "gradient", "optimizer")]
    arrays = jax.tree_util.tree_leaves_with_path(model.abstract)
    specs = zip(*(jax.tree.leaves(column) for column in columns), strict=True)
    for (path, array), placed in zip(arrays, specs, strict=True):
        name = ".".join(key.key for key in path)
        placements = (" ".join(map(_axes, sharding.spec)) for sharding in placed)
        lines.append(_row(name, str(array.shape), *placements))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    widths = (40, 24, 20, 20, 0)
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _axes(entry) -> str:
    """One entry of a PartitionSpec; a dot is a whole axis."""
    return "+".join(entry) if isinstance(entry, tuple) else entry or "."


def loss_curves() -> dict[str, str]:
    """The losses, rounded to what machines agree on (see the test)."""
    curves = {name: [round(x, 6) for x in losses(name)] for name in OPTIMIZERS}
    return {"loss_curves.json": json.dumps(curves, indent=1) + "\n"}


def losses(optimizer: str) -> list[float]:
    """The loss of each step on one device."""
    recipe = validate(Recipe, TINY | {"optimizer": OPTIMIZERS[optimizer]}, "golden")
    layout = make_layout(recipe.sharding, jax.devices()[:1])
    program = Program(recipe, layout, platform="cpu")
    step, state, curve = make_train_step(program), program.init(), []
    for tokens in _batches():
        state, metrics = step(state, jax.device_put(Batch(tokens), batch_sharding(layout)))
        curve.append(float(metrics["loss"]))
    return curve


def _batches() -> np.ndarray:
    """[steps, A, B/A, S + 1]: each token is mostly the one before plus one, so there is a rule."""
    rng = np.random.default_rng(0)
    jumps = np.where(rng.random((STEPS, 2, 8, 33)) < 0.2, rng.integers(500, size=(1, 33)), 1)
    return (np.cumsum(jumps, axis=-1) % 500).astype(np.int32)


GOLDENS = (recipes, shardings, loss_curves)


def check(files: dict[str, str]) -> None:
    """Asserts that the golden files hold exactly this text."""
    for name, text in files.items():
        path = HERE / name
        assert path.is_file(), f"{name} is missing: uv run python tests/goldens/regenerate.py"
        assert path.read_text(encoding="utf-8") == text, name


if __name__ == "__main__":
    for golden in GOLDENS:
        for name, text in golden().items():
            path = HERE / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)
