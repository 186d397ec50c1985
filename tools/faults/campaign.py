"""SIGKILL at random moments, also during a save: is it still the run that was left alone?

    uv run python tools/faults/campaign.py --store STORE --recipe RECIPE --out DIR --kills 20

Every second kill waits until a checkpoint is being written. With ``--processes 2`` one of the two
is killed, and the other has to end by itself, with its own code. RECIPE has a constant learning
rate.
"""

import json
import random
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from curves import first_difference, steps_done
from together import Together

from teukenjax.cli.ending import run_script
from teukenjax.errors import LOST

LIMIT_S = 600
SURVIVORS_S = 120  # until they have seen it


def main(
    store: Annotated[Path, typer.Option(help="A token store.")],
    recipe: Annotated[Path, typer.Option(help="A recipe.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    kills: Annotated[int, typer.Option(help="How many.")] = 20,
    steps: Annotated[int, typer.Option(help="Of the run.")] = 400,
    processes: Annotated[int, typer.Option(help="Of the run; one is killed.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kills a run, finishes it, and compares it with one that was left alone."""
    rng, common = random.Random(seed), [str(recipe), f"data.store={store}", f"steps={steps}"]
    runs = {}
    for name, count in (("straight", 1), ("killed", processes)):
        arguments = [*common, f"out={out / name}"]
        devices = processes // count
        runs[name] = Together(
            arguments, processes=count, devices=devices, folder=out / f"{name}-log"
        )
    runs["straight"].start()
    print(f"undisturbed: {runs['straight'].wait(LIMIT_S)}", flush=True)
    saving = sum(kill(runs["killed"], out / "killed", rng, n, steps, kills) for n in range(kills))
    runs["killed"].start()
    codes = runs["killed"].wait(LIMIT_S)
    differs = first_difference(out / "straight", out / "killed")
    goodput = json.loads((out / "killed" / "goodput.json").read_text())
    result = {
        "kills": kills,
        "during a save": saving,
        "exit codes at the end": codes,
        "repeated steps": sum(row["repeated"] for row in goodput),
        "first step that differs": differs,
    }
    print(json.dumps(result, indent=1))
    raise SystemExit(differs is not None)


def kill(run: Together, out: Path, rng: random.Random, n: int, steps: int, kills: int) -> bool:
    """Starts, kills after some more steps; whether a save was going on."""
    run.start()
    # Later each time, so that the run gets on and is still going when the last kill comes.
    goal = int(steps * (n + rng.random()) / (kills + 1))
    end = time.monotonic() + LIMIT_S
    while steps_done(out) < goal and time.monotonic() < end:
        time.sleep(rng.random() / 10)
    while n % 2 and not is_saving(out) and time.monotonic() < end:
        time.sleep(0.001)
    saving = is_saving(out)
    victim = rng.randrange(run.count)
    run.send(signal.SIGKILL, victim)
    codes = run.wait(SURVIVORS_S)
    what = f"process {victim} at {steps_done(out)} steps{', saving' * saving}: {codes}"
    print(f"kill {n + 1}: {what}", flush=True)
    assert set(codes) <= {-signal.SIGKILL, -signal.SIGABRT, LOST}, run.said(1 - victim)[-500:]
    return saving


def is_saving(out: Path) -> bool:
    """Whether there is a checkpoint under a temporary name."""
    return any("tmp" in path.name for path in (out / "checkpoints").glob("*"))


if __name__ == "__main__":
    run_script(main)
