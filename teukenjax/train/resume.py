"""Going on from the newest checkpoint that is whole, and what each says about its run."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from teukenjax.checkpoint import Checkpoints
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe, digest
from teukenjax.train.guard import Guard
from teukenjax.train.source import Source


class Restored(NamedTuple):
    """Where a run goes on."""

    state: Any
    step: int
    about: dict[str, Any] | None  # none: from nothing


def restore_newest(checkpoints: Checkpoints, abstract: Any, console: Console) -> Restored | None:
    """The newest checkpoint that can be read and is what was written; None when there is none.

    Damaged ones that are newer are moved aside, said aloud. If all are damaged nothing is moved:
    then it is the recipe rather than the disk that has changed.

    Args:
      checkpoints: of the run.
      abstract: as ``Checkpoints.restore`` takes it.
      console: told about each step that is moved.

    Raises:
      UserError: that of the newest, when none is good.
    """
    damaged: dict[int, UserError] = {}
    for step in reversed(checkpoints.steps()):
        try:
            restored = Restored(checkpoints.restore(step, abstract), step, checkpoints.about(step))
        except UserError as error:
            damaged[step] = error
            continue
        for bad, error in damaged.items():
            aside = checkpoints.set_aside(bad)
            console.print(f"{error}", highlight=False)
            console.print(f"  moved to {aside}; going on from step {step}", highlight=False)
        return restored
    for error in damaged.values():
        raise error
    return None


def about_run(recipe: Recipe, source: Source, guard: Guard, step: int) -> dict[str, Any]:
    """What the checkpoint of ``step`` says about its run, as JSON."""
    return {
        "step": step,
        "next_row": (step + guard.moved) * recipe.batch.sequences,  # of the data stream
        "store": source.digest,
        "tokenizer": source.tokenizer.digest,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": digest(recipe),
        "guard": guard.saved(),
        "versions": {"jax": jax.__version__},
    }


def check_run(about: dict[str, Any], run: Path, recipe: Recipe, source: Source) -> None:
    """Raises a UserError when a checkpoint is of other data, or further than the recipe goes."""
    if about["store"] != source.digest:
        raise UserError(
            f"{run}: began with data {about['store']}, but {source.name} is {source.digest}: "
            "give the one that it began with"
        )
    if about["step"] > recipe.steps:
        raise UserError(f"steps={recipe.steps}: {run} has already done {about['step']}")
