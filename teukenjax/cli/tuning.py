"""The verb of instruction tuning."""

from typing import Annotated

import typer

from teukenjax.cli.options import Overrides, RecipeFile, console


def sft(
    recipe: RecipeFile,
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Tune a model on conversations as RECIPE says; a run found in its `out` is resumed."""
    from teukenjax import recipe as recipes

    resolved = recipes.load(recipe, overrides or [])
    if show:
        print(recipes.to_yaml(resolved), end="")
        return
    from teukenjax.flags import launch

    launch(resolved.compute)
    from teukenjax.train.report import print_next
    from teukenjax.train.tuning import tune

    print_next(console(), tune(resolved, console()))
