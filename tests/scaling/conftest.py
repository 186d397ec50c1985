"""A token store and a sweep small enough to train in seconds."""

import pytest
from rich.console import Console

RECIPE = """
out: unused
steps: 1
seed: 7
model: {{width: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, ffn: 24, context: 16,
  tied: false, norms: everywhere, norm_gain: false, init: boundary}}
data: {{store: {store}}}
batch: {{sequences: 8, accumulation: 2}}
optimizer: {{name: scion, preset: untied, momentum: 0.0, constrained: false, epsilon: 1.0e-20}}
compute: {{dtype: float32, remat: none, head_chunk: 64}}
"""
SWEEP = """
recipe: recipe.yaml
models: {models}
batch: [8]
log2_learning_rate: [-4, -2, 0]
log2_tokens: {tokens}
seeds: {seeds}
multipliers: {multipliers}
"""


def write_sweep(
    folder, store, *, models="{a: {}}", tokens="[9, 10]", seeds="[7]", multipliers="[{}]"
):
    """A sweep's file, beside its recipe."""
    (folder / "recipe.yaml").write_text(RECIPE.format(store=store.path))
    path = folder / "sweep.yaml"
    axes = {"models": models, "tokens": tokens, "seeds": seeds, "multipliers": multipliers}
    path.write_text(SWEEP.format(**axes))
    return path


@pytest.fixture
def make_sweep(store, tmp_path):
    """``make_sweep(tokens="[9]")``: the path of a sweep's file."""
    return lambda **axes: write_sweep(tmp_path, store, **axes)


@pytest.fixture(scope="session")
def swept(store, tmp_path_factory):
    """The folder of a finished sweep: two models, three rates, two horizons."""
    from teukenjax.scaling.spec import load_sweep
    from teukenjax.scaling.sweep import work

    folder = tmp_path_factory.mktemp("swept")
    path = write_sweep(folder, store, models="{a: {}, wide: {model.width: 32}}")
    work(load_sweep(path), folder / "out", Console(quiet=True))
    return folder / "out"
