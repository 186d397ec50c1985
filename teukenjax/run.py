"""The run directory: what lies in it, how it is resumed, how its model is loaded.

RUN/recipe.yaml      the resolved recipe
RUN/tokenizer/       tokenizer.model, a copy of the store's
RUN/checkpoints/     Orbax steps
RUN/metrics.jsonl    one object a step
RUN/tensorboard/     the same as events
RUN/guard.json       steps that were skipped or undone, if there were any
RUN/goodput.json     where the time went, for each start of the run
RUN/damaged/         checkpoints that could not be read, moved out of the way
RUN/eval.json        bits per byte for each language, before, during and after
RUN/benchmarks.jsonl scores of evaluation.suite, one object an evaluation
RUN/loss.png         the loss curve
RUN/eval-*.json      bits per byte on other texts, and scores of suites (`teukenjax eval`)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from teukenjax import processes
from teukenjax.checkpoint import FOLDER, Checkpoints, find
from teukenjax.data.begun import save
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.kernels.choice import Device, choose_kernels, chosen
from teukenjax.model import Functional, padded_vocab
from teukenjax.model.lora import Adapted
from teukenjax.recipe import (
    ComputeConfig,
    KernelsConfig,
    ModelConfig,
    Recipe,
    ShardingConfig,
    flatten,
    load,
    to_yaml,
)
from teukenjax.sharding import Layout, make_layout, tree_shardings

# A change of these would break the saved state or the order of the data.
FIXED = (
    "seed",
    "model.",
    "batch.sequences",
    "data.weights",
    "data.temperature",
    "data.mixture",
    "data.packing",
    "data.segments",
    "sft.",
    "optimizer.name",
    "optimizer.momentum",
    "optimizer.light",  # its momentum is of another length
)
# These may change their value, but a part of the saved state is there only with one.
OPTIONAL = ("telemetry.every", "optimizer.norm_target", "optimizer.clip_norm")
# A run may be read on another machine than the one that trained it.
ANY_KERNELS = [
    "compute.strict=false",
    *(f"compute.kernels.{name}=auto" for name in KernelsConfig.model_fields),
]


class RunDirectory:
    """One run's files. Opening creates the directory, or finds a run to resume in it."""

    def __init__(self, recipe: Recipe):
        """Args: the recipe as given; ``recipe.out`` is the directory.

        Raises:
          UserError: when the directory holds something that is not a run.
        """
        self.path = recipe.out
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={self.path}: cannot be created: {error.strerror}") from None
        self.is_new = not self._recipe.is_file()
        if self.is_new and any(self.path.iterdir()):
            raise UserError(
                f"out={self.path}: not empty and not a run directory (it has no recipe.yaml)"
            )
        if self.is_new:
            write_atomically(self._recipe, to_yaml(recipe))

    @property
    def _recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    def adopt(self, recipe: Recipe, tokenizer: Tokenizer) -> dict[str, tuple[Any, Any]]:
        """Makes the resolved recipe and the tokenizer those of the run.

        Returns:
          What changed since the run was last started: key → (old, new).

        Raises:
          UserError: when something changed that cannot, or the tokenizer is another one.
        """
        self._adopt_tokenizer(tokenizer)  # before the keys: it is what a changed vocab_size means
        old = flatten(load(self._recipe))
        new = flatten(recipe)
        changed = {
            key: (old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        }
        refused = [key for fixed in FIXED for key in changed if key.startswith(fixed)]
        saved = any(path.name.isdigit() for path in (self.path / FOLDER).glob("*"))
        refused += [key for key in OPTIONAL if None in changed.get(key, ())]
        if refused and saved:
            was, now = changed[refused[0]]
            raise UserError(
                f"{self.path}: {refused[0]} was {was} when the run began and cannot become {now}: "
                f"choose another out, or set it back"
            )
        write_atomically(self._recipe, to_yaml(recipe))
        return changed

    def _adopt_tokenizer(self, tokenizer: Tokenizer) -> None:
        path = self.path / "tokenizer" / "tokenizer.model"
        if path.is_file():
            own = Tokenizer.load(path)
            if own.digest != tokenizer.digest:
                raise UserError(
                    f"{self.path}: the store's tokenizer {tokenizer.digest} differs from the "
                    f"run's {own.digest}: give the store that the run began with"
                )
            return
        path.parent.mkdir(exist_ok=True)
        tokenizer.save(path)

    def evaluations(self) -> list[dict]:
        """The rows of eval.json, by step."""
        return read_rows(self.path / "eval.json")

    def record_benchmarks(self, step: int, shown: dict[str, dict[str, float]]) -> None:
        """Adds task → language → score after ``step`` steps to benchmarks.jsonl, a line a step.

        A line of a step that is done again is replaced.
        """
        if not processes.is_first():
            return
        path = self.path / "benchmarks.jsonl"
        rows = [row for row in read_rows(path) if row["step"] < step]
        rows.append({"step": step, "shown": shown})
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))

    def is_evaluated(self, step: int) -> bool:
        """Whether eval.json has scores after ``step`` steps."""
        return any(row["step"] == step for row in self.evaluations())

    def record_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Adds the scores after ``step`` steps to eval.json, in place of older ones for it."""
        rows = [row for row in self.evaluations() if row["step"] != step]
        rows.append({"step": step, "languages": {k: s.as_dict() for k, s in scores.items()}})
        rows.sort(key=lambda row: row["step"])
        write_atomically(self.path / "eval.json", json.dumps(rows, indent=1))


def read_rows(path: Path) -> list[dict]:
    """The objects of a small file: a JSON list, or an object a line (.jsonl); none without it.

    Raises:
      UserError: when it is damaged; nothing is thrown away unseen.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text)
    except ValueError:
        raise UserError(f"{path}: is damaged: not JSON: remove it") from None


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that a reader, or a kill, never meets half of it.

    Of several processes the first one does.
    """
    if processes.is_first():
        save(path, text.encode())


class LoadedRun(NamedTuple):
    """A run's model, ready to use."""

    path: Path  # of the run directory
    recipe: Recipe
    tokenizer: Tokenizer
    model: Functional
    params: Any
    step: int


def load_run(
    run: Path,
    *,
    devices: list[jax.Device] | None = None,
    layout_of: Callable[[ModelConfig, list[jax.Device]], Layout] | None = None,
) -> LoadedRun:
    """The model of a run directory or of one of its checkpoints, sharded over ``devices``.

    Args:
      run: RUN as every verb takes it.
      devices: default: all, or as many of them as divide the model.
      layout_of: chooses mesh and strategy for them; default: ``fsdp``.
    """
    path, step = find(run)
    recipe = load(path / "recipe.yaml", ANY_KERNELS)
    tokenizer = Tokenizer.load(path / "tokenizer" / "tokenizer.model")
    layout = (layout_of or _fsdp)(recipe.model, devices or jax.devices())
    compute = concrete(recipe, Device.of(layout.mesh.devices.flat[0]), tokens=1)
    model = Functional(recipe.model, compute, layout)
    lora = recipe.sft.lora if recipe.sft is not None else None
    saved = model if lora is None else Adapted(model, lora)
    shardings = tree_shardings(layout, saved.specs, saved.abstract, layout.row.parameters)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), saved.abstract, shardings
    )
    checkpoints = Checkpoints(path)
    params = checkpoints.restore_params(step, abstract)
    checkpoints.close()
    if lora is not None:
        merged = jax.jit(
            lambda base, adapters: saved.merged(saved.join(adapters, base)),
            out_shardings=shardings["base"],
            donate_argnums=0,
        )
        params = merged(params["base"], params["adapters"])
    return LoadedRun(path, recipe, tokenizer, model, params, step)


def _fsdp(config: ModelConfig, devices: list[jax.Device]) -> Layout:
    """Over the longest start of the list that width and vocabulary divide over."""
    count = len(devices)
    while config.width % count or padded_vocab(config) % count:
        count -= 1
    return make_layout(ShardingConfig(strategy="fsdp"), devices[:count])


def concrete(recipe: Recipe, device: Device, *, tokens: int) -> ComputeConfig:
    """The recipe's compute section with kernels chosen for a device; see ``choose_kernels``."""
    kernels = chosen(choose_kernels(recipe, device, tokens=tokens))
    return recipe.compute.model_copy(update={"kernels": kernels})
