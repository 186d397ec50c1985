"""A run's model for decoding, and its continuations on a terminal."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from teukenjax.infer.generate import Generator
from teukenjax.infer.layout import decoding_layout
from teukenjax.infer.sampling import Sampling
from teukenjax.infer.text import TextStream
from teukenjax.run import load_run


def load_generator(run: Path) -> Generator:
    """The model of RUN, spread over all devices; its fp32 weights are let go."""
    loaded = load_run(run, layout_of=decoding_layout)
    return Generator(loaded.model, loaded.params, loaded.tokenizer, loaded.recipe.chat_form)


def print_continuations(
    generator: Generator, prompts: Sequence[str], *, tokens: int, sampling: Sampling
) -> None:
    """One text as it comes; several as a batch, when all are there; the speed on standard error.

    Raises:
      UserError: for a prompt that is no text, or leaves no room in the context.
    """
    ids = [generator.prompt_ids(prompt) for prompt in prompts]
    if len(prompts) == 1:
        pieces = generator.text(ids[0], tokens=tokens, sampling=sampling)
        first = next(pieces)  # before anything is printed: the prompt may have no room
        print(prompts[0], first, sep="", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    else:
        _print_batch(generator, prompts, ids, tokens, sampling)
    print(generator.speed, file=sys.stderr)


def _print_batch(generator: Generator, prompts, ids, tokens: int, sampling: Sampling) -> None:
    texts = [TextStream(generator.tokenizer, prompt) for prompt in ids]
    pieces = [[prompt] for prompt in prompts]
    rows = [
        dataclasses.replace(sampling, seed=(sampling.seed + row) % 2**32) for row in range(len(ids))
    ]
    for step in generator.batch(ids, tokens=tokens, sampling=rows):
        for text, piece, token in zip(texts, pieces, step, strict=True):
            if token is not None:
                piece.append(text.push(token))
    for text, piece in zip(texts, pieces, strict=True):
        print("".join([*piece, text.rest()]))
