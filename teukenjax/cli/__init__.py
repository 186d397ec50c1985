"""The command line: one verb per function, no logic.

Imports are inside the verbs so that help and mistakes answer at once, without loading JAX.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from teukenjax.cli.bench import bench
from teukenjax.cli.evaluation import evaluate
from teukenjax.cli.options import Overrides, RecipeFile, console
from teukenjax.cli.scaling import scaling, sweep
from teukenjax.cli.text import data, tokenizer
from teukenjax.cli.tuning import sft
from teukenjax.cli.use import use
from teukenjax.errors import TryAgainError, UserError

app = typer.Typer(
    help="Train multilingual European language models in JAX.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(sft)
app.command("eval")(evaluate)
app.add_typer(data, name="data")
app.add_typer(tokenizer, name="tokenizer")
app.add_typer(bench, name="bench")
app.add_typer(use)
app.add_typer(scaling, name="scaling")
app.command()(sweep)


@app.command()
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
        from teukenjax.train.loop import train as run
        from teukenjax.train.report import print_next

        path = run(resolved, console())
        if is_first():
            print_next(console(), path)


@app.command()
def shardings(
    recipe: RecipeFile,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 1,
) -> None:
    """Print where each array of RECIPE's state lives: shape, spec, bytes per device."""
    from teukenjax.recipe import load
    from teukenjax.train.plan import abstract_program, print_shardings

    print_shardings(console(), abstract_program(load(recipe, overrides or []), devices))


@app.command()
def plan(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A YAML file; not with --table.")
    ] = None,
    overrides: Overrides = None,
    hardware: Annotated[
        str, typer.Option(help="A file of configs/hardware; with --target-days also a,b,….")
    ] = "h100-sxm",
    devices: Annotated[int, typer.Option(min=1, help="How many; they need not exist.")] = 8,
    tokens: Annotated[
        float | None, typer.Option(help="Of the whole run; default: the recipe's steps.")
    ] = None,
    sequence: Annotated[
        list[int] | None, typer.Option(min=1, help="Lengths to try; default: the recipe's.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Plans to print.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the first plan's recipe, or the table.")
    ] = None,
    compile_: Annotated[
        int, typer.Option("--compile", min=0, help="Plans to compile; needs no GPU.")
    ] = 0,
    target_days: Annotated[
        float | None, typer.Option(help="Ask how many devices train --tokens in so many days.")
    ] = None,
    mfu_floor: Annotated[
        float, typer.Option(help="With --target-days: for the largest model.")
    ] = 0.4,
    ablate: Annotated[
        Path | None, typer.Option(help="Run all strategies on the devices here; a folder to make.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Predict the rows of a CSV file into --out.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
) -> None:
    """Which mesh, remat and batch for RECIPE, before a GPU is booked."""
    from teukenjax.planner import command

    request = command.Request(
        recipe=recipe,
        overrides=tuple(overrides or []),
        hardware=hardware,
        devices=devices,
        tokens=tokens,
        sequences=tuple(sequence or []),
    )
    one = {"--table": table, "--ablate": ablate, "--target-days": target_days}
    asked = next((name for name, value in one.items() if value is not None), None)
    others = one | {"--compile": compile_ or None, "--report": report}
    others |= {} if asked == "--table" else {"--out": out}
    for name, value in others.items():
        if asked and name != asked and value is not None:
            raise UserError(f"{name}: does not go with {asked}")
    if table is not None:
        command.predict_rows(console(), table, out)
    elif ablate is not None:
        command.run_ablation(console(), request, ablate)
    elif target_days is not None:
        command.inverse_questions(console(), request, target_days=target_days, mfu_floor=mfu_floor)
    else:
        command.plan(console(), request, top=top, out=out, compiled=compile_, report=report)


def _line(error: UserError | TyperException) -> str:
    """The message; the option parser's names the option only when it is asked to format it."""
    return error.format_message() if isinstance(error, TyperException) else str(error)


def main() -> None:
    """Runs a verb; a user's mistake is one line and exit code 2, see ``errors`` for others."""
    if not sys.stderr.isatty():  # read when some library imports tqdm, which draws their bars
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        sys.exit(app(standalone_mode=False) or 0)  # which leaves the parser's mistakes to us
    except (UserError, TyperException) as error:
        if str(error):  # a group without its verb has shown its help
            print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(2)
    except TryAgainError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(error.code)
