"""Bits per byte: how well a model predicts text, comparable across tokenizers and languages.

Each document is read as pre-training reads it, after an end-of-document token, so that its first
token is predicted too. A document longer than the context is cut into windows of that length, each
starting from the last token of the one before. The sum of the losses of the document's own tokens,
in bits, is divided by its UTF-8 bytes; the token that ends a document is not counted.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from teukenjax.model import Model

Document = tuple[np.ndarray, int]  # token ids without the end-of-document token; UTF-8 bytes


@dataclasses.dataclass
class Score:
    """What was measured on the documents of one language."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    nats: float = 0.0

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits over UTF-8 bytes."""
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token: comparable only for one tokenizer."""
        return math.exp(min(self.nats / self.tokens, 700))

    def as_dict(self) -> dict[str, float]:
        """What goes into JSON files."""
        counts = {"documents": self.documents, "bytes": self.bytes, "tokens": self.tokens}
        return {"bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity, **counts}


class Window(NamedTuple):
    """A piece of a document: inputs and shifted targets."""

    language: str
    ids: np.ndarray  # [n + 1]
    weights: np.ndarray | None = None  # [n], of the targets: 0 or 1; none: all are scored


class Evaluator:
    """Scores parameters of one model on one mesh; compiles once per window length."""

    def __init__(self, model: Model, *, eod: int, batch_tokens: int):
        """Args: the model; the end-of-document id; tokens of one batch over all devices."""
        self.model, self.eod, self.batch_tokens = model, eod, batch_tokens
        self._tokens = model.layout.batch(trailing=1)

    @functools.cached_property
    def _losses(self):
        def losses(params, tokens: Int[Array, "B S1"], weights: Float[Array, "B S"]):
            return self.model.bind(params).loss(tokens, weights)[1] * weights

        return jax.jit(losses, out_shardings=self.model.layout.replicated())

    def __call__(self, params, documents: Mapping[str, Sequence[Document]]) -> dict[str, Score]:
        """The score of each language, in the order given; languages without text are left out."""
        scores = {
            language: Score(documents=len(docs), bytes=sum(size for _, size in docs))
            for language, docs in documents.items()
            if any(ids.size for ids, _ in docs)
        }
        self.add(params, self._windows(documents), scores)
        return scores

    def add(self, params, windows: Iterable[Window], scores: dict[str, Score]) -> None:
        """Adds the tokens and the losses of ``windows`` to the ``scores`` of their languages."""
        for length, group in self._by_length(windows):
            rows = self._rows(length)
            for start in range(0, len(group), rows):
                self._score(params, group[start : start + rows], length, rows, scores)

    def _score(self, params, windows, length, rows, scores) -> None:
        tokens = np.full((rows, length + 1), self.eod, np.int32)
        weights = np.zeros((rows, length), np.float32)
        for row, window in enumerate(windows):
            tokens[row, : window.ids.size] = window.ids
            weights[row, : window.ids.size - 1] = 1 if window.weights is None else window.weights
        placed = jax.device_put((tokens, weights), self._tokens)
        nats = np.asarray(self._losses(params, *placed), np.float64).sum(axis=1)
        for row, window in enumerate(windows):
            scores[window.language].tokens += int(weights[row].sum())
            scores[window.language].nats += float(nats[row])

    def _by_length(self, windows: Iterable[Window]) -> Iterator[tuple[int, list[Window]]]:
        """Windows grouped by length, rounded up to a power of two to bound compilations."""
        groups = collections.defaultdict(list)
        for window in windows:
            length = min(max(64, 1 << (window.ids.size - 2).bit_length()), self.context)
            groups[length].append(window)
        yield from sorted(groups.items())

    def _windows(self, documents) -> Iterator[Window]:
        for language, docs in documents.items():
            for ids, _ in docs:
                ids = np.concatenate([[self.eod], ids])
                for start in range(0, ids.size - 1, self.context):
                    yield Window(language, ids[start : start + self.context + 1])

    def _rows(self, length: int) -> int:
        shards = self.model.layout.batch_shards
        return max(self.batch_tokens // length // shards, 1) * shards

    @property
    def context(self) -> int:
        """The longest window: the context that the model was trained with."""
        return self.model.config.context


def mean(scores: Mapping[str, Score]) -> float:
    """Mean of the languages' bits per byte: each language counts the same."""
    return float(np.mean([score.bits_per_byte for score in scores.values()]))
