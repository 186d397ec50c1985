"""The verb that answers before a GPU is booked."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from teukenjax.cli.options import Overrides, console


class PlanCommand(TyperCommand):
    """Refuses options of another question than the one that is asked."""

    def invoke(self, ctx):
        """Runs the verb."""
        from teukenjax.planner.command import check_go_together

        check_go_together(
            {
                parameter.metavar or parameter.opts[0]
                for parameter in self.params
                if ctx.get_parameter_source(parameter.name).name == "COMMANDLINE"
            }
        )
        return super().invoke(ctx)


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
    if table is not None:
        command.predict_rows(console(), table, out)
    elif ablate is not None:
        command.run_ablation(console(), request, ablate)
    elif target_days is not None:
        command.inverse_questions(console(), request, target_days=target_days, mfu_floor=mfu_floor)
    else:
        command.plan(console(), request, top=top, out=out, compiled=compile_, report=report)
