"""A sample of text in which no language drowns the others, from a stream of any length.

Each language keeps a reservoir of at most so many bytes, and counts all that it has seen; shares
are applied at the end, when the sizes are known. So one pass is enough, and memory is bounded by
the reservoirs.
"""

import heapq
import random
from collections.abc import Iterable, Iterator

from teukenjax.data.documents import Document
from teukenjax.data.shares import plan_shares
from teukenjax.data.tokenizer import split_sentences
from teukenjax.recipe import MixtureConfig


class TextSample:
    """Uniform samples of the sentences of each language, at most ``limit`` bytes of each.

    Every sentence draws a random number, and the smallest numbers that fit are kept; so what a
    language keeps does not depend on the other languages.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._reservoirs: dict[str, _Reservoir] = {}

    def add(self, documents: Iterable[Document]) -> None:
        """Lets the sentences of documents take part."""
        for document in documents:
            if document.language not in self._reservoirs:
                self._reservoirs[document.language] = _Reservoir(document.language, self._limit)
            self._reservoirs[document.language].add(document.text)

    @property
    def sizes(self) -> dict[str, int]:
        """Language → bytes that went past."""
        return {name: self._reservoirs[name].seen for name in sorted(self._reservoirs)}

    def kept(self) -> dict[str, list[str]]:
        """Language → its sample."""
        return {name: self._reservoirs[name].sentences() for name in sorted(self._reservoirs)}

    def mixed(self, mixture: MixtureConfig) -> dict[str, list[str]]:
        """Samples in the shares of a mixture's first stage.

        The language with the largest share has ``limit`` bytes and the others in proportion, or
        all that there is of them.

        Raises:
          UserError: for a language of the mixture that there is no text of.
        """
        first = mixture.stages[0].model_copy(update={"tokens": None})
        (shares,) = plan_shares(
            MixtureConfig(stages=(first,)), tokens=self.sizes, windows=self.sizes, sequence_length=1
        )
        largest = max(shares.share.values())
        return {
            name: self._reservoirs[name].sentences(round(self._limit * share / largest))
            for name, share in shares.share.items()
        }


class _Reservoir:
    def __init__(self, language: str, limit: int):
        self._draw = random.Random(language).random  # the same whatever the other languages
        self._limit = limit
        self._heap: list[tuple[float, str]] = []  # the largest number first
        self._bytes, self._threshold = 0, 1.0
        self.seen = 0

    def add(self, text: str) -> None:
        for sentence in split_sentences(text):
            number = self._draw()
            size = len(sentence.encode())
            self.seen += size
            if number < self._threshold:
                heapq.heappush(self._heap, (-number, sentence))
                self._bytes += size
            while self._bytes > self._limit:
                negative, dropped = heapq.heappop(self._heap)
                self._threshold = -negative
                self._bytes -= len(dropped.encode())

    def sentences(self, limit: int | None = None) -> list[str]:
        """Those kept, or of them the first that fit into ``limit`` bytes; in drawn order."""
        drawn = [sentence for _, sentence in sorted(self._heap, reverse=True)]
        return drawn if limit is None else list(_fitting(drawn, limit))


def _fitting(sentences: list[str], limit: int) -> Iterator[str]:
    for sentence in sentences:
        limit -= len(sentence.encode())
        if limit < 0:
            return
        yield sentence
