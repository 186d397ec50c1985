"""Shares: how many rows of each stage a language gets, from weights, sizes and caps.

Temperature and caps are the two common answers to languages of unequal size: p ∝ n^(1/τ), and
"at most E epochs" (Chung et al. 2023, UniMax, arXiv 2304.09151). A cap is spread over all stages
in proportion, so a small language is met throughout a run and not used up at its beginning.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from teukenjax.errors import UserError, nearest
from teukenjax.recipe import MixtureConfig, StageConfig

SMALLEST_BLOCK = 4096  # rows
# Rows of the smallest language in a block, at least: rounding then moves its share by 2 % at most.
SMALLEST_SHARE_ROWS = 32
LARGEST_BLOCK = 1 << 20
# A language this near to its cap is rounded down like those that have reached it: rounding up
# adds 1 row in SMALLEST_SHARE_ROWS.
NEAR_CAP = 1 - 1 / SMALLEST_SHARE_ROWS


@dataclass(frozen=True)
class Shares:
    """One stage: language → share of its rows, which sum to 1.

    ``capped`` are those that ``max_epochs`` holds down, ``dropped`` says why a language of the
    store takes no part.
    """

    rows: int | None  # none: endless
    share: dict[str, float]
    capped: frozenset[str]
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """Rows in which the shares are exact: a power of two."""
        wanted = SMALLEST_SHARE_ROWS / min(self.share.values())
        return min(max(SMALLEST_BLOCK, 1 << math.ceil(math.log2(wanted))), LARGEST_BLOCK)

    def apportion(self, total: int) -> dict[str, int]:
        """Whole rows of ``total`` for each language: by largest remainder, capped ones below.

        Where all are capped some must be above, by a row.
        """
        rows = {name: int(part * total) for name, part in self.share.items()}
        free = [name for name in rows if name not in self.capped] or list(rows)
        free.sort(key=lambda name: rows[name] - self.share[name] * total)
        for number in range(total - sum(rows.values())):
            rows[free[number % len(free)]] += 1
        return rows


def plan_shares(
    config: MixtureConfig, *, tokens: dict[str, int], windows: dict[str, int], sequence_length: int
) -> list[Shares]:
    """The shares of each stage.

    Args:
      config: the mixture.
      tokens: language → size in the store, for all of its languages.
      windows: language → number of windows, of S + 1 tokens each.
      sequence_length: S.

    Raises:
      UserError: for a language that the store lacks, a weighted one that is shorter than one
        window, a stage in which no language is left, or caps that cannot fill a stage.
    """
    weights, dropped = [], []
    for stage in config.stages:
        _check_names("weights", stage.weights or {}, tokens)
        _check_names("factors", stage.factors, tokens)
        found = _Weights(stage, tokens, windows, sequence_length)
        weights.append(found.weights)
        dropped.append(found.dropped)
    lengths = _lengths(config.stages, sequence_length)
    caps = _caps(config, windows)
    if caps:
        shares, capped = _hold_down(weights, lengths, caps, sequence_length)
    else:
        shares, capped = [_normalised(stage) for stage in weights], frozenset()
    for share, why in zip(shares, dropped, strict=True):
        for name in [name for name, part in share.items() if part < 1 / LARGEST_BLOCK]:
            why[name] = f"its share of {share.pop(name):.1e} is below one row in {LARGEST_BLOCK:,}"
    return [
        Shares(rows, {name: share[name] for name in sorted(share)}, capped.intersection(share), why)
        for rows, share, why in zip(lengths, shares, dropped, strict=True)
    ]


class _Weights:
    """What a stage asks for, before caps."""

    def __init__(
        self, stage: StageConfig, tokens: dict[str, int], windows: dict[str, int], length: int
    ):
        self.weights: dict[str, float] = {}
        self.dropped: dict[str, str] = {}
        for name, count in tokens.items():
            weight = (
                count ** (1 / stage.temperature)
                if stage.weights is None
                else stage.weights.get(name)
            )
            short = f"{count} tokens, and one window takes {length + 1}"
            if weight is None:
                self.dropped[name] = "it has no weight"
            elif weight * stage.factors.get(name, 1.0) == 0 and count:
                self.dropped[name] = "its weight is 0"
            elif windows[name]:
                self.weights[name] = weight * stage.factors.get(name, 1.0)
            elif stage.weights is not None:
                raise UserError(f"weights: language '{name}' cannot be weighted: it has {short}")
            else:
                self.dropped[name] = short
        if not self.weights:
            most = max(tokens.values(), default=0)
            if most > length:
                raise UserError("weights: every language of the store is left out")
            raise UserError(
                f"sequence length {length}: one window takes {length + 1} tokens, the largest "
                f"language has {most}"
            )


def _check_names(key: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{key}: no language '{name}': {nearest(name, known)}")


def _lengths(stages: tuple[StageConfig, ...], sequence_length: int) -> list[int | None]:
    """Rows of each stage; rounded at the borders, so that errors do not add up."""
    lengths, tokens, rows = [], 0, 0
    for number, stage in enumerate(stages):
        if stage.tokens is None:
            lengths.append(None)
            continue
        tokens += stage.tokens
        lengths.append(tokens // sequence_length - rows)
        rows += lengths[-1]
        if not lengths[-1]:
            raise UserError(f"stages.{number}.tokens={stage.tokens}: shorter than one sequence")
    return lengths


def _caps(config: MixtureConfig, windows: dict[str, int]) -> dict[str, float]:
    """Language → the rows that it may have in all; only those that have a cap."""
    _check_names("max_epochs_of", config.max_epochs_of, windows)
    epochs = {name: config.max_epochs_of.get(name, config.max_epochs) for name in windows}
    return {name: limit * windows[name] for name, limit in epochs.items() if limit is not None}


def _hold_down(
    weights: list[dict[str, float]], lengths: list[int], caps: dict[str, float], sequence: int
) -> tuple[list[dict[str, float]], frozenset[str]]:
    """Shares under the caps. Each round fixes the languages that have reached theirs."""
    fixed: list[dict[str, float]] = [{} for _ in weights]  # rows
    while True:
        stages = [_fill(*stage, sequence) for stage in zip(weights, lengths, fixed, strict=True)]
        total = {name: sum(rows.get(name, 0.0) for rows in stages) for name in caps}
        near = {n for n in caps if total[n] > NEAR_CAP * caps[n] and not any(n in f for f in fixed)}
        if not near:
            shares = zip(stages, lengths, strict=True)
            capped = frozenset(name for held in fixed for name in held)
            return [{n: r / length for n, r in rows.items()} for rows, length in shares], capped
        for rows, held in zip(stages, fixed, strict=True):
            for name in near & rows.keys():
                held[name] = rows[name] * min(1.0, caps[name] / total[name])


def _fill(
    weights: dict[str, float], length: int, fixed: dict[str, float], sequence: int
) -> dict[str, float]:
    """Rows of one stage: the fixed ones, and the rest by weight."""
    free = _normalised({name: weight for name, weight in weights.items() if name not in fixed})
    rest = length - sum(fixed.values())
    if not free and rest >= 1:  # less is rounding: all languages are at their caps, and it fits
        raise UserError(
            f"max_epochs: a stage of {length * sequence:,} tokens needs more than its languages "
            f"may give, {round(sum(fixed.values())) * sequence:,}: raise max_epochs or shorten it"
        )
    return fixed | {name: rest * share for name, share in free.items()}


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
