"""Language fidelity: how often a chat model answers in the language that it was asked in.

The language of an answer is told by lingua (pip ``lingua-language-detector``), chosen among the 24.
It has no Maltese, which is told first: by a letter that none of the other 23 has (ħ ġ ċ), or an
article with its hyphen (il- ix- iż- iċ-; not it-, t- or l-, which other languages write).
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from teukenjax.data.chat.template import system_sentences
from teukenjax.errors import UserError
from teukenjax.evaluate.answers import Answer

MALTESE = re.compile(r"[ħġċ]|(?<![\w-])(?:il|ix|iż|iċ)-\w", re.IGNORECASE)
MISSING = "lingua-language-detector is not installed: uv sync --extra eval"


@functools.cache
def detector() -> Callable[[str], str | None]:
    """Text → the likeliest of the 24 languages; none where no letter says anything.

    Raises:
      UserError: when lingua is not installed.
    """
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ModuleNotFoundError:
        raise UserError(MISSING) from None
    names = [name.upper() for name in system_sentences() if name != "mt"]
    codes = (getattr(IsoCode639_1, name) for name in names)
    lingua = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()

    def detect(text: str) -> str | None:
        if MALTESE.search(text):
            return "mt"
        found = lingua.detect_language_of(text)
        return None if found is None else found.iso_code_639_1.name.lower()

    return detect


class Fidelity(NamedTuple):
    """Of one language."""

    answers: int
    faithful: int  # in the language asked for
    stopped: int  # ended by the model

    @property
    def share(self) -> float:
        """Of the answers, those in the language asked for."""
        return self.faithful / self.answers


def fidelity(answers: Iterable[Answer]) -> dict[str, Fidelity]:
    """Language asked for → what came back."""
    detect = detector()
    found: dict[str, Fidelity] = {}
    for answer in answers:
        before = found.get(answer.language, Fidelity(0, 0, 0))
        faithful = detect(answer.text) == answer.language
        new = (1, faithful, answer.stopped)
        found[answer.language] = Fidelity(*(a + int(b) for a, b in zip(before, new, strict=True)))
    return dict(sorted(found.items()))


def print_fidelity(console: Console, found: dict[str, Fidelity]) -> None:
    """One row a language, and all together."""
    table = Table("language", "answers", "in the language", "stopped", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for language, one in (*found.items(), ("all", total(found))):
        shares = (f"{n / one.answers:.0%}" for n in (one.faithful, one.stopped))
        table.add_row(language, str(one.answers), *shares)
    console.print(table)


def total(found: dict[str, Fidelity]) -> Fidelity:
    """All languages together."""
    return Fidelity(*(sum(column) for column in zip(*found.values(), strict=True)))


def print_answers(console: Console, before: list[Answer] | None, after: list[Answer]) -> None:
    """A question of each language and its answers, by the base and by the tuned model."""
    if not after:
        return
    table = Table("", "question (held out)", box=None, title="answers")
    if before is not None:
        table.add_column("before", max_width=40)
    table.add_column("after", max_width=60)
    for number, answer in enumerate(after):
        texts = [answers[number].text for answers in (before, after) if answers is not None]
        cut = [text if len(text) <= 60 else text[:60] + " …" for text in texts]
        table.add_row(answer.language, answer.question, *(" ".join(text.split()) for text in cut))
    console.print(table)
    for name, answers in (("before", before), ("after", after)):
        if answers is not None:
            console.print(f"{name}: {_counted(answers)}", highlight=False)


def _counted(answers: list[Answer]) -> str:
    stopped = sum(answer.stopped for answer in answers)
    counted = f"{stopped} of {len(answers)} answers end by themselves"
    try:
        faithful = total(fidelity(answers)).faithful
    except UserError as error:
        return f"{counted}; their languages are not told: {error}"
    return f"{counted}, {faithful} are in the language of the question"
