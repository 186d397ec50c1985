"""What several verbs take, and where they print."""

import sys
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values over the recipe's.")
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, or one of its checkpoints.")
]

UNBROKEN = 10_000  # characters: no line that we print is longer, and Rich pads none


def console():
    """Standard output, as wide as the terminal; in a file, lines are as long as they are."""
    from rich.console import Console

    # Text with [brackets] is no markup.
    return Console(width=None if sys.stdout.isatty() else UNBROKEN, markup=False)
