"""What a chat model makes of conversations: the bits of given answers, and its own answers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from teukenjax.data.chat.sources import Row
from teukenjax.data.chat.template import Encoded, Template
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.evaluate.bits_per_byte import Evaluator, Score, Window
from teukenjax.infer import Generator, Sampling

GREEDY = Sampling(temperature=0.0)


def score_answers(
    evaluator: Evaluator, params, rows: Mapping[str, Sequence[tuple[Row, Encoded]]]
) -> dict[str, Score]:
    """Bits per byte of the answers of each language, the tokens that end them included."""
    scores = {
        language: Score(documents=len(some), bytes=sum(_answer_bytes(row) for row, _ in some))
        for language, some in rows.items()
        if some
    }
    windows = (
        Window(language, encoded.ids, encoded.weights[1:])
        for language, some in rows.items()
        for _, encoded in some
    )
    evaluator.add(params, windows, scores)
    return scores


class Answer(NamedTuple):
    """What a model said to the last question of a conversation."""

    language: str  # that was asked for
    question: str
    text: str
    stopped: bool  # by an end token, not by the limit


class Answers:
    """Asks a model, greedily."""

    def __init__(self, model, params, tokenizer: Tokenizer, *, form: str, tokens: int):
        """Args: model and parameters on one device; the template's form; tokens at most."""
        self._generator = Generator(model, params, tokenizer)
        self._template, self._tokens = Template(tokenizer, form), tokens
        self._tokenizer = tokenizer

    def __call__(self, row: Row) -> Answer:
        """The answer to the last question, after the turns before it as they were given."""
        conversation = row.conversation
        *before, (question, _) = conversation.turns
        prompt = self._template.prompt(
            conversation.language, question, before=tuple(before), system=conversation.system
        )
        room = min(self._tokens, self._generator.model.config.context - len(prompt))
        new = list(self._generator.stream(prompt, tokens=room, sampling=GREEDY))
        text = self._tokenizer.decode(new).strip()
        return Answer(conversation.language, question, text, stopped=len(new) < room)


def _answer_bytes(row: Row) -> int:
    return sum(len(answer.encode()) for _, answer in row.conversation.turns)
