"""Going on from the newest checkpoint that is whole."""

from typing import Any, NamedTuple

from rich.console import Console

from teukenjax.checkpoint import Checkpoints
from teukenjax.errors import UserError


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
