"""The verbs that measure this machine."""

from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import Overrides, RecipeFile, console
from teukenjax.errors import check_room_for

bench = typer.Typer(help="Measures this machine.", no_args_is_help=True)


@bench.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="A file of configs/hardware/profiles to write.")],
) -> None:
    """Time products, attention, copies and collectives; `plan` then uses what was measured."""
    from teukenjax.planner import calibrate as bench_

    check_room_for(out)
    profile = bench_.calibrate()
    bench_.show(console(), profile)
    bench_.write(profile, out)


@bench.command()
def kernels(
    only: Annotated[list[str] | None, typer.Option(help="Kernels, by name; default: all.")] = None,
    shrink: Annotated[int, typer.Option(min=1, max=64, help="Divide the sizes, for a CPU.")] = 1,
) -> None:
    """Check and time every kernel beside what XLA and cuDNN make of the same call."""
    import jax

    from teukenjax.bench import kernels as bench_
    from teukenjax.bench.step import versions_said
    from teukenjax.hardware import find_hardware
    from teukenjax.kernels.cases import find_cases
    from teukenjax.kernels.choice import Device

    cases = find_cases(only or [], shrink)
    device = jax.devices()[0]
    console().print(f"{device.device_kind}, {versions_said()}", highlight=False)
    rows = bench_.show(console(), bench_.measure(cases), find_hardware(None, device))
    for line in bench_.choices(rows, Device.of(device).gpu):
        print(line)


@bench.command()
def step(
    recipe: RecipeFile,
    overrides: Overrides = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Cut the model to so many layers.")
    ] = None,
    fake_data: Annotated[
        bool, typer.Option("--fake-data", help="Random tokens instead of the recipe's store.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 5,
    results: Annotated[Path, typer.Option(help="A file of JSON lines that gets one more.")] = Path(
        "runs/bench-step.jsonl"
    ),
) -> None:
    """Time and profile RECIPE's train step: speed, MFU, memory, and where the time goes."""
    from teukenjax.bench.report import row_of, show
    from teukenjax.bench.results import append, check_can_append
    from teukenjax.bench.step import measure
    from teukenjax.flags import launch
    from teukenjax.recipe import load

    cut = [] if layers is None else [f"model.layers={layers}"]
    resolved = load(recipe, [*(overrides or []), *cut])
    launch(resolved.compute)
    check_can_append(results)
    program, measured = measure(resolved, console(), repeats=repeats, fake_data=fake_data)
    row = row_of(recipe, program, measured, fake_data=fake_data)
    show(console(), row)
    append(results, row)
    console().print(f"{results}: the same as JSON", highlight=False)
