"""The story of a run: data, mesh, state, steps, evaluation, and what to do next.

Step n + 1 is dispatched before the numbers of step n are read, so the device never waits for the
host. Whatever the numbers decide (stopping, saving) therefore happens one step late.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.text import Text

from teukenjax.checkpoint import Checkpoints
from teukenjax.data.loader import batches
from teukenjax.data.prepare import open_store
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError, disk_errors
from teukenjax.evaluate import Evaluator, mean
from teukenjax.hardware import find_hardware, mfu
from teukenjax.infer import Generator, Sampling
from teukenjax.model import flops_per_token
from teukenjax.recipe import Recipe, digest
from teukenjax.run import RunDirectory, load_run
from teukenjax.sharding import Layout, make_layout
from teukenjax.train.batch import Batch, abstract_batch, place_batch
from teukenjax.train.metrics import MetricsLog, plot_loss, read_metrics
from teukenjax.train.norms import norm_columns
from teukenjax.train.plan import GIB, print_plan
from teukenjax.train.progress import StepProgress
from teukenjax.train.report import print_evaluations
from teukenjax.train.state import Program, TrainState
from teukenjax.train.step import Metrics, make_train_step


class Run:
    """A recipe brought to life on this machine's devices."""

    def __init__(self, recipe: Recipe, console: Console):
        """Finds or makes the run directory and the data, and resolves what depends on them."""
        self.console = console
        self.directory = RunDirectory(recipe)
        self.store = open_store(recipe, console)
        self.tokenizer = self.store.tokenizer()
        self.recipe = recipe = resolve(recipe, self.tokenizer)
        self.changed = self.directory.adopt(recipe, self.tokenizer)
        self.layout = make_layout(recipe.sharding)
        check_batch(recipe, self.layout)
        device = self.layout.mesh.devices.flat[0]
        self.program = Program(recipe, self.layout, platform=device.platform)
        self.stream = Stream.of(recipe, self.store)
        self.hardware = find_hardware(recipe.hardware, device)
        self.checkpoints = Checkpoints(self.directory.path, recipe.checkpoint)
        self.evaluator = Evaluator(
            self.program.model,
            eod=self.tokenizer.eod_id,
            batch_tokens=recipe.evaluation.batch_tokens,
        )
        print_plan(console, self.program, self.stream.mixture, self.hardware)

    def train(self) -> None:
        """From the newest checkpoint, or from nothing, to the last step."""
        state, first = self._start()
        self.log = MetricsLog(self.directory.path, first_step=first)
        try:
            if first == 0:
                self._evaluate(state, 0)
            if first < self.recipe.steps:
                state = self._steps(state, first)
                self._save(state, self.recipe.steps)
                self._evaluate(state, self.recipe.steps)
        except KeyboardInterrupt:
            self.checkpoints.wait()
            step = self.checkpoints.latest() or 0
            self.console.print(f"stopped: the same command goes on from step {step}")
            raise
        finally:
            self.checkpoints.close()
            self.log.close()

    def _start(self) -> tuple[TrainState, int]:
        latest = self.checkpoints.latest()
        if latest is None:
            return self.program.init(), 0
        about = self.checkpoints.about(latest)
        if about["store"] != self.store.digest:
            raise UserError(
                f"{self.directory.path}: began with token store {about['store']}, but data.store "
                f"{self.store.location} is {self.store.digest}: give the one that it began with"
            )
        if latest > self.recipe.steps:
            raise UserError(
                f"steps={self.recipe.steps}: {self.directory.path} has already done {latest}"
            )
        self.console.print(f"resuming {self.directory.path} at step {latest}", highlight=False)
        for key, (old, new) in self.changed.items():
            self.console.print(f"  {key}: {old} → {new}", highlight=False)
        return self.checkpoints.restore(latest, self.program.abstract_state), latest

    def _steps(self, state: TrainState, first: int) -> TrainState:
        recipe, train_step = self.recipe, self._compile()
        pending = None
        self._finished_at = time.perf_counter()
        with StepProgress(self.console, steps=recipe.steps, first_step=first) as progress:
            for step, batch in zip(range(first, recipe.steps), self._batches(first), strict=False):
                state, metrics = train_step(state, batch)
                if pending is not None:
                    progress.show(self._record(*pending))
                pending = step + 1, metrics
                done = step + 1
                if done % recipe.checkpoint.every == 0 or self._evaluates_at(done):
                    progress.show(self._record(*pending))
                    pending = None
                    if done % recipe.checkpoint.every == 0 and done < recipe.steps:
                        self._save(state, done)
                    if self._evaluates_at(done):
                        self._evaluate(state, done)
                    self._finished_at = time.perf_counter()
            if pending is not None:
                progress.show(self._record(*pending))
        return state

    def _compile(self):
        """The step, compiled for its shapes before the clock starts."""
        start = time.perf_counter()
        batch = abstract_batch(self.recipe, self.layout, segmented=self.stream.segmented)
        step = make_train_step(self.program).lower(self.program.abstract_state, batch).compile()
        memory = step.memory_analysis()
        self.console.print(
            f"compiled in {time.perf_counter() - start:.1f} s; the compiler plans "
            f"{memory.temp_size_in_bytes / GIB:.3g} GiB of temporary memory per device",
            highlight=False,
        )
        return step

    def _batches(self, first: int) -> Iterator[Batch]:
        """Batches on the mesh, from step ``first`` on."""
        sequences = self.recipe.batch.sequences
        rows = range(sequences)
        loaded = batches(self.stream, batch_size=sequences, first_step=first, rows=rows)
        try:
            for sample in loaded:
                yield place_batch(sample, self.recipe.batch.accumulation, self.layout)
        finally:
            loaded.close()

    def _record(self, step: int, metrics: Metrics) -> dict:
        """Reads a step's numbers, which waits for the step; writes and returns them."""
        norms = metrics.pop("norms")
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        tokens_per_s = self.recipe.tokens_per_step / (now - self._finished_at)
        self._finished_at = now
        devices = self.layout.mesh.devices.size
        used = mfu(tokens_per_s, flops_per_token(self.recipe.model), devices, self.hardware)
        row = {"step": step, **values, "tokens_per_s": round(tokens_per_s, 1), "mfu": used}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"loss is {values['loss']} at step {step}: lower optimizer.learning_rate; "
                f"checkpoints before it are kept in {self.checkpoints.folder}"
            )
        every = self.recipe.telemetry.every
        if every is not None and step % every == 0:
            row |= norm_columns(norms, self.program.leaf_specs)
        self.log.write(row)
        return row

    def _save(self, state: TrainState, step: int) -> None:
        about = {
            "step": step,
            "next_row": step * self.recipe.batch.sequences,  # of the data stream
            "store": self.store.digest,
            "tokenizer": self.tokenizer.digest,
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_hash": digest(self.recipe),
            "versions": {"jax": jax.__version__},
        }
        self.checkpoints.save(step, state, about)

    def _evaluates_at(self, step: int) -> bool:
        every = self.recipe.evaluation.every
        return every is not None and step % every == 0 and step < self.recipe.steps

    def _evaluate(self, state: TrainState, step: int) -> None:
        scores = self.evaluator(state.params, held_out(self.store, self.recipe))
        if not scores:
            return
        self.directory.record_evaluation(step, scores)
        self.log.write_scores(step, scores)
        text = f"step {step}: {mean(scores):.3f} bits per byte, mean of {len(scores)} languages"
        self.console.print(text, highlight=False)


def train(recipe: Recipe, console: Console) -> Path:
    """Trains, and leaves checkpoints, metrics, scores and a loss curve in ``recipe.out``."""
    with disk_errors(recipe.out):
        run = Run(recipe, console)
        run.train()
        path = run.directory.path
        rows = read_metrics(run.directory.metrics)
        plot_loss(rows, path / "loss.png")
    print_evaluations(console, run.directory.evaluations())
    if recipe.prompt is not None:
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


def check_batch(recipe: Recipe, layout: Layout) -> None:
    """Raises a UserError when a micro-batch does not split over the mesh."""
    batch, shards = recipe.batch, layout.batch_shards
    if batch.sequences % (batch.accumulation * shards):
        raise UserError(
            f"batch.sequences={batch.sequences} in {batch.accumulation} micro-batches does not "
            f"divide over replica×fsdp={shards}: set batch.sequences to a multiple of "
            f"{batch.accumulation * shards}"
        )


def held_out(store: TokenStore, recipe: Recipe) -> dict[str, list[tuple[np.ndarray, int]]]:
    """The first held-out documents of each language."""
    limit = recipe.evaluation.documents
    return {language: store.documents("valid", language, limit) for language in store.languages}
