"""131,072 tokens a GPU and step on 1, 2, 4 and 8 GPUs of one host: predicted, compiled, run.

    uv run --extra cuda13 python tools/weak_scaling.py configs/recipes/teuken-7b.yaml \\
        model.vocab_size=250680 'optimizer={name: scion, light: true, method: gram}' \\
        batch.accumulation=16 compute.remat=save_projections compute.head_chunk=2048 \\
        compute.gather=step compute.unroll=32 compute.flags=overlapped telemetry.every=null

Prints a table and writes OUT/weak_scaling.csv and .png after every case. ``--no-run`` predicts and
compiles only, which needs no GPU; a case that is predicted not to fit is not run.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from teukenjax.cli.ending import run_script
from teukenjax.hardware import named
from teukenjax.picture import Picture, table_of
from teukenjax.planner.weak_scaling import Series, figure, rows, table


def main(
    recipe: Annotated[Path, typer.Argument(help="A recipe with model.vocab_size.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    devices: Annotated[list[int], typer.Option(min=1)] = (1, 2, 4, 8),
    strategy: Annotated[list[str], typer.Option()] = ("fsdp", "hsdp", "zero1", "fsdp_tp", "ddp"),
    sequences: Annotated[int, typer.Option(min=1, help="A GPU and step.")] = 32,
    hardware: Annotated[str, typer.Option(help="Of configs/hardware.")] = "h100-sxm",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    run: Annotated[bool, typer.Option(help="Run what is predicted to fit.")] = True,
    compiled: Annotated[bool, typer.Option(help="Ask the compiler; minutes a case.")] = True,
    out: Annotated[Path, typer.Option(help="A folder.")] = Path("weak-scaling"),
) -> None:
    """One process a case that is run."""
    found, console = [], Console(width=220)
    out.mkdir(parents=True, exist_ok=True)
    series = Series(
        recipe,
        tuple(overrides or []),
        sequences,
        named(hardware),
        repeats if run else None,
        compiled,
    )
    for row in rows(series, tuple(devices), tuple(strategy)):
        found.append(row)
        Picture(figure(found), table_of(found)).save(out / "weak_scaling")
        console.print(" ".join(f"{key} {value}" for key, value in row.items() if value))
    console.print(table(found))


if __name__ == "__main__":
    run_script(main)
