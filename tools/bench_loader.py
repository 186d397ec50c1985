"""How fast the loader is, alone: tokens a second for a recipe's batches, and to the first one.

    uv run python tools/bench_loader.py configs/recipes/eu24-small.yaml data.store=STORE \
        model.context=4096 batch.sequences=64 data.packing=best_fit

One H100 takes about 10,000 tokens a second of a 7B; the loader should give 20 times that.
"""

import os
import platform
import statistics
import time
from contextlib import closing
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from teukenjax.cli.ending import run_script
from teukenjax.data.loader import batches
from teukenjax.data.prepare import open_store
from teukenjax.data.stream import Stream
from teukenjax.recipe import load

STEPS = 100
REPEATS = 5
FAR = 1_000_000  # a step


def main(
    path: Annotated[str, typer.Argument(metavar="RECIPE")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Reads ``STEPS`` batches, ``REPEATS`` times from different places of the stream."""
    recipe = load(path, overrides or [])
    store = open_store(recipe, Console())
    tokens = recipe.tokens_per_step
    start = time.perf_counter()
    stream = Stream.of(recipe, store)
    made = time.perf_counter() - start
    speeds, first, cpu = [], [], time.process_time()
    for repeat in range(REPEATS):
        start = time.perf_counter()
        loaded = batches(
            stream,
            batch_size=recipe.batch.sequences,
            first_step=repeat * FAR,
            rows=range(recipe.batch.sequences),
        )
        with closing(loaded):
            next(loaded)
            begun = time.perf_counter()
            first.append(begun - start)
            for _ in range(STEPS):
                next(loaded)
            speeds.append(STEPS * tokens / (time.perf_counter() - begun))
    cpu = REPEATS * STEPS * tokens / (time.process_time() - cpu)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"grain {version('grain')}, tensorstore {version('tensorstore')}")
    print(f"batches of {recipe.batch.sequences} × {recipe.model.context}, {recipe.data.packing}")
    print(f"stream made in {made * 1e3:.0f} ms; first batch of step 0, 1,000,000, … in ms:", end="")
    print("".join(f" {seconds * 1e3:.0f}" for seconds in first))
    spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
    print(f"{statistics.median(speeds):,.0f} tokens/s, median of {REPEATS}; {spread}")
    print(f"{cpu:,.0f} tokens for each second of a CPU")


if __name__ == "__main__":
    run_script(main)
