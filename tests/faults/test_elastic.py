"""Four processes are one run, which goes on in two and in one: the same bits, the same text."""

import shutil

import numpy as np
import pytest
from curves import curve, first_difference

pytestmark = pytest.mark.faults  # fifteen processes take minutes on two cores
# Other meshes may sum gradients in another order, which moves last bits (1.2e-7 each);
# losses of two steps, so of other text, differ by 3e-4 at least.
SAME_TEXT = 1e-5


def done(run) -> None:
    run.start()
    assert run.wait(run.limit_s) == [0] * run.count, run.said()


@pytest.fixture
def legs(together, tmp_path):
    """A function that goes on with the run of four processes after step 4, twice."""
    done(together("run", "steps=4", processes=4))

    def go_on(name: str, *, devices: tuple[int, int]):
        shutil.copytree(tmp_path / "run", tmp_path / name)
        for steps, processes, each in zip((8, 12), (2, 1), devices, strict=True):
            leg = together(name, f"steps={steps}", processes=processes, devices=each)
            done(leg)
            assert f"at step {steps - 4}" in leg.said()
        return leg

    return go_on


def test_four_processes_then_two_then_one(together, legs):
    straight = together("straight", processes=1, devices=4)
    done(straight)
    assert first_difference(straight.out, legs("same mesh", devices=(2, 4)).out) is None
    smaller = curve(legs("smaller meshes", devices=(1, 1)).out)
    ours, theirs = (np.array(rows)[:, 0] for rows in (smaller, curve(straight.out)))
    np.testing.assert_allclose(ours, theirs, rtol=SAME_TEXT)
    assert np.abs(np.diff(theirs) / theirs[1:]).min() > 10 * SAME_TEXT
