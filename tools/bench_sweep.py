"""What a group of a sweep costs beside its runs one by one, on this machine's first device.

    uv run python tools/bench_sweep.py STORE --width 256 --batch 32

It times ``make_train_step`` for one run and ``GroupProgram.advance`` for 8 that differ in their
learning rate, the same model and batches, compilation left out, and prints medians and spread.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer
from rich.console import Console

from teukenjax.cli.ending import run_script
from teukenjax.data.store import TokenStore
from teukenjax.recipe import ShardingConfig, load
from teukenjax.scaling.members import GroupProgram
from teukenjax.scaling.spec import Group, Member, Multipliers
from teukenjax.scaling.sweep import resolved
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step

RECIPE = Path(__file__).parent.parent / "configs" / "recipes" / "scaling-proxy.yaml"


def group_of(store: Path, width: int, batch: int, runs: int, overrides: list[str]) -> Group:
    """``runs`` learning rates, each half the last."""
    heads = max(width // 64, 1)
    shape = [f"model.{k}={v}" for k, v in (("width", width), ("ffn", width * 11 // 4))]
    shape += [f"model.heads={heads}", f"model.kv_heads={heads}", f"batch.sequences={batch}"]
    recipe = load(RECIPE, [f"data.store={store}", *shape, *overrides])
    members = tuple(Member(float(-2 - i), 42, Multipliers()) for i in range(runs))
    return resolved(Group("bench", recipe, members, (recipe.steps,)), TokenStore.open(store))


def seconds_a_step(call, state, *, steps: int, repeats: int) -> list[float]:
    """``call(state) → state`` does ``steps`` steps; the first call is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state = jax.block_until_ready(call(state))
        times.append((time.perf_counter() - start) / steps)
    return times[1:]


def time_one(group: Group, steps: int, repeats: int) -> list[float]:
    """The step that ``train`` runs."""
    device = jax.devices()[0]
    layout = make_layout(ShardingConfig(strategy="ddp"), [device])
    program = Program(group.recipe, layout, platform=device.platform)
    step, batch = make_train_step(program), Batch(_tokens(group, 1)[0])

    def call(state):
        for _ in range(steps):
            state, _ = step(state, batch)
        return state

    return seconds_a_step(call, program.init(), steps=steps, repeats=repeats)


def time_together(group: Group, steps: int, repeats: int) -> list[float]:
    """The program of a sweep."""
    long = group.recipe.model_copy(update={"steps": steps * (repeats + 1)})
    program = GroupProgram(dataclasses.replace(group, recipe=long), jax.devices()[0])
    tokens = jax.device_put(_tokens(group, steps))

    def call(state):
        return program.advance(state, tokens, np.int32(steps))[0]

    return seconds_a_step(call, program.init(), steps=steps, repeats=repeats)


def _tokens(group: Group, steps: int) -> np.ndarray:
    batch, model = group.recipe.batch, group.recipe.model
    shape = (steps, batch.accumulation, batch.sequences // batch.accumulation, model.context + 1)
    return np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)


def main(
    store: Annotated[Path, typer.Argument(help="A token store; only its vocabulary is used.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    width: Annotated[int, typer.Option(help="A multiple of 64.")] = 256,
    batch: Annotated[int, typer.Option(help="Sequences of 256 tokens a step.")] = 32,
    runs: Annotated[int, typer.Option(help="Of the group.")] = 8,
    steps: Annotated[int, typer.Option(help="Of one repeat.")] = 32,
    repeats: Annotated[int, typer.Option(help="Counted ones.")] = 5,
) -> None:
    """Print milliseconds a step: one run, the group, and the group as a share of its runs."""
    console = Console(highlight=False)
    group = group_of(store, width, batch, runs, overrides or [])
    console.print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, width {width}")
    one = time_one(dataclasses.replace(group, members=group.members[:1]), steps, repeats)
    together = time_together(group, steps, repeats)
    for name, times in (("one run", one), (f"{runs} together", together)):
        middle, low, high = (1e3 * f(times) for f in (statistics.median, min, max))
        console.print(f"{name}: {middle:.2f} ms a step ({low:.2f} … {high:.2f})")
    share = statistics.median(together) / (runs * statistics.median(one))
    console.print(f"{runs} together cost {share:.0%} of {runs} runs one by one")


if __name__ == "__main__":
    run_script(main)
