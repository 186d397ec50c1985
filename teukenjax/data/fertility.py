"""How well tokenizers serve each language: the numbers of ``teukenjax tokenizer report``.

All of them are measured on lines, a uniform sample of each language that is the same for every
tokenizer. A word is what stands between white space.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from teukenjax.data.encoders import BYTE, Encoder

# Of a piece's uses, each language's counted per token of that language, so much must be in one
# language for the piece to be that language's own.
OWN_SHARE = 0.8


@dataclass(frozen=True)
class LanguageReport:
    """One tokenizer on one language; shares are from 0 to 1."""

    bytes: int
    tokens: int
    fertility: float  # tokens a word
    characters_per_token: float
    bytes_per_token: float
    byte_fallback: float  # share of tokens that are parts of a character
    unknown: float  # share of tokens
    round_trip: float  # share of lines that come back as they were
    round_trip_nfkc: float  # … or as their NFKC form, which is what Teuken's tokenizer reads
    pieces_used: float  # share of the vocabulary that the sample uses
    pieces_own: float  # share of the vocabulary that is this language's own, see OWN_SHARE


@dataclass(frozen=True)
class TokenizerReport:
    """One tokenizer: its vocabulary, and what it does to each language."""

    name: str
    vocab_size: int
    scripts: dict[str, float]  # script → share of the vocabulary, the largest first
    languages: dict[str, LanguageReport]

    @property
    def mean(self) -> LanguageReport:
        """Each language counting the same; bytes and tokens are sums."""
        rows = [vars(row) for row in self.languages.values()]
        means = {key: fmean(row[key] for row in rows) for key in rows[0]}
        counts = {key: sum(row[key] for row in rows) for key in ("bytes", "tokens")}
        return LanguageReport(**(means | counts))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        languages = {name: vars(report) for name, report in self.languages.items()}
        return vars(self) | {"languages": languages}


def report(encoder: Encoder, samples: dict[str, list[str]]) -> TokenizerReport:
    """Measures a tokenizer on the lines of each language."""
    encoded = {name: encoder.encode_batch(lines) for name, lines in samples.items()}
    uses = {name: Counter(index for row in rows for index in row) for name, rows in encoded.items()}
    owned = _owned(uses)
    return TokenizerReport(
        name=encoder.name,
        vocab_size=len(encoder.pieces),
        scripts=_scripts(encoder),
        languages={
            name: _language(encoder, samples[name], encoded[name], uses[name], owned[name])
            for name in samples
        },
    )


def _language(
    encoder: Encoder, lines: list[str], rows: list[list[int]], uses: Counter, owned: int
) -> LanguageReport:
    tokens, size = uses.total(), sum(len(line.encode()) for line in lines)
    decoded = [encoder.decode(row) for row in rows]
    exact = [line == back for line, back in zip(lines, decoded, strict=True)]
    folded = [
        same or unicodedata.normalize("NFKC", line) == back
        for same, line, back in zip(exact, lines, decoded, strict=True)
    ]
    return LanguageReport(
        bytes=size,
        tokens=tokens,
        fertility=tokens / sum(len(line.split()) for line in lines),
        characters_per_token=sum(map(len, lines)) / tokens,
        bytes_per_token=size / tokens,
        byte_fallback=sum(uses[index] for index in encoder.partial) / tokens,
        unknown=uses[encoder.unknown] / tokens,
        round_trip=sum(exact) / len(lines),
        round_trip_nfkc=sum(folded) / len(lines),
        pieces_used=len(uses) / len(encoder.pieces),
        pieces_own=owned / len(encoder.pieces),
    )


def _owned(uses: dict[str, Counter]) -> Counter:
    """Language → the number of pieces that are its own."""
    shares = {
        name: {index: count / counts.total() for index, count in counts.items()}
        for name, counts in uses.items()
    }
    total = Counter()
    for share in shares.values():
        total.update(share)
    return Counter(
        {
            name: sum(part > OWN_SHARE * total[index] for index, part in share.items())
            for name, share in shares.items()
        }
    )


def _scripts(encoder: Encoder) -> dict[str, float]:
    pairs = zip(encoder.pieces, encoder.texts, strict=True)
    counts = Counter(_script(piece, text) for piece, text in pairs)
    return {name: count / len(encoder.pieces) for name, count in counts.most_common()}


def _script(piece: str, text: str) -> str:
    """The script of a piece's first letter; for one without letters what it is instead."""
    if BYTE.fullmatch(piece):
        return "byte"
    if piece.startswith("<") and piece.endswith(">") and len(piece) > 2:
        return "special"
    names = (unicodedata.name(letter, "OTHER").split()[0] for letter in _letters(text))
    return next(names, _without_letters(text)).lower()


def _letters(text: str) -> Iterable[str]:
    return (character for character in text if unicodedata.category(character)[0] == "L")


def _without_letters(text: str) -> str:
    if any(character.isdigit() for character in text):
        return "digit"
    return "space" if not text.strip() else "symbol"
