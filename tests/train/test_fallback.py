"""A damaged checkpoint is moved aside, said aloud, and the run goes on from the one before."""

import io

import numpy as np
import pytest
from rich.console import Console

from teukenjax.errors import UserError
from teukenjax.train.loop import Run
from teukenjax.train.metrics import read_metrics


def trained(recipe, console=None) -> Run:
    run = Run(recipe, console or Console(quiet=True))
    run.train()
    return run


def arrays(run: Run, step: int) -> list:
    """The files with an array's bytes, largest first."""
    files = [f for f in (run.checkpoints.folder / str(step) / "state").rglob("d/*") if f.is_file()]
    return sorted(files, key=lambda file: -file.stat().st_size)


def truncate(run: Run) -> None:
    for file in arrays(run, 6):  # half of one may be bytes that were written anew in another
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(run: Run) -> None:
    file = arrays(run, 6)[0]
    content = bytearray(file.read_bytes())
    for at in range(0, len(content), 4096):  # in many places, for the same reason
        content[at] ^= 1
    file.write_bytes(content)


def lose(run: Run) -> None:
    arrays(run, 6)[0].unlink()


def lose_about(run: Run) -> None:
    next((run.checkpoints.folder / "6" / "about").rglob("metadata")).unlink()


DAMAGE = [truncate, flip, lose, lose_about]


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(steps=6, checkpoint={"every": 3})


def losses(run: Run) -> list:
    return [row["loss"] for row in read_metrics(run.directory.metrics)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage, recipe):
    first = trained(recipe)
    straight = losses(first)
    damage(first)
    screen = io.StringIO()
    again = trained(recipe, Console(file=screen, width=300))
    said = " ".join(screen.getvalue().split())
    assert "checkpoints/6: the checkpoint is damaged" in said
    assert "going on from step 3" in said
    np.testing.assert_array_equal(losses(again), straight)
    assert again.checkpoints.steps() == [3, 6]  # written anew, and whole
    again.checkpoints.restore(6, again.program.abstract_state)
    assert len(list((again.directory.path / "damaged").iterdir())) == 1


def test_when_none_is_good_nothing_is_moved(recipe):
    run = trained(recipe)
    for step in (3, 6):
        arrays(run, step)[0].unlink()
    with pytest.raises(UserError, match=r"checkpoints/6: the checkpoint is damaged"):
        trained(recipe)
    assert run.checkpoints.steps() == [3, 6]
    assert not (run.directory.path / "damaged").exists()
