"""Continuations of many prompts at once: what evaluation asks of a model.

Prompts that need caches of one capacity share batches, longest first, so that what does not fit
fails first. A batch has a power of two of rows, which bounds compilations, and goes on until its
last row has ended. How each row chooses, how long it may be and where it stops is its own.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from teukenjax.infer.generate import Generator
from teukenjax.infer.sampling import Sampling
from teukenjax.infer.text import TextStream

GREEDY = Sampling(temperature=0.0)


class Prompt(NamedTuple):
    """A text to continue, and how."""

    ids: list[int]
    tokens: int  # at most this many new ones
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()  # the text ends before the first of them


class Continuation(NamedTuple):
    """New text, decoded by itself; special pieces are no text."""

    text: str
    ended: bool  # by an end token or a stop, not by the limit


def continuations(
    generator: Generator, prompts: Sequence[Prompt], *, batch_tokens: int
) -> list[Continuation]:
    """The continuation of each prompt, in the order given.

    Args:
      generator: of a model on any mesh: the rows of a batch are split over it.
      prompts: of any lengths.
      batch_tokens: tokens that the caches of one batch hold over all devices; a batch has at
        least one row for each part of the mesh that has rows of its own.

    Raises:
      UserError: for a prompt that is empty or leaves no room in the context.
    """
    found: list[Continuation | None] = [None] * len(prompts)
    for numbers, rows in _batches(generator, prompts, batch_tokens):
        batch = [prompts[number] for number in numbers]
        filling = [Prompt([generator.tokenizer.eod_id], 0)] * (rows - len(batch))
        for number, one in zip(numbers, _continue(generator, batch, filling), strict=True):
            found[number] = one
    return [one for one in found if one is not None]


def _batches(
    generator: Generator, prompts: Sequence[Prompt], batch_tokens: int
) -> Iterator[tuple[list[int], int]]:
    """Numbers of the prompts of each batch, and its rows."""
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for number, prompt in enumerate(prompts):
        groups[generator.decoder.capacity(len(prompt.ids) + prompt.tokens)].append(number)
    shards = generator.model.layout.batch_shards
    for capacity, group in sorted(groups.items(), reverse=True):
        group.sort(key=lambda number: -len(prompts[number].ids))
        most = 1 << (max(batch_tokens // capacity // shards, 1).bit_length() - 1)
        for start in range(0, len(group), most * shards):
            numbers = group[start : start + most * shards]
            each = -(-len(numbers) // shards)
            yield numbers, shards << (each - 1).bit_length()


def _continue(
    generator: Generator, batch: list[Prompt], filling: list[Prompt]
) -> list[Continuation]:
    texts = [TextStream(generator.tokenizer, [], prompt.stops) for prompt in batch]
    pieces: list[list[str]] = [[] for _ in batch]
    rows = [*batch, *filling]
    steps = generator.batch(
        [prompt.ids for prompt in rows],
        tokens=[prompt.tokens for prompt in rows],
        sampling=[prompt.sampling for prompt in rows],
    )
    for step in steps:
        going = False
        for text, piece, token in zip(texts, pieces, step, strict=False):
            if token is not None and not text.stopped:
                piece.append(text.push(token))
                going = going or not text.stopped
        if not going:
            break
    room = generator.model.config.context
    return [
        Continuation(
            "".join([*piece, "" if text.stopped else text.rest()]),
            ended=text.stopped or len(piece) < min(prompt.tokens, room - len(prompt.ids)),
        )
        for prompt, text, piece in zip(batch, texts, pieces, strict=True)
    ]
