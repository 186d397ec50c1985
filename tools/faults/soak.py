"""An hour of training in two processes, one of which is killed every few minutes.

    uv run python tools/faults/soak.py --store STORE --recipe RECIPE --out DIR --minutes 60

Beside it the same run goes on undisturbed, in one process, until it has done as many steps. Every
row of the two runs' metrics has to be the same, bit for bit.
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

from teukenjax.cli.ending import run_script

SHORTEST_S, LONGEST_S = 90.0, 300.0  # between two kills
ENDLESS = 10_000_000  # steps
START_LIMIT_S = 600.0


def main(
    store: Annotated[Path, typer.Option(help="A token store.")],
    out: Annotated[Path, typer.Option(help="A new directory.")],
    recipe: Annotated[Path, typer.Option(help="A recipe with a constant learning rate.")],
    minutes: Annotated[float, typer.Option(help="Of disturbed training.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the moments and victims.")] = 0,
) -> None:
    """Disturbs a run, leaves another alone, compares."""
    common = [str(recipe), f"data.store={store}", f"steps={ENDLESS}"]
    disturbed, straight = out / "disturbed", out / "straight"
    run = Together([*common, f"out={disturbed}"], processes=2, devices=1, folder=out)
    alone = Together([*common, f"out={straight}"], processes=1, devices=2, folder=out / "alone")
    alone.start()
    began = time.monotonic()
    kills = disturb(run, minutes * 60, random.Random(seed), disturbed)
    minutes = (time.monotonic() - began) / 60
    steps = steps_done(disturbed)
    code = catch_up(alone, straight, steps, minutes * 60)
    differs = first_difference(disturbed, straight, steps=steps)
    result = {
        "minutes": round(minutes, 1),
        "kills": kills,
        "starts": run.starts,
        "steps": steps,
        "repeated": sum(row["repeated"] for row in goodput(disturbed)),
        "exit code of the undisturbed run": code,
        "last loss": curve(disturbed)[-1][0],
        "last loss undisturbed": curve(straight)[steps - 1][0],
        "first step that differs": differs,
    }
    print(json.dumps(result, indent=1))
    raise SystemExit(differs is not None)


def catch_up(alone: Together, out: Path, steps: int, limit_s: float) -> int:
    """Lets the undisturbed run do as many steps, and tells it to stop; its exit code."""
    until = time.monotonic() + limit_s
    while steps_done(out) < steps and time.monotonic() < until:
        if alone.running[0].poll() is not None:
            raise SystemExit(f"the undisturbed run ended by itself: {alone.said()[-500:]}")
        time.sleep(1)
    alone.send(signal.SIGTERM, 0)
    return alone.wait(120)[0]


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
    run.until(out, steps_done(out) + 1, START_LIMIT_S)  # sooner the signal would meet Python
    run.send(signal.SIGTERM, 1)
    print(f"told to stop: {run.wait(120)}", flush=True)
    return kills


def goodput(out: Path) -> list[dict]:
    """One object for each start."""
    return json.loads((out / "goodput.json").read_text())


if __name__ == "__main__":
    run_script(main)
