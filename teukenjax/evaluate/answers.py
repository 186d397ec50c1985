"""What a chat model makes of conversations: the bits of given answers, and its own answers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from teukenjax.data.chat.messages import prompt_of
from teukenjax.data.chat.sources import Row
from teukenjax.data.chat.template import Encoded, Template
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.evaluate.bits_per_byte import Evaluator, Score, Window
from teukenjax.infer import Generator
from teukenjax.infer.continuations import Prompt, continuations
from teukenjax.model import Functional


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
    """Asks a model, greedily, many questions at once."""

    def __init__(self, model: Functional, params: dict, tokenizer: Tokenizer, *, form: str):
        """Args: model and parameters on any mesh; the template's form."""
        self._generator = Generator(model, params, tokenizer)
        self._template = Template(tokenizer, form)

    def __call__(self, rows: Sequence[Row], *, tokens: int, batch_tokens: int) -> list[Answer]:
        """Answers to the last questions, after the turns before them as they were given.

        Args:
          rows: conversations.
          tokens: of an answer, at most.
          batch_tokens: see ``continuations``.

        Raises:
          UserError: when a conversation before its last answer fills the context.
        """
        prompts = [Prompt(self._prompt(row), tokens) for row in rows]
        found = continuations(self._generator, prompts, batch_tokens=batch_tokens)
        asked = (row.conversation for row in rows)
        return [
            Answer(conversation.language, prompt_of(conversation), one.text.strip(), one.ended)
            for conversation, one in zip(asked, found, strict=True)
        ]

    def _prompt(self, row: Row) -> list[int]:
        conversation, context = row.conversation, self._generator.model.config.context
        ids = self._template.prompt(
            conversation.language,
            prompt_of(conversation),
            before=conversation.turns[:-1],
            system=conversation.system,
        )
        if len(ids) >= context:
            raise UserError(
                f"{row.where}: {len(ids)} tokens before the last answer leave no room in the "
                f"model's context of {context}"
            )
        return ids


def _answer_bytes(row: Row) -> int:
    return sum(len(answer.encode()) for _, answer in row.conversation.turns)
