"""An hour of training in two processes, one of which is killed every few minutes.

    uv run python tools/faults/soak.py --store STORE --out DIR --minutes 60

At the end the run is told to stop, and as many steps are done again undisturbed, in one process.
Every row of the two runs' metrics has to be the same, bit for bit.
"""

import json
import random
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from curves import curve, first_difference, steps_done
from together import Together

SHORTEST_S, LONGEST_S = 90.0, 300.0  # between two kills
ENDLESS = 10_000_000  # steps


def main(
    store: Annotated[Path, typer.Option(help="A token store.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    recipe: Annotated[Path, typer.Option(help="A recipe with a constant learning rate.")],
    minutes: Annotated[float, typer.Option(help="Of disturbed training.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the moments and victims.")] = 0,
) -> None:
    """Disturbs a run, repeats it undisturbed, compares."""
    common = [str(recipe), f"data.store={store}"]
    disturbed, straight = out / "disturbed", out / "straight"
    run = Together(
        [*common, f"out={disturbed}", f"steps={ENDLESS}"], processes=2, devices=1, folder=out
    )
    kills = disturb(run, minutes * 60, random.Random(seed), disturbed)
    steps = steps_done(disturbed)
    again = Together(
        [*common, f"out={straight}", f"steps={steps}"],
        processes=1,
        devices=2,
        folder=out / "alone",
    )
    again.start()
    codes = again.wait(minutes * 120)
    differs = first_difference(disturbed, straight)
    result = {
        "minutes": minutes,
        "kills": kills,
        "starts": run.starts,
        "steps": steps,
        "repeated": sum(row["repeated"] for row in goodput(disturbed)),
        "exit codes of the undisturbed run": codes,
        "last loss": curve(disturbed)[-1][0],
        "last loss undisturbed": curve(straight)[-1][0],
        "first step that differs": differs,
    }
    print(json.dumps(result, indent=1))
    raise SystemExit(differs is not None)


def disturb(run: Together, seconds: float, rng: random.Random, out: Path) -> int:
    """Kills one process or all of them at random moments, and starts them again; the kills."""
    until, kills = time.monotonic() + seconds, 0
    run.start()
    while time.monotonic() < until:
        moment = time.monotonic() + rng.uniform(SHORTEST_S, LONGEST_S)
        while time.monotonic() < min(moment, until):
            time.sleep(1)
            if any(process.poll() is not None for process in run.running):
                raise SystemExit(f"ended by itself: {run.said(0)[-500:]}")
        if time.monotonic() >= until:
            break
        victim = rng.choice([0, 1])
        run.send(signal.SIGKILL, victim)
        codes = run.wait(120)
        kills += 1
        print(f"kill {kills}: process {victim} at {steps_done(out)} steps: {codes}", flush=True)
        run.start()
    run.send(signal.SIGTERM, 1)
    print(f"told to stop: {run.wait(120)}", flush=True)
    return kills


def goodput(out: Path) -> list[dict]:
    """One object for each start."""
    return json.loads((out / "goodput.json").read_text())


if __name__ == "__main__":
    typer.run(main)
