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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from teukenjax import late_reads, processes
from teukenjax.bits import bit_sum
from teukenjax.errors import UserError
from teukenjax.recipe import CheckpointConfig

FOLDER = "checkpoints"
# Arrays lie in pieces of one layer and at most this size, so that an export can read a layer
# without the whole stack, and a restore a shard without its neighbours.
STORED_BYTES = 32 * 2**20
# Orbax counts by the wall clock, which may be set while it writes; ``train.watch`` has the limit.
PATIENCE_S = 10 * 86_400


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self, run: Path, config: CheckpointConfig | None = None, *, limit_s: float = 900.0
    ):
        """Opens RUN/checkpoints; read-only without a ``config``.

        ``limit_s`` is how long the processes of a run wait for each other when they restore.
        """
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
                async_options=ocp.options.AsyncOptions(timeout_secs=PATIENCE_S),
            )
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=_handlers())
        self._limit_s = limit_s
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
            about = self._read(step, items)["about"]
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
            state = self._read(step, items)["state"]
            self._check_sums(step, state)
            return state

    def _read(self, step: int, items: ocp.args.Composite) -> Any:
        """What this process needs of a step, if all processes can read what they need.

        Each reads alone: one that meets damage does not come to the barriers of Orbax, and those
        that met none would wait there for it.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
        )
        handler = ocp.CompositeCheckpointHandler(**_handlers())
        read, error = None, None
        try:
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
                read = reader.restore(self.folder / str(step), args=items)
        except Exception as met:
            error = met
        all_read = processes.agree(f"restoring {step}", error is None, limit_s=self._limit_s)
        if error is not None:
            raise error
        if not all_read:
            raise ValueError("another process cannot read its part")
        return read

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

    def set_aside(self, step: int) -> Path:
        """Moves a damaged step out of the way of the one that will be written again."""
        aside = self.folder.parent / "damaged" / f"{step}-{int(time.time())}"
        if processes.is_first():
            aside.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(aside)
        processes.meet("damaged checkpoint moved", limit_s=self._limit_s)
        self._manager.reload()
        return aside

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
            met = _innermost(error)
            if processes.from_runtime(met):
                raise met from None  # no disk's: another process is gone, as ``train.watch`` says
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


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    return {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}


def _innermost(error: BaseException) -> BaseException:
    """What met the fault first, which Orbax wraps in layers of its own."""
    while inner := error.__cause__ or (not error.__suppress_context__ and error.__context__):
        error = inner
    return error


def _reason(error: BaseException) -> str:
    """One line of what met the fault first."""
    error = _innermost(error)
    text = " ".join(str(error).split()) or type(error).__name__
    # TensorStore begins with the array and ends with the system's word.
    return text if len(text) <= 320 else f"{text[:120]} … {text[-200:]}"


def _pieces(x: jax.Array) -> ocp.SaveArgs:
    layers = (0,) if x.ndim > 2 else ()  # a stack of matrices; a table is cut into rows
    return ocp.SaveArgs(chunk_byte_size=STORED_BYTES, shard_axes=layers)


def _sums(tree: Any) -> dict[str, int]:
    """Name → sum of an array's bits."""
    named, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(_bit_sums(tree)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): int(x) for path, x in named}


@jax.jit
def _bit_sums(tree: Any) -> Any:
    return jax.tree.map(bit_sum, tree)


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
