"""The command line: one verb per function, no logic.

Imports are inside the verbs so that help and mistakes answer at once, without loading JAX.
"""

import os
from typing import Annotated

import typer

from teukenjax.cli.bench import bench
from teukenjax.cli.ending import run
from teukenjax.cli.evaluation import evaluate
from teukenjax.cli.options import Overrides, RecipeFile, console
from teukenjax.cli.planning import PlanCommand, plan
from teukenjax.cli.scaling import scaling, sweep
from teukenjax.cli.text import data, tokenizer
from teukenjax.cli.tuning import sft
from teukenjax.cli.use import use

app = typer.Typer(
    help="Train multilingual European language models in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved recipe and stop.")
    ] = False,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0; Slurm and Open MPI need none.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many run this command together.")
    ] = None,
    process: Annotated[int | None, typer.Option(min=0, help="Which of them this is.")] = None,
) -> None:
    """Train what RECIPE describes; a run found in its `out` is resumed."""
    from teukenjax import recipe as recipes

    resolved = recipes.load(recipe, overrides or [])
    if show:
        print(recipes.to_yaml(resolved), end="")
        return
    from teukenjax.flags import launch
    from teukenjax.processes import Membership, is_first, joined

    with joined(Membership(coordinator, processes, process), os.environ):
        launch(resolved.compute)
        from teukenjax.train.loop import train as train_
        from teukenjax.train.report import print_next

        path = train_(resolved, console())
        if is_first():
            print_next(console(), path)


def shardings(
    recipe: RecipeFile,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 1,
) -> None:
    """Print where each array of RECIPE's state lives: shape, spec, bytes per device."""
    from teukenjax.recipe import load
    from teukenjax.train.plan import abstract_program, print_shardings

    print_shardings(console(), abstract_program(load(recipe, overrides or []), devices))


app.command()(train)
app.command()(sft)
app.command("eval")(evaluate)
app.command(cls=PlanCommand)(plan)
app.command()(shardings)
app.command()(sweep)
app.add_typer(use)
app.add_typer(data, name="data")
app.add_typer(tokenizer, name="tokenizer")
app.add_typer(bench, name="bench")
app.add_typer(scaling, name="scaling")


def main() -> None:
    """Runs a verb."""
    run(app)
