"""What an optimizer step costs beside the rest of a training step.

    uv run python tools/bench_optimizer.py configs/recipes/teuken-7b.yaml --out optimizer.json
    uv run python tools/bench_optimizer.py configs/quickstart.yaml model.vocab_size=1024

For each optimizer: `update` and the addition to the parameters, at the recipe's shapes, on random
gradients, sharded over all devices as the recipe says. Beside it the time of one micro-batch,
forward and backward, so that shares of a whole step can be told. Prints hardware, versions and a
table of medians; on a CPU the shares mean little.
"""

import functools
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from rich.console import Console
from rich.table import Table

from teukenjax.cli.ending import run_script
from teukenjax.optim import build_optimizer
from teukenjax.optim.build import is_light
from teukenjax.optim.guard import guard
from teukenjax.recipe import load
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch, place_batch
from teukenjax.train.state import Program
from teukenjax.train.step import accumulate_in_place
from teukenjax.units import GIB

OPTIMIZERS = {
    "adamw": {"name": "adamw", "clip_norm": None},
    "scion kj": {"name": "scion"},
    "scion kj, gram": {"name": "scion", "method": "gram"},
    "scion you": {"name": "scion", "coefficients": "you"},
    "scion you, gram": {"name": "scion", "coefficients": "you", "method": "gram"},
    "scion polar_express (8 steps), gram": {
        "name": "scion",
        "coefficients": "polar_express",
        "method": "gram",
    },
    "scion kj, light": {"name": "scion", "light": True},
}
BY_COMPILER = "scion kj, left to the compiler"  # how to orthogonalise sharded matrices


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    sequences: Annotated[int, typer.Option(help="Per device, in the micro-batch.")] = 2,
    tokens: Annotated[list[int], typer.Option(help="Per device and step, for shares.")] = (
        131_072,
        1_048_576,
    ),
    repeats: Annotated[int, typer.Option(min=2)] = 5,
    only: Annotated[str, typer.Option(help="Optimizers whose name contains this.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where to write the rows as JSON.")] = None,
) -> None:
    """Times every optimizer of the list, and one micro-batch."""
    devices = jax.devices()
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    print(f"{len(devices)} × {devices[0].device_kind}, {versions}")
    base = load(recipe, overrides or [])

    def program(optimizer: dict) -> Program:
        section = load(recipe, [*(overrides or []), f"optimizer={json.dumps(optimizer)}"]).optimizer
        changed = base.model_copy(update={"optimizer": section})
        return Program(changed, make_layout(base.sharding), platform=devices[0].platform)

    chosen = {name: options for name, options in OPTIMIZERS.items() if only in name}
    if not chosen and only not in BY_COMPILER:
        raise typer.BadParameter(f"{only}: in none of {', '.join(OPTIMIZERS)}")
    per_token = time_micro_batch(program(OPTIMIZERS["scion kj"]), sequences, repeats)
    print(f"forward and backward: {1e6 * per_token:.3f} µs per token and device")
    rows, timed = [], {name: program(options) for name, options in chosen.items()}
    if len(devices) > 1 and only in BY_COMPILER:
        timed[BY_COMPILER] = left_to_compiler(program(OPTIMIZERS["scion kj"]))
    for name, each in timed.items():
        rows.append({"optimizer": name, **time_update(each, repeats)})
        print(json.dumps(rows[-1]), flush=True)
        for count in tokens:
            rows[-1][f"share at {count:,}"] = share(rows[-1]["median_s"], count * per_token)
    show(rows, tokens)
    if out is not None:
        out.write_text(json.dumps({"s_per_token": per_token, "rows": rows}, indent=1))


def left_to_compiler(program: Program) -> Program:
    """The same program with an optimizer that was told no placements."""
    program.optimizer = guard(
        build_optimizer(program.recipe.optimizer, program.learning_rate, program.leaf_specs),
        light=is_light(program.recipe.optimizer),
    )
    return program


def share(update_s: float, rest_s: float) -> float:
    """Of the whole step, what the optimizer takes."""
    return update_s / (update_s + rest_s)


def time_update(program: Program, repeats: int) -> dict:
    """Seconds of an optimizer step and the memory that the compiler plans for it."""
    optimizer = program.optimizer

    def step(params, opt_state, grads):
        healthy = jnp.zeros(())
        updates, opt_state = optimizer.update(grads, opt_state, params, value=healthy)
        return optax.apply_updates(params, updates), opt_state

    state, placed = program.init(), (program.placed.params, program.shardings.opt_state)
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=placed)
    grads = random_like(program)
    compiled = jitted.lower(state.params, state.opt_state, grads).compile()
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    times, carry = [], (state.params, state.opt_state)
    del state
    for _ in range(repeats + 1):
        start = time.perf_counter()
        carry = jax.block_until_ready(compiled(*carry, grads))
        times.append(time.perf_counter() - start)
    del carry, grads
    gc.collect()
    return {
        "median_s": statistics.median(times[1:]),
        "min_s": min(times[1:]),
        "max_s": max(times[1:]),
        "temp_gib": compiled.memory_analysis().temp_size_in_bytes / GIB,
        "state_gib": moments / GIB,
    }


def random_like(program: Program):
    """fp32 gradients of standard normal entries, placed as gradients are."""

    @functools.partial(jax.jit, out_shardings=program.placed.gradients)
    def draw():
        leaves, treedef = jax.tree.flatten(program.model.abstract)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drawn = [
            jax.random.normal(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, drawn)

    return draw()


def time_micro_batch(program: Program, sequences: int, repeats: int) -> float:
    """Seconds per token and device of forward and backward: what two micro-batches add."""
    model, layout, context = program.model, program.layout, program.recipe.model.context

    def loss_fn(params, batch: Batch):
        return model.bind(params).loss(*batch)[0]

    @functools.partial(jax.jit, out_shardings=(None, program.placed.gradients))
    def gradients(params, batch: Batch):
        start = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        batch = batch.normalised()
        return accumulate_in_place(loss_fn, params, batch, start, program.placed.gradients)

    seed = jnp.uint32(0)
    params = jax.jit(model.init, out_shardings=program.placed.params)(seed)
    medians, size = [], sequences * layout.batch_shards
    for parts in (1, 3):
        shape = (parts * size, context + 1)
        drawn = np.random.default_rng(0).integers(
            model.config.vocab_size, size=shape, dtype=np.int32
        )
        batch, times = place_batch({"tokens": drawn}, parts, layout), []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            jax.block_until_ready(gradients(params, batch))
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times[1:]))
    del params
    gc.collect()
    return (medians[1] - medians[0]) / (2 * sequences * context)


def show(rows: list[dict], tokens: list[int]) -> None:
    """The table; shares are of the optimizer in a whole step, by tokens per device and step."""
    table = Table(box=None)
    for title in ("optimizer", "state GiB", "median ms", "min … max", "temporary GiB"):
        table.add_column(title, justify="left" if title == "optimizer" else "right")
    for count in tokens:
        table.add_column(f"share at {count:,}", justify="right")
    for row in rows:
        spread = f"{1e3 * row['min_s']:.1f} … {1e3 * row['max_s']:.1f}"
        shares = [f"{row[f'share at {count:,}']:.1%}" for count in tokens]
        numbers = f"{row['state_gib']:.2f}", f"{1e3 * row['median_s']:.1f}", spread
        table.add_row(row["optimizer"], *numbers, f"{row['temp_gib']:.2f}", *shares)
    Console(width=140).print(table)


if __name__ == "__main__":
    run_script(main)
