"""The longest sequence whose train step fits: by the compiler, for GPUs that are not there, or run.

    uv run --extra cuda13 python tools/longest_sequence.py configs/recipes/teuken-7b.yaml \
        --hardware h200-sxm compute.remat=full 'optimizer={"name":"scion","light":true}'

One sequence per device and micro-batch, two micro-batches. A step fits when state and temporary
memory, as the compiler plans them, stay below the share of the device that JAX may use. Lengths
double until one does not fit; what is between is halved down to --step. With --run LENGTH one step
of that length is run on the devices that are here, random tokens, and its peak is the allocator's.
"""

import time
from typing import Annotated

import jax
import typer
from rich.console import Console

from teukenjax.bench.step import prepare
from teukenjax.cli.ending import run_script
from teukenjax.flags import launch
from teukenjax.hardware import named
from teukenjax.planner.compiled import compile_step
from teukenjax.recipe import Recipe, load
from teukenjax.train.step import make_train_step
from teukenjax.units import GIB

USABLE = 0.95  # as `compute.flags: default` sets it


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    hardware: Annotated[str, typer.Option(help="A file of configs/hardware.")] = "h100-sxm",
    devices: Annotated[int, typer.Option(min=1)] = 1,
    start: Annotated[int, typer.Option(min=1, help="A length that should fit.")] = 4096,
    step: Annotated[int, typer.Option(min=1, help="Resolution in tokens.")] = 4096,
    run: Annotated[int | None, typer.Option(min=1, help="Run this length here instead.")] = None,
) -> None:
    """Compiles at a handful of lengths, and prints each."""

    def of_length(length: int, devices: int) -> Recipe:
        batch = [f"batch.sequences={2 * devices}", "batch.accumulation=2"]
        given = [*(overrides or []), *batch, f"model.context={length}", "telemetry.every=null"]
        return load(recipe, given)

    if run is not None:
        launch(of_length(run, 1).compute)
        run_once(of_length(run, jax.device_count()))
        return

    hw = named(hardware)
    limit = USABLE * hw.target.memory_bytes

    def fits(length: int) -> bool:
        made = compile_step(of_length(length, devices), hw, devices)
        answer = made.memory <= limit
        print(
            f"{length:>9,} tokens: {made.memory / GIB:6.1f} GiB of {limit / GIB:.1f}, "
            f"{'fits' if answer else 'does not fit'}",
            flush=True,
        )
        return answer

    print(f"longest of {devices} × {hw.name}: {longest(fits, start=start, step=step):,} tokens")


def longest(fits, *, start: int, step: int) -> int:
    """The largest length, to ``step`` tokens, that fits; 0 if ``start`` does not."""
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low and high - low > step:
        middle = low + max((high - low) // 2 // step, 1) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def run_once(recipe: Recipe) -> None:
    """Compiles the step for the devices here, runs it once, and prints memory and time."""
    program, data = prepare(recipe, Console(), fake_data=True)
    batch = next(data)
    step = make_train_step(program).lower(program.abstract_state, batch).compile()
    planned = step.memory_analysis()
    state = jax.block_until_ready(program.init())
    start = time.perf_counter()
    _, metrics = jax.block_until_ready(step(state, batch))
    seconds = time.perf_counter() - start
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print(
        f"{recipe.model.context:,} tokens: one step of {recipe.tokens_per_step:,} in "
        f"{seconds:.1f} s, loss {float(metrics['loss']):.4f}; compiler "
        f"{(planned.argument_size_in_bytes + planned.temp_size_in_bytes) / GIB:.2f} GiB, "
        f"peak measured {'n/a' if peak is None else f'{peak / GIB:.2f} GiB'}"
    )


if __name__ == "__main__":
    run_script(main)
