"""What the loop trains on and is judged by: a token store, or conversations (``tuning``)."""

from typing import Protocol, runtime_checkable

import numpy as np
from rich.console import Console

from teukenjax.data.chat.stream import ChatStream
from teukenjax.data.prepare import open_store
from teukenjax.data.stream import Stream
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate import Evaluator, Score
from teukenjax.recipe import Recipe
from teukenjax.train.state import Program, TrainState


@runtime_checkable
class Source(Protocol):
    """Data, the state that training begins with, and the held-out score."""

    tokenizer: Tokenizer
    digest: str  # names the data: a run goes on only with the same
    name: str  # of the data, for people

    def stream(self, recipe: Recipe) -> Stream | ChatStream:
        """The samples of a resolved recipe."""

    def initial(self, program: Program) -> TrainState:
        """The state before the first step."""

    def score(self, evaluator: Evaluator, params) -> dict[str, Score]:
        """Bits per byte of each language's held-out part."""


class TextSource:
    """Pre-training: a token store, and parameters from nothing."""

    def __init__(self, recipe: Recipe, console: Console):
        """Opens the recipe's store, or makes it; a UserError for a recipe of conversations."""
        if recipe.sft is not None:
            raise UserError("the recipe has a section sft: it is one for `teukenjax sft`")
        self._store = open_store(recipe, console)
        self._documents = recipe.evaluation.documents
        self.tokenizer = self._store.tokenizer()
        self.digest, self.name = self._store.digest, f"data.store {self._store.location}"

    def stream(self, recipe: Recipe) -> Stream:
        """See ``Source``."""
        return Stream.of(recipe, self._store)

    def initial(self, program: Program) -> TrainState:
        """See ``Source``."""
        return program.init()

    def score(self, evaluator: Evaluator, params) -> dict[str, Score]:
        """See ``Source``."""
        return evaluator(params, self._held_out())

    def _held_out(self) -> dict[str, list[tuple[np.ndarray, int]]]:
        """The first held-out documents of each language."""
        store, limit = self._store, self._documents
        return {language: store.documents("valid", language, limit) for language in store.languages}
