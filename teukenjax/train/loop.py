"""The story of a run: data, mesh, state, steps, evaluation, and what to do next.

Step n + 1 is dispatched before the numbers of step n are read, so the device never waits for the
host. Whatever the numbers decide (stopping, going back) therefore happens one step late; and it
is decided alike in every process, as the numbers are the same.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.text import Text

from teukenjax import processes
from teukenjax.checkpoint import Checkpoints
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import LOST, PREEMPTED, TryAgainError, UserError, disk_errors
from teukenjax.hardware import find_hardware
from teukenjax.infer import Generator, Sampling
from teukenjax.recipe import Recipe
from teukenjax.run import RunDirectory, load_run
from teukenjax.sharding import make_layout
from teukenjax.train.batch import abstract_batch
from teukenjax.train.evaluation import Evaluations
from teukenjax.train.feed import Feed
from teukenjax.train.goodput import Goodput
from teukenjax.train.guard import Guard, Rewind
from teukenjax.train.metrics import plot_loss, read_metrics
from teukenjax.train.plan import print_plan
from teukenjax.train.preemption import Preemption
from teukenjax.train.progress import StepProgress
from teukenjax.train.record import Recorder
from teukenjax.train.replicas import ReplicaCheck, describe
from teukenjax.train.report import print_evaluations
from teukenjax.train.resume import Restored, about_run, check_run, restore_newest
from teukenjax.train.source import Source, TextSource
from teukenjax.train.state import Program, TrainState
from teukenjax.train.step import make_train_step
from teukenjax.train.watch import Watch
from teukenjax.units import GIB


class Run:
    """A recipe brought to life on the devices of this process and of those beside it."""

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        open_source: Callable[[Recipe, Console], Source] = TextSource,
    ):
        """Finds or makes the run directory and the data, and resolves what depends on them.

        Raises:
          TryAgainError: when another process does not come, or is lost.
        """
        self.console, self.goodput = console, Goodput()
        self.watch = Watch(limit_s=recipe.guard.timeout_s)
        with self.watch:
            # Making a store out of text may take hours.
            self.watch.doing("opening run directory and data", patience=math.inf)
            self._open(recipe, open_source)
            self.watch.doing("preparing the first step")
            self._build()

    def _open(self, recipe: Recipe, open_source: Callable[[Recipe, Console], Source]) -> None:
        what = "run directory and token store"
        with processes.first_alone(what, limit_s=recipe.guard.timeout_s):
            self.directory = RunDirectory(recipe)
            self.source = open_source(recipe, self.console)
            self.tokenizer = self.source.tokenizer
            self.recipe = resolve(recipe, self.tokenizer)
            self.changed = self.directory.adopt(self.recipe, self.tokenizer)

    def _build(self) -> None:
        """What is made of recipe and data; Orbax waits for all processes here."""
        recipe, console, limit_s = self.recipe, self.console, self.recipe.guard.timeout_s
        self.layout = make_layout(recipe.sharding)
        recipe.batch.micro_batch(self.layout.batch_shards)  # or it is said that there is none
        device = self.layout.mesh.devices.flat[0]
        self.program = Program(recipe, self.layout, platform=device.platform)
        self.stream = self.source.stream(recipe)
        self.hardware = find_hardware(recipe.hardware, device)
        self.checkpoints = Checkpoints(self.directory.path, recipe.checkpoint, limit_s=limit_s)
        self.evaluations = Evaluations(self.program, self.source, self.directory, console)
        self.guard = Guard(recipe.guard)
        self.record = Recorder(
            self.program, self.hardware, self.guard, self.goodput, self.directory.path, console
        )
        self.replicas = ReplicaCheck(self.layout.mesh, self.program.abstract_state.params)
        self.preemption = Preemption(self.layout.mesh)
        print_plan(console, self.program, self.stream.mixture, self.hardware)

    def train(self) -> None:
        """From the newest checkpoint, or from nothing, to the last step.

        Raises:
          TryAgainError: when the run was told to stop, after saving; or when a process, the
            network, a data server or a replica was lost.
        """
        with self.watch, self.preemption:
            try:
                self._train()
            except KeyboardInterrupt:
                self._close()
                self.console.print(f"stopped: {self._goes_on()}")
                raise
            except Exception as error:
                if processes.all_end_alike(error):
                    self._close()
                raise
            self._close()
        self.goodput.show(self.console)

    def _train(self) -> None:
        state, first = self._start()
        if first == 0:
            self._evaluate(state, 0)
        while first < self.recipe.steps:
            try:
                state, first = self._steps(state, first), self.recipe.steps
            except Rewind:
                state, first = self._start(rewinding=True)
            else:
                self._save(state, first)
        if not self.directory.is_evaluated(first):
            self._evaluate(state, first)

    def _start(self, *, rewinding: bool = False) -> tuple[TrainState, int]:
        """The state to go on from, and how many steps it has done."""
        self.watch.doing("restoring")
        with self.goodput.spent_on("restore"):
            self.checkpoints.wait()
            restored = restore_newest(self.checkpoints, self.program.abstract_state, self.console)
        if restored is None:
            with self.goodput.spent_on("compile"):
                restored = Restored(self.source.initial(self.program), 0, None)
        state, step, about = restored
        if rewinding:
            self.guard.moved_back(step)
            self.console.print(f"back at step {step}; the data goes on", highlight=False)
        else:
            self.began = step
            if about is not None:
                self._adopt(about)
        self.record.begin(step)
        return state, step

    def _adopt(self, about: dict) -> None:
        """Takes over what a checkpoint says, if it is this run's."""
        check_run(about, self.directory.path, self.recipe, self.source)
        self.guard.restore(about["guard"])
        self.console.print(
            f"resuming {self.directory.path} at step {about['step']}", highlight=False
        )
        for key, (old, new) in self.changed.items():
            self.console.print(f"  {key}: {old} → {new}", highlight=False)

    def _steps(self, state: TrainState, first: int) -> TrainState:
        recipe, train_step, pending = self.recipe, self._compiled, None
        feed = Feed(self.stream, recipe.batch, self.layout, first=first + self.guard.moved)
        self.record.start_clock()
        with (
            StepProgress(self.console, steps=recipe.steps, first_step=first) as progress,
            contextlib.closing(feed),
            self.goodput.spent_on("steps"),
        ):
            for done in range(first + 1, recipe.steps + 1):
                self.watch.doing(f"step {done}, waiting for {self.source.name}")
                with self.goodput.spent_on("data"):
                    batch = next(feed)
                self.watch.doing(f"step {done}")
                state, metrics = train_step(state, batch)
                metrics["votes"] = self.preemption.votes()
                if pending is not None:
                    progress.show(self.record(*pending))
                pending = done, metrics
                if self.record.stopping or self._pauses_at(done):
                    progress.show(self.record(*pending))
                    pending = None
                    self._pause(state, done)
        return state

    @functools.cached_property
    def _compiled(self):
        """The step, compiled for its shapes before the clock starts."""
        self.watch.doing("compiling", patience=4.0)
        start = time.perf_counter()
        batch = abstract_batch(self.recipe, self.layout, segmented=self.stream.segmented)
        with self.goodput.spent_on("compile"):
            step = make_train_step(self.program).lower(self.program.abstract_state, batch).compile()
        memory = step.memory_analysis()
        self.console.print(
            f"compiled in {time.perf_counter() - start:.1f} s; the compiler plans "
            f"{memory.temp_size_in_bytes / GIB:.3g} GiB of temporary memory per device",
            highlight=False,
        )
        return step

    def _pauses_at(self, step: int) -> bool:
        every, last = self.recipe.guard.checksums, step == self.recipe.steps
        compares = every is not None and step % every == 0
        saves = step % self.recipe.checkpoint.every == 0
        return saves or compares or last or self.evaluations.due_at(step)

    def _pause(self, state: TrainState, done: int) -> None:
        """What happens between two steps."""
        every = self.recipe.guard.checksums
        if every is not None and done % every == 0:
            self._compare_replicas(state, done)
        due = done % self.recipe.checkpoint.every == 0 or self.record.stopping
        # What a bad step left as it was may be what made it bad.
        if due and self.record.healthy and done < self.recipe.steps:
            self._save(state, done)
        if self.record.stopping and done < self.recipe.steps:
            self.checkpoints.wait()
            raise TryAgainError(f"told to stop: {self._goes_on()}", PREEMPTED)
        if self.evaluations.due_at(done):
            self._evaluate(state, done)
        self.record.start_clock()

    def _goes_on(self) -> str:
        return f"the same command goes on from step {self.checkpoints.latest() or 0}"

    def _compare_replicas(self, state: TrainState, step: int) -> None:
        if corrupt := self.replicas(state.params):
            raise TryAgainError(f"step {step}: {'; '.join(map(describe, corrupt))}", LOST)

    def _save(self, state: TrainState, step: int) -> None:
        about = about_run(self.recipe, self.source, self.guard, step)
        self.watch.doing(f"saving step {step}")
        with self.goodput.spent_on("save"):
            self.checkpoints.save(step, state, about)
        path = self.directory.path / "goodput.json"
        self.goodput.write(path, steps=step - self.began, repeated=self.record.repeated)

    def _evaluate(self, state: TrainState, step: int) -> None:
        self.watch.doing(f"evaluating step {step}", patience=8.0)  # a suite is long
        with self.goodput.spent_on("evaluation"):
            self.evaluations(state.params, step, self.record.log)

    def _close(self) -> None:
        self.watch.doing("closing")
        with self.goodput.spent_on("save"):
            self.checkpoints.close()
        self.record.log.close()


def train(
    recipe: Recipe,
    console: Console,
    open_source: Callable[[Recipe, Console], Source] = TextSource,
) -> Path:
    """Trains, and leaves checkpoints, metrics, scores and a loss curve in ``recipe.out``."""
    console = console if processes.is_first() else Console(quiet=True)
    with disk_errors(recipe.out):
        run = Run(recipe, console, open_source)
        run.train()
        path = run.directory.path
        if not processes.is_first():
            return path
        rows = read_metrics(run.directory.metrics)
        plot_loss(rows, path / "loss.png")
    print_evaluations(console, run.directory.evaluations())
    if recipe.prompt is not None and jax.process_count() == 1:
        loaded = load_run(path, devices=jax.devices()[:1])
        generate = Generator(loaded.model, loaded.params, loaded.tokenizer)
        text = generate(recipe.prompt, tokens=40, sampling=Sampling())
        console.print(Text(recipe.prompt, style="bold") + Text(text))
    return path


def resolve(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The recipe with the vocabulary size of its tokenizer."""
    given = recipe.model.vocab_size
    if given not in (None, tokenizer.vocab_size):
        raise UserError(
            f"model.vocab_size={given}: the store's tokenizer has {tokenizer.vocab_size} pieces"
        )
    model = recipe.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    return recipe.model_copy(update={"model": model})
