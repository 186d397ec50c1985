"""Trains one group: batches in, rows at its horizons out, a checkpoint to go on from."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from teukenjax.checkpoint import Checkpoints
from teukenjax.data.loader import batches
from teukenjax.data.store import TokenStore
from teukenjax.data.stream import Stream
from teukenjax.model import parameter_count
from teukenjax.recipe import CheckpointConfig
from teukenjax.scaling.members import GroupProgram, Together, by_layer, by_role
from teukenjax.scaling.results import ROWS, TRACES, write
from teukenjax.scaling.spec import Group, member_hash

CHUNK = 32  # steps of one call
WINDOW = 16  # the loss at a horizon is the mean over the last 1/16 of the steps up to it
HELD_OUT_WINDOWS = 16  # of each language, at most
SAVE_EVERY_S = 300.0

Shown = Callable[[int], None]  # steps done


class GroupTraining:
    """One group, from its checkpoint or from nothing to its last horizon."""

    def __init__(self, group: Group, store: TokenStore, out: Path, device: jax.Device):
        """Args: a resolved group, its data, the sweep's folder, and what to train on."""
        self.group, self.recipe, self.store, self.out = group, group.recipe, store, out
        self.program = GroupProgram(group, device)
        self.stream = Stream.of(self.recipe, store)
        self.folder = out / "unfinished" / group.name
        self.languages, self.windows = held_out_windows(
            store, self.recipe.model.context, self.recipe.batch.sequences
        )
        self.stops = observed_steps(group.horizons)
        self.rows: list[dict[str, Any]] = []
        self.traces: list[dict[str, Any]] = []
        self.seconds = 0.0

    def run(self, shown: Shown) -> None:
        """Writes the group's rows; what is left of it besides is removed."""
        keep = CheckpointConfig(keep_last=1)
        self.checkpoints = Checkpoints(self.folder, keep)
        try:
            self._train(shown)
        finally:
            self.checkpoints.close()
        write(self.traces, TRACES, self.out / "traces" / f"{self.group.name}.parquet")
        write(self.rows, ROWS, self.out / "rows" / f"{self.group.name}.parquet")
        shutil.rmtree(self.folder)

    def _train(self, shown: Shown) -> None:
        state, first = self._start()
        advance = self._compile(state)
        shown(first)
        self._clock = saved = time.perf_counter()
        waiting = None
        for tokens, count, done in self._chunks(first):
            state, steps = advance(state, tokens, np.int32(count))
            if waiting is not None:  # of the chunk before, while this one is being computed
                shown(int(waiting))
            waiting = steps
            if done in self.stops:
                self._observe(state, done)
            due = time.perf_counter() - saved > SAVE_EVERY_S
            if due or (done in self.group.horizons and done < self.recipe.steps):
                self._save(state, done)
                saved = time.perf_counter()
        shown(self.recipe.steps)

    def _compile(self, state: Together):
        parts, sequences = self.recipe.batch.accumulation, self.recipe.batch.sequences
        shape = (CHUNK, parts, sequences // parts, self.recipe.model.context + 1)
        tokens = jax.ShapeDtypeStruct(shape, np.int32)
        return self.program.advance.lower(state, tokens, np.int32(0)).compile()

    def _start(self) -> tuple[Together, int]:
        latest = self.checkpoints.latest()
        if latest is None:
            return self.program.init(), 0
        about = self.checkpoints.about(latest)
        self.rows, self.traces = about["rows"], about["traces"]
        self.seconds = about["seconds"]
        return self.checkpoints.restore(latest, self.program.abstract), latest

    def _save(self, state: Together, step: int) -> None:
        seconds = self.seconds + time.perf_counter() - self._clock
        about = {"rows": self.rows, "traces": self.traces, "seconds": seconds}
        self.checkpoints.save(step, state, about)

    def _chunks(self, first: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """Tokens [CHUNK, A, B/A, S+1], how many of the steps count, and the step after them."""
        sequences, parts = self.recipe.batch.sequences, self.recipe.batch.accumulation
        loaded = batches(self.stream, batch_size=sequences, first_step=first, rows=range(sequences))
        width = self.recipe.model.context + 1
        try:
            while first < self.recipe.steps:
                stop = min(min(s for s in self.stops if s > first), first + CHUNK)
                tokens = np.zeros((CHUNK, sequences, width), np.int32)
                for i in range(stop - first):
                    tokens[i] = next(loaded)["tokens"]
                yield tokens.reshape(CHUNK, parts, -1, width), stop - first, stop
                first = stop
        finally:
            loaded.close()

    def _observe(self, state: Together, step: int) -> None:
        losses = np.asarray(state.losses)[:step].astype(np.float64)
        losses = np.concatenate([losses[:1]] * max(3 - step, 0) + [losses])  # three at least
        self.seconds += time.perf_counter() - self._clock
        norms = jax.device_get(self.program.norms(state.train.params))
        horizon = step in self.group.horizons
        valid = None
        if horizon:
            valid = np.asarray(self.program.losses(state.train.params, self.windows))
        for i in range(len(self.group.members)):
            layers = by_layer(norms, i)
            row = self._row(i, step, losses[:, i], layers)
            self.traces.append({name: row[name] for name in TRACES.names})
            if valid is not None:
                scores = self._scores(valid[i].reshape(-1))
                row |= {"valid": scores, "valid_loss": _mean(list(scores.values()))}
                row |= {"norms": {name: [_number(x) for x in v] for name, v in layers.items()}}
                self.rows.append(row)
        self._clock = time.perf_counter()

    def _row(self, i: int, step: int, losses: np.ndarray, layers) -> dict[str, Any]:
        recipe, member = self.recipe, self.group.members[i]
        model, optimizer = recipe.model, recipe.optimizer
        thirds = [part.mean() for part in np.array_split(losses[-max(step // WINDOW, 3) :], 3)]
        mean, tokens = _number(float(np.mean(thirds))), step * recipe.tokens_per_step
        norms = by_role(self.program.program.leaf_specs, layers)
        return {
            "run": f"{self.group.name}/{i}",
            "model": self.group.model,
            "optimizer": optimizer.name,
            "momentum": optimizer.momentum if optimizer.name == "scion" else optimizer.beta1,
            "norm_target": _log2(getattr(optimizer, "norm_target", None)),
            "width": model.width,
            "layers": model.layers,
            "parameters": parameter_count(model),
            "context": model.context,
            "batch": recipe.batch.sequences,
            "log2_learning_rate": member.log2_learning_rate,
            "seed": member.seed,
            "data_seed": recipe.seed,
            **{f"multiplier_{k}": v for k, v in member.multiplier if k != "gain"},
            "step": step,
            "tokens": tokens,
            "epochs": self._epochs(step),
            "diverged": bool(mean is None or (step > 3 and mean >= losses[0])),
            "loss": mean,
            "loss_last": _number(float(thirds[-1])),
            "loss_sd": _number(float(np.std(thirds, ddof=1))),
            **{f"norm_{role}": _number(norms.get(role, math.nan)) for role in NORMED},
            "recipe_hash": member_hash(self.group, member),
            "tokenizer": self.store.manifest.tokenizer,
            "store": self.store.digest,
            "device": self.program.device.device_kind,
            "seconds": self.seconds,
        }

    def _epochs(self, step: int) -> float:
        mixture = self.stream.mixture
        seen = mixture.seen(step * self.recipe.batch.sequences)
        return max(
            sum(stage.get(name, 0) for stage in seen) / count
            for name, count in mixture.windows.items()
            if count
        )

    def _scores(self, losses: np.ndarray) -> dict[str, float | None]:
        return {
            name: _number(float(losses[self.languages == name].mean()))
            for name in dict.fromkeys(self.languages[self.languages != ""].tolist())
        }


NORMED = ("input", "hidden", "output")


def observed_steps(horizons: tuple[int, ...]) -> list[int]:
    """The horizons, and half octaves up to the last."""
    last = horizons[-1]
    halves = {round(2 ** (k / 2)) for k in range(2 * last.bit_length())}
    return sorted({step for step in halves if step <= last} | set(horizons))


def held_out_windows(store: TokenStore, context: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of held-out text, some of each language that has any.

    Returns:
      The language of each row, "" for padding, and tokens [n, rows, context + 1].
    """
    names, windows = [], []
    for language in store.languages:
        count = min((store.tokens("valid", language) - 1) // context, HELD_OUT_WINDOWS)
        for i in range(count):
            windows.append(store.read("valid", language, i * context, (i + 1) * context + 1))
            names.append(language)
    padding = -len(windows) % rows
    names += [""] * padding
    windows += [np.zeros(context + 1, np.int32)] * padding
    return np.array(names), np.array(windows, np.int32).reshape(-1, rows, context + 1)


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _log2(target: float | None) -> float | None:
    return None if target is None else math.log2(target)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else float(np.mean(values))
