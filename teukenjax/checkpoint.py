"""Checkpoints: state, position in the data and the resolved recipe, as one Orbax step.

Saving is asynchronous: the step's arrays are copied to the host and written while training goes
on. A step appears under its final name only when all of it is written, so a killed run leaves
whole checkpoints and at worst a temporary folder. Nothing is pickled.

    RUN/checkpoints/200/state    arrays, one global copy whatever the mesh that wrote them
    RUN/checkpoints/200/about    JSON: step, recipe, tokenizer, data position, versions
"""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from teukenjax import late_reads
from teukenjax.errors import UserError
from teukenjax.recipe import CheckpointConfig

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path, config: CheckpointConfig | None = None):
        """Opens RUN/checkpoints; read-only without a ``config``."""
        # Orbax tells each of its steps, and what it raises it logs as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        folder = (run / FOLDER).resolve()
        if config is None:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep_last,
                keep_period=config.keep_every,
                cleanup_tmp_directories=True,
            )
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
        self.folder = folder

    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, about: dict) -> None:
        """Starts writing ``state`` as ``step``; returns once the arrays are copied to the host."""
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
            ),
        )

    def about(self, step: int) -> dict:
        """The JSON that was saved beside the arrays."""
        restored = self._restore(step, about=ocp.args.JsonRestore())
        return restored["about"]

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of ``step``, each array read straight into its placement.

        Args:
          step: one of ``steps()``.
          abstract: tree of ``ShapeDtypeStruct`` with shardings; any mesh will do.
        """
        return self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]

    def restore_params(self, step: int, abstract: Any) -> Any:
        """Only the parameters of ``step``: a third of the state or less is read."""
        args = ocp.args.PyTreeRestore(
            item={"params": abstract},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(abstract)},
            partial_restore=True,
        )
        path = self.folder / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            try:
                with late_reads.dropped():
                    return reader.restore(path, args=args)["params"]
            except Exception as error:
                raise self._damaged(step, error) from None

    def wait(self) -> None:
        """Blocks until nothing is being written any more."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written."""
        self._manager.close()

    def _restore(self, step: int, **items):
        try:
            with late_reads.dropped():
                return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(step, error) from None

    def _damaged(self, step: int, error: Exception) -> UserError:
        # Orbax wraps what met the damage first in layers of its own; the innermost says what.
        while error.__cause__ or error.__context__:
            error = error.__cause__ or error.__context__
        reason = " ".join(str(error).split()) or type(error).__name__
        others = [other for other in self.steps() if other != step]
        advice = f"; remove it to go on from step {others[-1]}" if others else ""
        return UserError(
            f"{self.folder / str(step)}: the checkpoint is damaged or of another shape: "
            f"{reason[:240]}{advice}"
        )


def find(run: Path) -> tuple[Path, int]:
    """RUN as every verb takes it: a run directory (its newest checkpoint) or one checkpoint.

    Raises:
      UserError: when the path is neither, or the run has no checkpoint.
    """
    path = run.resolve()
    if path.parent.name == FOLDER and path.name.isdigit() and path.is_dir():
        return path.parent.parent, int(path.name)
    if not path.is_dir():
        raise UserError(f"{run}: no such run directory")
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{run}: not a run directory: it has no recipe.yaml")
    if not (path / FOLDER).is_dir():
        raise UserError(f"{run}: the run has no checkpoint yet")
    checkpoints = Checkpoints(path)
    step = checkpoints.latest()
    checkpoints.close()
    if step is None:
        raise UserError(f"{run}: the run has no checkpoint yet")
    return path, step
