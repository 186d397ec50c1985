"""Conversations with a model: Teuken's template around ``Generator``, also on a terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from teukenjax.data.chat.messages import parse, without_special
from teukenjax.data.chat.template import Template, system_sentences
from teukenjax.data.tokenizer import Tokenizer
from teukenjax.errors import UserError
from teukenjax.infer.generate import Generator
from teukenjax.infer.sampling import Sampling

HELP = "/new begins another conversation, /language CODE another language, /quit ends"


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], language: str, form: str = "plain"
) -> list[int]:
    """The tokens after which the assistant answers the last message.

    Args:
      tokenizer: with Teuken's special pieces.
      messages: ``role`` and ``content`` of each: perhaps one of the system, then user and
        assistant in turn, a user's last. What an assistant said is a model's: special pieces that
        it spelled are left out, and "…" stands for nothing.
      language: whose system sentence opens the conversation, unless it has its own.
      form: of the template, the one that the model was tuned with.

    Raises:
      UserError: for messages of another form, or an unknown language.
    """
    if not messages:
        raise UserError("messages: there are none")
    if messages[-1].get("role") != "user":
        raise UserError("messages: the last one has to be the user's")
    said = [message | _answered(message) for message in messages]
    answered = [*said, {"role": "assistant", "content": "?"}]  # parse takes whole turns
    row = {"messages": answered, "language": language}
    conversation = parse(row, language=None, languages=system_sentences())
    *before, (question, _) = conversation.turns
    return Template(tokenizer, form).prompt(
        conversation.language, question, before=tuple(before), system=conversation.system
    )


def _answered(message: dict[str, Any]) -> dict[str, str]:
    """The content of an answer in a form that a conversation takes; nothing for other messages."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return {}
    content = without_special(content)
    return {"content": content if content.strip() else "…"}


def without_blank(pieces: Iterator[str]) -> Iterator[str]:
    """An answer without the blank that the template has in front of it."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        yield piece


class Chat:
    """One conversation, which remembers what was said."""

    def __init__(self, generator: Generator, *, language: str, tokens: int, sampling: Sampling):
        """Args: the model, a language code, the most tokens of an answer, how to choose them."""
        self.generator, self.tokens, self.sampling = generator, tokens, sampling
        self.messages: list[dict[str, str]] = []
        self.language = ""
        self.speak(language)

    def speak(self, language: str) -> None:
        """Begins anew in a language; a UserError when it is unknown."""
        self._ids([{"role": "user", "content": "?"}], language)
        self.language, self.messages = language, []

    def ask(self, question: str) -> Iterator[str]:
        """Pieces of the answer; a question that raises a UserError is forgotten."""
        messages = [*self.messages, {"role": "user", "content": question}]
        ids = self._ids(messages, self.language)
        context = self.generator.model.config.context
        if len(ids) >= context:
            raise UserError(
                f"the conversation: {len(ids)} tokens do not fit into a context of {context}: "
                "begin another"
            )
        answer = ""
        text = self.generator.text(ids, tokens=self.tokens, sampling=self.sampling)
        for piece in without_blank(text):
            answer += piece
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]

    def _ids(self, messages: Sequence[dict[str, str]], language: str) -> list[int]:
        generator = self.generator
        return chat_ids(generator.tokenizer, messages, language, generator.form)


def converse(console: Console, chat: Chat) -> None:
    """Questions from standard input, answers as they come, until ``/quit`` or the end of input."""
    console.print(HELP, style="dim")
    while True:
        try:
            question = console.input("> ").strip()
        except EOFError:
            return
        if question == "/quit":
            return
        try:
            _answer(console, chat, question)
        except UserError as error:
            console.print(f"error: {error}", highlight=False)


def _answer(console: Console, chat: Chat, question: str) -> None:
    if question == "/new":
        chat.speak(chat.language)
    elif question == "/language":
        raise UserError("/language: of which code? as in /language de")
    elif question.startswith("/language"):
        chat.speak(question.removeprefix("/language").strip())
    elif question.startswith("/"):
        console.print(HELP, style="dim")
    elif question:
        for piece in chat.ask(question):
            console.print(piece, end="", highlight=False, soft_wrap=True)
        console.print()
        console.print(str(chat.generator.speed), style="dim", highlight=False)
