"""Checkpoints: state, position in the data and the resolved recipe, as one Orbax step.

Saving is asynchronous: the step's arrays are copied to the host and written while training goes
on. A step appears under its final name only when all of it is written, so a killed run leaves
whole checkpoints and at worst a temporary folder. Nothing is pickled.

    RUN/checkpoints/200/state    arrays, one global copy whatever the mesh that wrote them
    RUN/checkpoints/200/about    JSON: step, recipe, tokenizer, data position, versions, sums

The files of an array carry no checksum, so a flipped byte in one would come back as a weight. So
the sum of each array's bits is kept in ``about`` and compared with what was read.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from teukenjax import late_reads
from teukenjax.errors import UserError
from teukenjax.recipe import CheckpointConfig

FOLDER = "checkpoints"
# Arrays lie in pieces of one layer and at most this size, so that an export can read a layer
# without the whole stack, and a restore a shard without its neighbours.
STORED_BYTES = 32 * 2**20


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
        # Writing goes on between calls, and so does what comes too late of it.
        self._late = contextlib.ExitStack()
        if config is not None:
            self._late.enter_context(late_reads.dropped())

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
        about = about | {"sums": _sums(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state, jax.tree.map(_pieces, state)),
            about=ocp.args.JsonSave(about),
        )
        with self._writing():
            self._manager.save(step, args=items)

    def about(self, step: int) -> dict:
        """The JSON that was saved beside the arrays, and their ``sums``."""
        with self._reading(step):
            items = ocp.args.Composite(about=ocp.args.JsonRestore())
            about = self._manager.restore(step, args=items)["about"]
            if "sums" not in about:
                raise ValueError("'about' holds no sums of the arrays")
            return about

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of ``step``, each array read straight into its placement.

        Args:
          step: one of ``steps()``.
          abstract: tree of ``ShapeDtypeStruct`` with shardings; any mesh will do.

        Raises:
          UserError: when a file is missing or damaged, or an array has another shape.
        """
        with self._reading(step):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=items)["state"]
            self._check_sums(step, state)
            return state

    def restore_params(self, step: int, abstract: Any) -> Any:
        """Only the parameters of ``step``: a third of the state or less is read."""
        args = ocp.args.PyTreeRestore(
            item={"params": abstract},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(abstract)},
            partial_restore=True,
        )
        path = self.folder / str(step) / "state"
        with self._reading(step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(path, args=args)
            self._check_sums(step, restored)
            return restored["params"]

    def wait(self) -> None:
        """Blocks until nothing is being written any more."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written."""
        with self._late, self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of this save, or of one before it that went on meanwhile
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written: {_reason(error)}; "
                "those before it are whole"
            ) from None

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            with late_reads.dropped():
                yield
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(step, error) from None

    def _check_sums(self, step: int, tree: Any) -> None:
        saved = self.about(step)["sums"]
        changed = [name for name, value in _sums(tree).items() if saved.get(name) != value]
        if changed:
            raise ValueError(f"'{changed[0]}' is not what was saved")

    def _damaged(self, step: int, error: Exception) -> UserError:
        others = [other for other in self.steps() if other != step]
        advice = f"; remove it to go on from step {others[-1]}" if others else ""
        return UserError(
            f"{self.folder / str(step)}: the checkpoint is damaged or of another shape: "
            f"{_reason(error)}{advice}"
        )


def _reason(error: BaseException) -> str:
    """One line: Orbax wraps what met the fault first in layers of its own; the innermost says."""
    while inner := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = inner
    text = " ".join(str(error).split()) or type(error).__name__
    # TensorStore begins with the array and ends with the system's word.
    return text if len(text) <= 320 else f"{text[:120]} … {text[-200:]}"


def _pieces(x: Array) -> ocp.SaveArgs:
    layers = (0,) if x.ndim > 2 else ()  # a stack of matrices; a table is cut into rows
    return ocp.SaveArgs(chunk_byte_size=STORED_BYTES, shard_axes=layers)


def _sums(tree: Any) -> dict[str, int]:
    """Name → sum of an array's bits, modulo 2^32: the same on any mesh, one pass in memory."""
    named, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(_bit_sums(tree)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): int(x) for path, x in named}


@jax.jit
def _bit_sums(tree: Any) -> Any:
    def add(x: Array) -> UInt32[Array, ""]:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jnp.sum(bits, dtype=jnp.uint32)

    return jax.tree.map(add, tree)


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
