"""The longest sequence whose train step fits, by the compiler for GPUs that are not there.

    uv run --extra cuda13 python tools/longest_sequence.py configs/recipes/teuken-7b.yaml \
        --hardware h200-sxm compute.remat=full 'optimizer={"name":"scion","light":true}'

One sequence per device and micro-batch. A step fits when state and temporary memory, as the
compiler plans them, stay below the share of the device that JAX may use. Lengths double until one
does not fit; what is between is halved down to --step.
"""

from typing import Annotated

import typer

from teukenjax.hardware import named
from teukenjax.planner.compiled import compile_step
from teukenjax.recipe import load

GIB = 2**30
USABLE = 0.95  # as `compute.flags: default` sets it


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    hardware: Annotated[str, typer.Option(help="A file of configs/hardware.")] = "h100-sxm",
    devices: Annotated[int, typer.Option(min=1)] = 1,
    start: Annotated[int, typer.Option(min=1, help="A length that should fit.")] = 4096,
    step: Annotated[int, typer.Option(min=1, help="Resolution in tokens.")] = 4096,
) -> None:
    """Compiles at a handful of lengths, and prints each."""
    hw = named(hardware)
    limit = USABLE * hw.target.memory_bytes

    def fits(length: int) -> bool:
        batch = [f"batch.sequences={2 * devices}", "batch.accumulation=2"]
        given = [*(overrides or []), *batch, f"model.context={length}", "telemetry.every=null"]
        made = compile_step(load(recipe, given), hw, devices)
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


if __name__ == "__main__":
    typer.run(main)
