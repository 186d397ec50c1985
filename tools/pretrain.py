"""Pre-training as a plain script: the loop of `teukenjax train` without its comforts.

    uv run python tools/pretrain.py configs/quickstart.yaml steps=20

It reads a recipe, prepares or opens the token store, shards the state over all devices, and
steps. No checkpoints, no evaluation: copy it when your loop needs a shape of its own.
"""

from typing import Annotated

import jax
import typer
from rich.console import Console

from teukenjax.cli.ending import run_script
from teukenjax.data.loader import batches
from teukenjax.data.prepare import open_store
from teukenjax.data.stream import Stream
from teukenjax.flags import launch
from teukenjax.recipe import load
from teukenjax.sharding import make_layout
from teukenjax.train.batch import place_batch
from teukenjax.train.loop import resolve
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step


def main(
    path: Annotated[str, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Trains what the recipe at ``path`` describes."""
    recipe = load(path, overrides or [])
    launch(recipe.compute)  # XLA's flags and the environment, before anything touches a device
    store = open_store(recipe, Console())
    recipe = resolve(recipe, store.tokenizer())

    # Where everything lives: a mesh over all devices and a strategy, one row of the table.
    layout = make_layout(recipe.sharding)
    program = Program(recipe, layout, platform=jax.devices()[0].platform)
    state = program.init()  # each device makes its own shards
    train_step = make_train_step(program)

    # Which tokens come when is a pure function of the seed and the row.
    batch = recipe.batch
    stream = Stream.of(recipe, store)
    rows = range(batch.sequences)
    loaded = batches(stream, batch_size=batch.sequences, first_step=0, rows=rows)

    for step, sample in zip(range(recipe.steps), loaded, strict=False):
        placed = place_batch(sample, batch.accumulation, layout)
        state, metrics = train_step(state, placed)
        if step % 10 == 0 or step + 1 == recipe.steps:
            print(f"step {step + 1}: loss {float(metrics['loss']):.3f}")
    loaded.close()


if __name__ == "__main__":
    run_script(main)
