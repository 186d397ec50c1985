"""The stream of instruction tuning: sample ``i``, a pure function of seed, mixture, data and ``i``.

Conversations are packed whole, by best fit, into rows of S + 1 tokens, each language by itself;
which row of which language comes when is the mixture's business, as in pre-training (``packing``,
``mixture``). A sample has, besides ``tokens`` [S + 1]:

    segments, positions   [S]  of the inputs: attention stays inside a conversation; 0 is padding
    weights               [S]  of the targets: 1 for what the assistant says, and 0 for the rest
    rows                  [1]  the number i, where NEFTune's noise is made of it

Conversations are held in memory, 8 bytes a token: the 210,176 of Teuken's published mix are a few
gigabytes at most.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from teukenjax.data.chat.sources import Found, Row, read_sources
from teukenjax.data.chat.template import Encoded, Template
from teukenjax.data.mixture import Mixture, check_lasts
from teukenjax.data.packing import BestFitPlan, Sample
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.recipe import Recipe


@dataclass
class ChatData:
    """Encoded conversations by language, and what was left out or shortened."""

    train: dict[str, list[Encoded]]
    held_out: dict[str, list[tuple[Row, Encoded]]]
    found: Found
    too_long: int = 0
    shortened: int = 0

    @functools.cached_property
    def digest(self) -> str:
        """Names what is trained on."""
        digest = hashlib.sha256()
        for language, conversations in self.train.items():
            digest.update(f"{language} {len(conversations)}\n".encode())
            for one in conversations:
                digest.update(one.ids.tobytes() + one.weights.tobytes())
        return digest.hexdigest()[:16]

    @property
    def tokens(self) -> dict[str, int]:
        """Language → tokens to train on, prompts included."""
        return {name: sum(one.ids.size for one in all_) for name, all_ in self.train.items()}

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss, in all languages."""
        return int(sum(one.weights.sum() for all_ in self.train.values() for one in all_))


def load_chat(recipe: Recipe, tokenizer: Tokenizer) -> ChatData:
    """Reads, renders and tokenises the conversations of ``recipe.sft``.

    Raises:
      UserError: as ``read_sources``; for a conversation that is longer than the context, if
        ``sft.too_long`` is "error"; and when none is left to train on.
    """
    found = read_sources(recipe.sft)
    template = Template(tokenizer, recipe.sft.form)
    data = ChatData({}, {}, found)
    fit = _Fitting(template, recipe.model.context + 1, recipe.sft.too_long, data)
    for language, rows in found.train.items():
        data.train[language] = [encoded for _, encoded in filter(None, map(fit, rows))]
    for language, rows in found.held_out.items():
        data.held_out[language] = list(filter(None, map(fit, rows)))
    if not any(data.train.values()):
        names = ", ".join(str(source.data) for source in recipe.sft.sources)
        raise UserError(
            f"sft.sources: {names}: no conversation is left to train on: {found.rows} rows: "
            f"{len(found.broken)} broken, {data.too_long} longer than "
            f"model.context={recipe.model.context}, "
            f"{sum(map(len, data.held_out.values()))} held out"
        )
    return data


class _Fitting:
    """Encodes a conversation, or as much of it as the recipe's rule lets into a row of tokens."""

    def __init__(self, template: Template, room: int, rule: str, data: ChatData):
        self._template, self._room, self._rule, self._data = template, room, rule, data

    def __call__(self, row: Row) -> tuple[Row, Encoded] | None:
        conversation = row.conversation
        encoded = self._template.encode(conversation)
        if encoded.ids.size <= self._room:
            return row, encoded
        if self._rule == "error":
            raise UserError(
                f"{row.where}: the conversation has {encoded.ids.size} tokens, at most "
                f"{self._room} fit: model.context={self._room - 1} are read, and one more is "
                "predicted: set sft.too_long to skip or turns"
            )
        turns = conversation.turns if self._rule == "turns" else ()
        # An answer is never cut: it would teach not to end.
        for count in range(len(turns) - 1, 0, -1):
            shorter = conversation._replace(turns=turns[:count])
            encoded = self._template.encode(shorter)
            if encoded.ids.size <= self._room:
                self._data.shortened += 1
                return Row(row.where, shorter), encoded
        self._data.too_long += 1
        return None


class ChatStream:
    """Mixture and packing over conversations. Safe to share by threads."""

    segmented = True

    def __init__(self, recipe: Recipe, data: ChatData):
        """A UserError as ``Mixture`` raises it, and when the mixture ends before the run does."""
        some = {name: all_ for name, all_ in data.train.items() if all_}
        self._length = recipe.model.context
        self._numbered = recipe.sft.neftune is not None
        self._packed = {name: _Packed(all_, self._length + 1) for name, all_ in some.items()}
        # A language's size is the number of its rows: each is one sample.
        windows = {name: packed.plan.windows for name, packed in self._packed.items()}
        self.mixture = Mixture(
            recipe.data.mix,
            tokens={name: rows * self._length for name, rows in windows.items()},
            windows=windows,
            sequence_length=self._length,
            seed=recipe.seed,
        )
        check_lasts(self.mixture, recipe)

    def sample(self, index: int) -> Sample:
        """Row ``index``, from 0."""
        language, window = self.mixture.window(index)
        sample = self._packed[language].read(window)
        return sample | {"rows": np.array([index], np.int32)} if self._numbered else sample


class _Packed:
    """The conversations of one language in rows of ``room`` tokens."""

    def __init__(self, conversations: list[Encoded], room: int):
        self._room = room
        self._ids = np.concatenate([one.ids for one in conversations])
        self._weights = np.concatenate([one.weights for one in conversations])
        self.plan = BestFitPlan(np.cumsum([one.ids.size for one in conversations]), room)

    def read(self, window: int) -> Sample:
        tokens, segments, positions = (np.zeros(self._room, np.int32) for _ in range(3))
        weights, at = np.zeros(self._room, np.float32), 0
        for number, (start, stop) in enumerate(self.plan.pieces(window), start=1):
            here = slice(at, at + stop - start)
            tokens[here], segments[here] = self._ids[start:stop], number
            positions[here] = np.arange(stop - start)
            weights[here] = self._weights[start:stop]
            weights[at] = 0  # the first token of a conversation is not predicted from the last one
            at = here.stop
        return {
            "tokens": tokens, "segments": segments[:-1], "positions": positions[:-1],
            "weights": weights[1:],
        }  # fmt: skip
