"""Rewrites every golden text file; review the difference before committing it.

uv run python tests/goldens/regenerate.py

A golden is a function in ``GOLDENS`` that gives file name → text; a test compares with ``check``.
"""

from pathlib import Path

import jax

from teukenjax.model import Functional
from teukenjax.recipe import ComputeConfig, ModelConfig, ShardingConfig, load, read_yaml, to_yaml
from teukenjax.recipe import validate as validated
from teukenjax.sharding import STRATEGIES, abstract_layout, tree_shardings

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
RECIPES = (CONFIGS / "quickstart.yaml", *sorted((CONFIGS / "recipes").glob("*.yaml")))
MESHES = {"hsdp": {"replica": 2}, "fsdp_tp": {"tensor": 2}}  # of 8 devices; else fsdp=8


def recipes() -> dict[str, str]:
    """Every shipped recipe, resolved."""
    return {f"recipes/{path.stem}.yaml": to_yaml(load(path)) for path in RECIPES}


def shardings() -> dict[str, str]:
    """Where each array of Teuken-7B lives on eight devices, for each strategy."""
    path = CONFIGS / "models" / "teuken-7b.yaml"
    config = validated(ModelConfig, read_yaml(path), str(path))
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


GOLDENS = (recipes, shardings)


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
