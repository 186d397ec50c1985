"""Works through the groups of a sweep, alone or beside any number of other processes.

A process that wants a group locks its claim. The kernel lets go of a lock when its process ends,
however it ends, so the group of a killed process is free at once, and whoever takes it goes on
from its checkpoint. On a shared file system locks must work between nodes (Lustre: ``-o flock``).
"""

import contextlib
import dataclasses
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console

from teukenjax.data.prepare import open_store
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError, disk_errors
from teukenjax.model import flops_per_token
from teukenjax.scaling import results
from teukenjax.scaling.spec import Group
from teukenjax.scaling.training import GroupTraining
from teukenjax.train.loop import resolve
from teukenjax.train.progress import clock, short

TOLD_EVERY_S = 10.0


def work(groups: Sequence[Group], out: Path, console: Console) -> None:
    """Trains every group that nobody has finished and nobody is training.

    Raises:
      UserError: for what ``resolve`` and the data refuse, and for a disk that cannot be written.
    """
    with disk_errors(out):
        store = _store(groups, out, console)
        groups = [resolved(group, store) for group in groups]
        progress = Progress(groups, out, console)
        busy = True
        while busy:  # again from the front: another process may have ended halfway in a group
            busy = False
            for group in groups:
                busy |= _take(group, store, out, progress)
        missing = [group for group in groups if not rows_of(group, out).is_file()]
        if missing:
            console.print(f"{len(missing)} groups are being trained by other processes")
            return
        merged = out / "results.parquet"
        with claimed(out / "claims" / merged.name, wait=True):  # processes may end at one time
            results.merge([out], merged)
        console.print(f"{merged}: all rows", highlight=False)


def resolved(group: Group, store: TokenStore) -> Group:
    """The group with the vocabulary of its tokens."""
    return dataclasses.replace(group, recipe=resolve(group.recipe, store.tokenizer()))


def rows_of(group: Group, out: Path) -> Path:
    """The file that a finished group has."""
    return out / "rows" / f"{group.name}.parquet"


def _take(group: Group, store: TokenStore, out: Path, progress: "Progress") -> bool:
    """Trains a group to its end; False if there is nothing to do, or another process does it."""
    if rows_of(group, out).is_file():
        return False
    with claimed(out / "claims" / group.name) as mine:
        if not mine or rows_of(group, out).is_file():
            return False
        training = GroupTraining(group, store, out, jax.local_devices()[0])
        _refuse_segments(training.stream)
        progress.begin(group)
        training.run(progress.show)
        return True


@contextlib.contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a claim while the block runs; one of another process gives False, or is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _refuse_segments(stream: Stream) -> None:
    if stream.segmented:
        raise UserError(
            "data.packing=best_fit or data.segments=true: a sweep's batches are tokens alone: "
            "sweep with data.packing=concat data.segments=false"
        )


def _store(groups: Sequence[Group], out: Path, console: Console) -> TokenStore:
    """The one store that all groups read; ``out`` holds it if the recipe prepares one."""
    recipes = [group.recipe.model_copy(update={"out": out}) for group in groups]
    for recipe in recipes:
        if recipe.data.store != recipes[0].data.store:
            raise UserError(
                f"data.store={recipe.data.store}: another model of the sweep has "
                f"{recipes[0].data.store}: a sweep reads one store"
            )
    return open_store(recipes[0], console)


class Progress:
    """One line every ten seconds: which group, how fast, and when all of them will be done."""

    def __init__(self, groups: Sequence[Group], out: Path, console: Console):
        self._groups, self._out, self._console = groups, out, console
        self._work = {group.name: _flops(group) for group in groups}
        self._begun = time.monotonic()
        self._before = 0.0  # FLOPs of this process in groups that it has finished

    def begin(self, group: Group) -> None:
        """A group is next."""
        self._group, self._first = group, None
        number = self._groups.index(group) + 1
        self._line = f"group {number}/{len(self._groups)} {group.model}-b" + (
            f"{group.recipe.batch.sequences} | {len(group.members)} runs"
        )
        self._console.print(f"{self._line} | compiling", highlight=False)

    def show(self, step: int) -> None:
        """Steps done in the group."""
        now, steps = time.monotonic(), self._group.recipe.steps
        if self._first is None:
            self._first, self._since, self._told = step, now, now
        if step < steps and now - self._told < TOLD_EVERY_S:
            return
        self._told = now
        work = self._work[self._group.name]
        done = self._before + (step - self._first) / steps * work
        left = self._left() - step / steps * work
        if step == steps:
            self._before = done
        tokens = (step - self._first) * self._group.recipe.tokens_per_step
        rate = tokens * len(self._group.members) / max(now - self._since, 1e-9)
        eta = clock((now - self._begun) * left / done) if done else "unknown"
        self._console.print(
            f"{self._line} | step {step}/{steps} | {short(rate)} tok/s | eta {eta}",
            highlight=False,
        )

    def _left(self) -> float:
        """FLOPs of the groups that have no rows yet, the one being trained included."""
        missing = (g for g in self._groups if not rows_of(g, self._out).is_file())
        return sum(self._work[group.name] for group in missing)


def _flops(group: Group) -> float:
    recipe = group.recipe
    tokens = recipe.steps * recipe.tokens_per_step * len(group.members)
    return float(flops_per_token(recipe.model) * tokens)
