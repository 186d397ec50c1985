"""Every strategy, remat policy and micro-batch on the devices at hand: predicted, compiled, run.

    uv run python tools/sharding_ablation.py configs/recipes/teuken-7b.yaml --out ablation
    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \\
        uv run python tools/sharding_ablation.py configs/quickstart.yaml model.vocab_size=1024 \\
        model.kv_heads=2 compute.dtype=float32

Prints a table and writes OUT/ablation.csv and OUT/ablation.png. The CPU's compiler allocates and
communicates differently from the GPU's: there, memory is a hint and seconds are not predicted.
"""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from teukenjax.cli.ending import run_script
from teukenjax.planner.ablation import ablate, table, write
from teukenjax.sharding import STRATEGIES


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument()] = None,
    strategy: Annotated[list[str], typer.Option()] = tuple(STRATEGIES),
    micro_batch: Annotated[list[int], typer.Option(min=1, help="Sequences per batch shard.")] = (
        1,
        2,
    ),
    remat: Annotated[list[str], typer.Option()] = ("full", "save_attention"),
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="No case begins after so many.")] = math.inf,
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("ablation"),
) -> None:
    """Runs all cases, one process each."""
    rows, console = [], Console(width=200)
    for row in ablate(
        recipe,
        tuple(overrides or []),
        strategies=tuple(strategy),
        micro_batches=tuple(micro_batch),
        remats=tuple(remat),
        repeats=repeats,
        seconds=seconds,
    ):
        rows.append(row)
        write(rows, out)  # after each case: a run that is cut short leaves what it had
        console.print(" ".join(f"{key} {value}" for key, value in row.items() if value))
    console.print(table(rows))


if __name__ == "__main__":
    run_script(main)
