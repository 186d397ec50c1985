"""``teukenjax bench step``: the real train step on the devices at hand, timed and taken apart.

The step is the one that ``teukenjax train`` compiles, from the same recipe, state and loader.
It runs once to settle, then a number of times one by one for the median, then once under the
profiler. Nothing here is estimated: the compiler's memory is its plan, the peak is the
allocator's, shares are the profile's.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from rich.console import Console

from teukenjax.bench.classes import classify
from teukenjax.bench.trace import Shares, profile, shares
from teukenjax.data.loader import batches
from teukenjax.data.prepare import open_store
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.errors import UserError
from teukenjax.hardware import find_hardware
from teukenjax.planner.ablation import random_batch
from teukenjax.recipe import Recipe
from teukenjax.sharding import make_layout
from teukenjax.train.batch import Batch, place_batch
from teukenjax.train.loop import resolve
from teukenjax.train.plan import plan_lines, print_lines, with_vocabulary
from teukenjax.train.state import Program
from teukenjax.train.step import make_train_step


@dataclass(frozen=True)
class Measured:
    """What one run of the bench saw.

    Attributes:
      compile_s: lowering and compiling.
      temporary, arguments: bytes per device, as the compiler plans them.
      peak: bytes in use at the worst moment of the process; none where the device keeps no count.
      times: seconds of each step.
      loss: of the last step, nats per token.
      shares: of a profiled step.
    """

    compile_s: float
    temporary: int
    arguments: int
    peak: int | None
    times: list[float]
    loss: float
    shares: Shares

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.times)


def measure(
    recipe: Recipe, console: Console, *, repeats: int, fake_data: bool
) -> tuple[Program, Measured]:
    """Compiles, times and profiles the recipe's train step.

    Args:
      recipe: as loaded.
      console: what is about to run is printed there.
      repeats: timed steps.
      fake_data: random tokens instead of the recipe's store.

    Raises:
      UserError: when the recipe does not suit the devices, or the step does not fit on them.
    """
    program, data = prepare(recipe, console, fake_data=fake_data)
    try:
        return program, run(program, data, repeats)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"batch.sequences={recipe.batch.sequences} in {recipe.batch.accumulation} "
            f"micro-batches with compute.remat={recipe.compute.remat}: does not fit: "
            f"{str(error).splitlines()[0]:.160}"
        ) from None


def prepare(
    recipe: Recipe, console: Console, *, fake_data: bool
) -> tuple[Program, Iterator[Batch]]:
    """The program on all devices and its batches; prints what will run."""
    store = None if fake_data else open_store(recipe, console)
    recipe = with_vocabulary(recipe) if store is None else resolve(recipe, store.tokenizer())
    layout = make_layout(recipe.sharding)
    recipe.batch.micro_batch(layout.batch_shards)  # or it is said that there is none
    device = layout.mesh.devices.flat[0]
    program = Program(recipe, layout, platform=device.platform)
    lines = plan_lines(program, find_hardware(recipe.hardware, device))
    lines["data"] = "random tokens" if store is None else f"{store.location} through the loader"
    lines["versions"] = versions_said()
    print_lines(console, lines)
    if store is None:
        return program, itertools.repeat(random_batch(program))
    return program, real_batches(program, store)


def versions() -> dict[str, str]:
    """Of what decides about speed."""
    platform = jax.devices()[0].client.platform_version.replace("\n", " ")
    return {"jax": jax.__version__, "platform": platform}


def versions_said() -> str:
    """The same for people."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def real_batches(program: Program, store: TokenStore) -> Iterator[Batch]:
    """The first batches of the recipe's run."""
    batch = program.recipe.batch
    rows, stream = range(batch.sequences), Stream.of(program.recipe, store)
    loaded = batches(stream, batch_size=batch.sequences, first_step=0, rows=rows)
    try:
        for samples in loaded:
            yield place_batch(samples, batch.accumulation, program.layout)
    finally:
        loaded.close()


def run(program: Program, data: Iterator[Batch], repeats: int) -> Measured:
    """Compiles the step and runs it ``repeats`` + 2 times."""
    start = time.perf_counter()
    first = next(data)
    step = make_train_step(program).lower(program.abstract_state, first).compile()
    compile_s = time.perf_counter() - start
    classes, sizes = classify(step.as_text()), step.memory_analysis()
    state, _ = jax.block_until_ready(step(program.init(), first))
    times = []
    for batch in itertools.islice(data, repeats):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    batch = next(data)
    events = profile(lambda: jax.block_until_ready(step(state, batch)))
    return Measured(
        compile_s=compile_s,
        temporary=sizes.temp_size_in_bytes,
        arguments=sizes.argument_size_in_bytes,
        peak=peak,
        times=times,
        loss=float(metrics["loss"]),
        shares=shares(events, classes, steps=1),
    )
