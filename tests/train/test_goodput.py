"""Every second belongs to one part."""

import json

import pytest

from teukenjax.train import goodput
from teukenjax.train.goodput import Goodput


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    return clock


def test_what_begins_inside_interrupts(clock):
    spent = Goodput()
    clock.now += 1
    with spent.spent_on("steps"):
        clock.now += 6
        with spent.spent_on("save"):
            clock.now += 2
        clock.now += 1
    shares = spent.shares()
    assert {part: s for part, s in spent.seconds.items() if s} == {
        "other": 1,
        "steps": 7,
        "save": 2,
    }
    assert shares["steps"] == pytest.approx(0.7)
    assert sum(shares.values()) == pytest.approx(1)


def test_an_error_ends_its_part(clock):
    spent = Goodput()
    with pytest.raises(KeyError), spent.spent_on("restore"):
        raise KeyError
    clock.now += 1
    assert spent.shares()["other"] == 1


def test_each_start_has_its_row(clock, tmp_path):
    path = tmp_path / "goodput.json"
    for start in range(2):
        spent = Goodput()
        clock.now += 4
        for steps in (5, 10):  # with every checkpoint
            spent.write(path, steps=steps, repeated=start)
    rows = json.loads(path.read_text())
    assert [(row["steps"], row["repeated"], row["seconds"]) for row in rows] == [
        (10, 0, 4),
        (10, 1, 4),
    ]
