"""The gap report: which languages trail, beside what would explain it, so where to add data next.

A language's gap is its bits per byte above the mean of all. Beside it stand its share of the tokens
that the run was trained on and the fertility of its tokenizer (tokens a word), and a guess, which
follows from the two by a rule: a language that trails with less than half of an equal share of
the tokens lacks data; one that trails with a fertility above 1.25 times the mean's lacks pieces.
"""

from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

LITTLE_DATA = 0.5  # of an equal share of all languages that were trained on
MANY_PIECES = 1.25  # times the mean fertility


class Gap(NamedTuple):
    """One language; the gap is in bits per byte, positive where it is worse than the mean."""

    language: str
    gap: float
    share: float  # of the training tokens
    fertility: float
    guess: str


def gaps(
    bits_per_byte: Mapping[str, float],
    share: Mapping[str, float],
    fertility: Mapping[str, float],
) -> list[Gap]:
    """The languages of ``bits_per_byte``, the one that trails most first."""
    mean = sum(bits_per_byte.values()) / len(bits_per_byte)
    usual = sum(fertility.values()) / len(fertility)
    found = []
    for language, bits in bits_per_byte.items():
        part, pieces = share.get(language, 0.0), fertility[language]
        reasons = []
        if bits > mean and part * len(share) < LITTLE_DATA:
            reasons.append("data")
        if bits > mean and pieces > MANY_PIECES * usual:
            reasons.append("pieces")
        found.append(Gap(language, bits - mean, part, pieces, ", ".join(reasons)))
    return sorted(found, key=lambda gap: -gap.gap)


def print_gaps(console: Console, found: list[Gap]) -> None:
    """One row a language."""
    titles = (
        "language",
        "bits per byte over mean",
        "share of tokens",
        "tokens a word",
        "lacks",
    )
    table = Table(*titles, box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    for gap in found:
        numbers = f"{gap.gap:+.3f}", f"{gap.share:.1%}", f"{gap.fertility:.2f}"
        table.add_row(gap.language, *numbers, gap.guess)
    console.print(table)
