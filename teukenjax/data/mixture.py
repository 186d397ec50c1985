"""The mixture: which window of which language each row of training is, as arithmetic.

Row ``i`` of the stream is a pure function of the seed and ``i``, with no state but a cache: so
the stream is the same on any number of hosts and workers, and starting in the middle costs
nothing. Documents are packed as in Megatron and Teuken: each language's flat ids are cut into
windows at strides of S, read as S + 1 tokens (inputs, and targets shifted by one).

Two levels of shuffling. Rows come in blocks in which every language has an exact number of rows;
their order inside a block is a random permutation that depends on the seed and the block only.
The n-th row of a language is window π(n mod windows), with another permutation π for each epoch
of that language; so in each of its epochs every window is seen once.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from teukenjax.data.store import TokenStore
from teukenjax.errors import UserError, nearest

SMALLEST_BLOCK = 4096  # rows
# Rows of the smallest language in a block, at least: rounding then moves its share by 2 % at most.
SMALLEST_SHARE_ROWS = 32
LARGEST_BLOCK = 1 << 20
KEPT_BLOCKS = 4  # in memory, as several threads may be at the border of two
ROUNDS = 6  # of the permutation; with 4 some orders of five windows came 3 times too often
WORD = (1 << 64) - 1


class Mixture:
    """The order of training over ``store``.

    Args:
      store: where the tokens are; only its counts are read.
      sequence_length: S.
      seed: of the order; any integer.
      weights: language → weight, of which the shares are the normalised values; languages not
        named take no part. None: shares by size.
      temperature: of the shares by size, p ∝ tokens^(1/temperature); 1 is proportional.

    Attributes:
      windows: language → number of its windows, for the languages that take part.
      dropped: language → why it takes no part.
      block: rows in which the shares are exact.

    Raises:
      UserError: for a weight of an unknown language, or of one whose text is shorter than one
        window; or when no language has a window.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        sequence_length: int,
        seed: int,
        weights: dict[str, float] | None = None,
        temperature: float = 1.0,
    ):
        self.sequence_length = sequence_length
        self._seed = seed
        tokens = {language: store.tokens("train", language) for language in store.languages}
        self.windows: dict[str, int] = {}
        self.dropped: dict[str, str] = {}
        self._choose(tokens, weights)
        sizes = {name: tokens[name] ** (1 / temperature) for name in self.windows}
        rows = _apportion(weights if weights else sizes)
        self.block = sum(rows.values())
        self._languages = list(rows)
        self._rows = list(rows.values())
        self._plan = lru_cache(maxsize=KEPT_BLOCKS)(self._plan_block)

    @property
    def shares(self) -> dict[str, float]:
        """Language → its exact share of the rows."""
        return {
            name: rows / self.block for name, rows in zip(self._languages, self._rows, strict=True)
        }

    def window(self, index: int) -> tuple[str, int]:
        """The language and the first token of row ``index`` of the stream."""
        block, position = divmod(index, self.block)
        which, rank = (values[position] for values in self._plan(block))
        language = self._languages[which]
        # Which of the language's rows since the beginning: those of earlier blocks, then ours.
        row = block * self._rows[which] + int(rank)
        windows = self.windows[language]
        epoch, row = divmod(row, windows)
        window = permuted(row, windows, keys=self._keys(ROUNDS, language, epoch))
        return language, window * self.sequence_length

    def _plan_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For every row of a block: the place of its language, and how many of it came before."""
        # Raw bits and a stable sort: NumPy may change its own shuffle between versions.
        bits = np.random.Philox(key=self._keys(2, "block", block)).random_raw(self.block)
        which = np.repeat(np.arange(len(self._rows)), self._rows)[np.argsort(bits, kind="stable")]
        rank = np.empty(self.block, np.int64)
        rank[np.argsort(which, kind="stable")] = np.concatenate([np.arange(n) for n in self._rows])
        return which, rank

    def _keys(self, count: int, *context: str | int) -> tuple[int, ...]:
        text = repr((self._seed, *context)).encode()
        return struct.unpack(f"<{count}Q", hashlib.blake2b(text, digest_size=8 * count).digest())

    def _choose(self, tokens: dict[str, int], weights: dict[str, float] | None) -> None:
        for name in weights or {}:
            if name not in tokens:
                raise UserError(f"weights: no language '{name}': {nearest(name, tokens)}")
        for name, count in tokens.items():
            windows = max(count - 1, 0) // self.sequence_length
            short = f"{count} tokens, and one window takes {self.sequence_length + 1}"
            if weights and name not in weights:
                self.dropped[name] = "it has no weight"
            elif windows:
                self.windows[name] = windows
            elif weights:
                raise UserError(f"weights: language '{name}' cannot be weighted: it has {short}")
            else:
                self.dropped[name] = short
        if not self.windows:
            most = max(tokens.values(), default=0)
            raise UserError(
                f"sequence length {self.sequence_length}: one window takes "
                f"{self.sequence_length + 1} tokens, the largest language has {most}"
            )


def permuted(index: int, size: int, *, keys: Sequence[int]) -> int:
    """Where ``index`` is in a pseudo-random permutation of 0 … size − 1, chosen by ``keys``.

    A Feistel network with one 64-bit key a round, on the smallest even number of bits that holds
    ``size``; results beyond it are sent through again, which ends inside (cycle walking; Black
    and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Grain's ``index_shuffle`` is the
    alternative; it measured 1.3 ms a call for a language of 18 windows, this 4 µs.
    """
    half = max(2, (size - 1).bit_length() + 1) // 2
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for key in keys:
            mixed = (right + key) * 0x9E3779B97F4A7C15 & WORD
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & WORD
            left, right = right, left ^ mixed >> (64 - half)
        index = left << half | right
        if index < size:
            return index


def _apportion(weights: dict[str, float]) -> dict[str, int]:
    """Rows of a block for each language, by largest remainder; sorted by language."""
    total = math.fsum(weights.values())
    share = {name: weights[name] / total for name in sorted(weights)}
    wanted = SMALLEST_SHARE_ROWS / min(share.values())
    block = min(max(SMALLEST_BLOCK, 1 << math.ceil(math.log2(wanted))), LARGEST_BLOCK)
    rows = {name: int(part * block) for name, part in share.items()}
    by_remainder = sorted(share, key=lambda name: rows[name] - share[name] * block)
    for name in by_remainder[: block - sum(rows.values())]:
        rows[name] += 1
    return rows
