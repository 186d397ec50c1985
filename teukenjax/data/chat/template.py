"""The chat template: a conversation as text and as tokens, and which of them carry loss.

    System: {sentence of the language}
    User: {question}
    Assistant: {answer}</s>
    User: …

Loss is on the answers and the ``</s>`` that ends each, and on nothing else. A conversation is
tokenised in parts, at the borders of what carries loss, so that what a model is prompted with is
the beginning of what it was trained on, token for token; and the parts together are exactly the
tokens of the whole text.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from teukenjax.data.chat.messages import Conversation
from teukenjax.data.tokenizer import END_OF_TURN, Tokenizer
from teukenjax.errors import UserError, nearest
from teukenjax.recipe import read_yaml

CUE = "Assistant:"


@functools.cache
def system_sentences() -> dict[str, str]:
    """Language → the sentence that opens its conversations."""
    return read_yaml(Path(__file__).parent / "system.yaml")


@dataclass(frozen=True)
class Form:
    """What the two forms of the template differ in.

    ``plain`` is ours. ``published`` is what the template in Teuken-7B-instruct-commercial-v0.4's
    tokenizer file gives, with four quirks: the English sentence lacks a blank; a prompt ends in a
    blank, so its last token is a ▁ that never precedes an answer in training; the text after each
    ``</s>`` is tokenised alone and begins with a ▁; and a system message is refused. The model
    card's own examples are written without the second. Ours has none of them: a system message
    stands in place of the sentence.
    """

    name: str
    prompt_end: str
    closing: str  # after the last answer
    split: bool  # tokenise what follows a special piece alone
    own_system: bool


FORMS = {
    form.name: form
    for form in (
        Form("plain", prompt_end="", closing="", split=False, own_system=True),
        Form("published", prompt_end=" ", closing="\n", split=True, own_system=False),
    )
}


def opening_sentences(form: Form) -> dict[str, str]:
    """Language → the sentence that opens its conversations in this form."""
    sentences = system_sentences()
    if form.own_system:
        return sentences
    return sentences | {"en": sentences["en"].replace(". The", ".The")}


class Encoded(NamedTuple):
    """The tokens of a conversation; weights are 1 where a token is to be predicted, else 0."""

    ids: Int32[np.ndarray, " n"]
    weights: Float32[np.ndarray, " n"]


class Template:
    """One form of the template, with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, form: str = "plain"):
        """A UserError for an unknown form."""
        if form not in FORMS:
            raise UserError(f"form '{form}': {nearest(form, FORMS)}")
        self.form, self._tokenizer = FORMS[form], tokenizer

    def text(self, conversation: Conversation) -> str:
        """The whole conversation as one string."""
        parts = self._parts(conversation)
        text = "".join(part if not answer else f" {part}{END_OF_TURN}" for part, answer in parts)
        return text + self.form.closing

    def encode(self, conversation: Conversation) -> Encoded:
        """Tokens and loss weights of the whole conversation."""
        ids: list[int] = []
        weights: list[float] = []
        for part, is_answer in self._parts(conversation):
            new = self._answer(part) if is_answer else self._follow(part, first=not ids)
            ids += new
            weights += [float(is_answer)] * len(new)
        closing = self._follow(self.form.closing, first=False) if self.form.closing else []
        weights += [0.0] * len(closing)
        return Encoded(np.array(ids + closing, np.int32), np.array(weights, np.float32))

    def prompt(
        self,
        language: str,
        question: str,
        *,
        before: tuple[tuple[str, str], ...] = (),
        system: str | None = None,
    ) -> list[int]:
        """The tokens after which the assistant answers ``question``; ``before`` are past turns."""
        open_turn = Conversation(language, (*before, (question, "")), system)
        *closed, (last, _), _ = self._parts(open_turn)
        ids: list[int] = []
        for part, is_answer in closed:
            ids += self._answer(part) if is_answer else self._follow(part, first=not ids)
        return ids + self._follow(last + self.form.prompt_end, first=not ids)

    def _parts(self, conversation: Conversation) -> Iterator[tuple[str, bool]]:
        """The text in parts, and whether a part is an answer: "System … Assistant:", "Yes", …"""
        text = f"System: {self._system(conversation)}"
        for question, answer in conversation.turns:
            yield f"{text}\nUser: {question}\n{CUE}", False
            yield answer, True
            text = ""

    def _system(self, conversation: Conversation) -> str:
        sentences = opening_sentences(self.form)
        if conversation.language not in sentences:
            known = nearest(conversation.language, sentences)
            raise UserError(f"language '{conversation.language}' is unknown: {known}")
        sentence = sentences[conversation.language]
        if self.form.own_system:
            return conversation.system or sentence
        if conversation.system is not None:
            raise UserError("the published template takes no system message")
        return sentence

    def _answer(self, text: str) -> list[int]:
        # The tokenizer's dummy prefix is the blank after "Assistant:".
        return [*self._tokenizer.encode(text), self._tokenizer.end_of_turn_id]

    def _follow(self, text: str, *, first: bool) -> list[int]:
        """The tokens of a text that begins the conversation, or follows an ``</s>``."""
        if first or self.form.split:
            return self._tokenizer.encode(text)
        ids = self._tokenizer.encode(END_OF_TURN + text)
        return ids[ids.index(self._tokenizer.end_of_turn_id) + 1 :]
