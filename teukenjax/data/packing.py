"""Packing: how documents become windows of S + 1 tokens (inputs, and targets shifted by one).

``concat``, Megatron's and Teuken's: a language's flat ids are cut at strides of S, wherever that
falls in a document. Nothing is lost and nothing padded.

``best_fit`` (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830): a
document is cut only where it is longer than S; what remains is put into the fullest window that
still has room, longest first. The plan is made from the numbers of documents of each length (Krell
et al. 2021, arXiv 2107.02027), so after one sort of the lengths its cost depends on S only.

A sample is a dictionary of arrays: ``tokens`` [S + 1], and where attention is to stay inside
documents ``segments`` and ``positions`` [S], both of the inputs. Segments count from 1, and 0 is
padding, whose targets are no part of the loss; positions count from 0 in each segment. The eod that
ends a document is the last target of its segment and the first input of the next one: so a document
is always read after an eod, as it is in evaluation.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from teukenjax.data.store import TokenStore

# Floats: weights of the targets, in the samples of instruction tuning.
Sample = dict[str, Int32[np.ndarray, " _"] | Float32[np.ndarray, " _"]]


class Concat:
    """Windows at strides of S in the flat ids.

    Attributes (of ``BestFit`` too):
      windows: language → how many windows it has.
      segmented: whether samples have segments and positions.
    """

    def __init__(self, store: TokenStore, sequence_length: int, *, segmented: bool):
        self._store = store
        self._length = sequence_length
        self.segmented = segmented
        counts = {language: store.tokens("train", language) for language in store.languages}
        self.windows = {name: max(n - 1, 0) // sequence_length for name, n in counts.items()}

    def read(self, language: str, window: int) -> Sample:
        """One window; a UserError when its tokens are damaged."""
        start = window * self._length
        tokens = self._store.read("train", language, start, start + self._length + 1)
        if not self.segmented:
            return {"tokens": tokens}
        first = tokens[:-1] == self._store.manifest.eod_id  # an eod begins the next segment
        first[0] = True
        return {"tokens": tokens} | _segments(np.flatnonzero(first), self._length, self._length)


class BestFit:
    """Windows of whole documents."""

    segmented = True

    def __init__(self, store: TokenStore, sequence_length: int):
        self._store = store
        self._length = sequence_length
        self._plans = {
            language: BestFitPlan(store.ends("train", language), sequence_length)
            for language in store.languages
        }
        self.windows = {language: plan.windows for language, plan in self._plans.items()}

    def read(self, language: str, window: int) -> Sample:
        """One window; a UserError when its tokens are damaged."""
        pieces = self._plans[language].pieces(window)
        tokens = np.full(self._length + 1, self._store.manifest.eod_id, np.int32)
        starts, at = [], 0
        for start, stop in pieces:
            starts.append(at)
            tokens[at + 1 : at + 1 + stop - start] = self._store.read(
                "train", language, start, stop
            )
            at += stop - start
        return {"tokens": tokens} | _segments(np.array(starts), at, self._length)


Packing = Concat | BestFit


def make_packing(store: TokenStore, name: str, sequence_length: int, *, segments: bool) -> Packing:
    """The packing that a recipe names: "concat", or "best_fit", which always has segments."""
    if name == "best_fit":
        return BestFit(store, sequence_length)
    return Concat(store, sequence_length, segmented=segments)


def _segments(starts: np.ndarray, used: int, length: int) -> Sample:
    """Segments and positions of ``length`` inputs; those from ``used`` on are padding."""
    places = np.arange(length)
    number = np.searchsorted(starts, places, side="right")
    positions = places - starts[number - 1]
    padding = places >= used
    number[padding] = positions[padding] = 0
    return {"segments": number.astype(np.int32), "positions": positions.astype(np.int32)}


@dataclass(frozen=True)
class _Group:
    """Windows with pieces of the same lengths.

    ``contents`` has (length, pieces of it in each window, number of the first such piece).
    """

    windows: int
    contents: tuple[tuple[int, int, int], ...]


class BestFitPlan:
    """Which pieces of which documents each window of one language holds.

    Args:
      ends: where each document ends in the flat ids, eod included.
      length: S, the room in a window.

    Attributes:
      windows: how many there are: first those full of a part of one long document.
    """

    def __init__(self, ends: Int64[np.ndarray, " documents"], length: int):
        self._length = length
        self._ends = ends
        sizes = np.diff(ends, prepend=0)
        self._full = np.cumsum(sizes // length)  # full windows of all documents up to this one
        rests = sizes % length
        self._rests = rests
        # Documents in order of the length of their rest, and where each length begins there.
        self._order = np.argsort(rests, kind="stable")
        counts = np.bincount(rests, minlength=length)
        self._first = np.cumsum(counts) - counts
        self._groups = list(_fit(counts, length))
        self._stops = np.cumsum([group.windows for group in self._groups], dtype=np.int64).tolist()
        self._full_windows = int(self._full[-1]) if len(ends) else 0
        self.windows = self._full_windows + (self._stops[-1] if self._stops else 0)

    def pieces(self, window: int) -> list[tuple[int, int]]:
        """The pieces of a window, in order: start and stop in the flat ids."""
        assert 0 <= window < self.windows
        if window < self._full_windows:
            document = int(np.searchsorted(self._full, window, side="right"))
            before = int(self._full[document - 1]) if document else 0
            start = self._start(document) + (window - before) * self._length
            return [(start, start + self._length)]
        window -= self._full_windows
        number = bisect.bisect_right(self._stops, window)
        group = self._groups[number]
        window -= self._stops[number] - group.windows
        return [
            self._rest(int(self._order[self._first[size] + base + window * times + turn]))
            for size, times, base in group.contents
            for turn in range(times)
        ]

    def _start(self, document: int) -> int:
        return int(self._ends[document - 1]) if document else 0

    def _rest(self, document: int) -> tuple[int, int]:
        stop = int(self._ends[document])
        return stop - int(self._rests[document]), stop


def _fit(counts: Int64[np.ndarray, " length"], length: int) -> Iterator[_Group]:
    """Best fit, longest first, for all pieces of one length at a time.

    ``counts[n]`` is the number of pieces of n tokens. A window takes as many pieces of the length
    in hand as go into it, which is what fitting them one after another does.
    """
    open_groups: dict[int, list[_Group]] = {}  # by the room that is left
    for size in range(length - 1, 0, -1):
        left, base = int(counts[size]), 0
        for room in sorted(room for room in open_groups if room >= size):
            groups = open_groups.pop(room)
            while groups and left:
                group = groups.pop()
                times = min(room // size, left)
                taken = min(group.windows, left // times)
                contents = (*group.contents, (size, times, base))
                open_groups.setdefault(room - times * size, []).append(_Group(taken, contents))
                if taken < group.windows:
                    groups.append(_split(group, taken))
                left, base = left - taken * times, base + taken * times
            if groups:
                open_groups.setdefault(room, []).extend(groups)
            if not left:
                break
        while left:
            times = min(length // size, left)
            windows = left // times
            group = _Group(windows, ((size, times, base),))
            open_groups.setdefault(length - times * size, []).append(group)
            left, base = left - windows * times, base + windows * times
    for room in sorted(open_groups):
        yield from open_groups[room]


def _split(group: _Group, taken: int) -> _Group:
    """The windows of a group after its first ``taken``."""
    contents = tuple((size, times, base + taken * times) for size, times, base in group.contents)
    return _Group(group.windows - taken, contents)
