"""The verbs of scaling: sweeps, fits, plots, suggestions."""

from pathlib import Path
from typing import Annotated

import typer

from teukenjax.cli.options import Overrides, RecipeFile, console

scaling = typer.Typer(help="Fit, plot and use what sweeps measured.", no_args_is_help=True)

Results = Annotated[
    list[Path], typer.Argument(metavar="RESULTS...", help="Sweeps' folders or Parquet files.")
]


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SWEEP", help="A file as in configs/sweeps.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only these of the sweep's models.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=0, help="Share the work among so many jobs of a cluster; 0: here.")
    ] = 0,
    cluster: Annotated[str, typer.Option(help="slurm, or local: processes here.")] = "slurm",
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of submitit, such as slurm_partition=x."),
    ] = None,
) -> None:
    """Train SWEEP's grid; the same command, killed or not, here or beside others, goes on."""
    from teukenjax.scaling.cluster import Request, submit

    out = out or Path("runs") / spec.stem
    request = Request(spec, tuple(overrides or []), tuple(model or []), out)
    if jobs:
        submit(request, console(), jobs=jobs, cluster=cluster, given=parameters or [])
    else:
        request.work(console())


@scaling.command()
def fit(
    results: Results,
    out: Annotated[Path | None, typer.Option(help="For fit.json and optima.csv.")] = None,
    role: Annotated[str, typer.Option(help="Whose norm: output, hidden or input.")] = "output",
) -> None:
    """Optimal norm, η*(B, D) and B*(D) of RESULTS, or of the paper's tables: `published`."""
    from teukenjax.scaling import command

    command.fit(console(), results, out=out, role=role)


@scaling.command()
def plot(
    results: Results,
    out: Annotated[Path, typer.Option(help="A folder for pictures and their numbers.")],
    role: Annotated[str, typer.Option(help="Whose norm: output, hidden or input.")] = "output",
) -> None:
    """Loss against norm, optima, trajectories, rates and roles, as PNG and CSV."""
    from teukenjax.scaling import command

    command.plot(console(), results, out, role=role)


@scaling.command()
def suggest(
    recipe: RecipeFile,
    overrides: Overrides = None,
    tokens: Annotated[float, typer.Option(help="Of the whole run, as in 1e11.")] = ...,
    rules: Annotated[
        Path | None, typer.Option(help="fit.json of your own fit; default: the paper's rule.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write RECIPE with it.")] = None,
) -> None:
    """Batch and learning rate for RECIPE, with uncertainty, and what they rest on."""
    from teukenjax.scaling import command

    command.suggest(console(), recipe, overrides or [], tokens=tokens, rules=rules, out=out)
