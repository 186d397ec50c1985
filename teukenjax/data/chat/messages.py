"""Conversations as people keep them, in three common forms, checked.

    {"messages": [{"role": "user", "content": "…"}, …], "language": "de"}
    {"conversations": [{"from": "human", "value": "…"}, …]}                     ShareGPT
    {"instruction": "…", "input": "…", "output": "…"}                           Alpaca

The form is told by its key. A row may name its language, as ``language`` or ``lang``.
"""

import unicodedata
from collections.abc import Collection
from typing import Any, NamedTuple

from teukenjax.data.tokenizer import SPECIAL_PIECES
from teukenjax.errors import UserError, nearest

ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "system": "system",
}  # fmt: skip


class Conversation(NamedTuple):
    """Turns that alternate, a user's first and an assistant's last; texts without outer blanks."""

    language: str
    turns: tuple[tuple[str, str], ...]  # (user, assistant)
    system: str | None = None  # in place of the language's own sentence


def parse(row: dict[str, Any], *, language: str | None, languages: Collection[str]) -> Conversation:
    """What a row of one of the three forms says.

    Args:
      row: the values of a JSON object or a Parquet row.
      language: of a row that names none.
      languages: those allowed.

    Raises:
      UserError: for anything else than turns that alternate, none of them empty or holding a
        special piece, in a known language.
    """
    found = row.get("language") or row.get("lang") or language
    if found is None:
        raise UserError("language is missing: neither the row nor its source names one")
    if not isinstance(found, str) or found.lower() not in languages:
        raise UserError(f"language {found!r:.40} is unknown: {nearest(str(found), languages)}")
    messages = _messages(row)
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
    return Conversation(found.lower(), _pairs(messages), system)


def prompt_of(conversation: Conversation) -> str:
    """The last thing that the user says."""
    return conversation.turns[-1][0]


def without_special(text: str) -> str:
    """The text less the special pieces that are spelled in it; normalised if there are any."""
    while found := _special_in(text):  # without one there may be another
        text = unicodedata.normalize("NFKC", text)
        for piece in found:
            text = text.replace(piece, "")
    return text


def _special_in(text: str) -> list[str]:
    # The tokenizer matches special pieces inside text, which it has normalised: one would end the
    # turn, or forge another.
    read = unicodedata.normalize("NFKC", text)
    return [piece for piece in SPECIAL_PIECES if piece in read]


def _messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    if "messages" in row:
        return [_message(n, m, "role", "content") for n, m in _listed(row, "messages")]
    if "conversations" in row:
        return [_message(n, m, "from", "value") for n, m in _listed(row, "conversations")]
    if "instruction" in row:
        asked = "\n\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
        asked, answer = {"role": "user", "content": asked}, row.get("output")
        answer = {"role": "assistant", "content": answer}
        return [_message(n, m, "role", "content") for n, m in enumerate((asked, answer), start=1)]
    raise UserError("is no conversation: allowed keys: messages, conversations, instruction")


def _listed(row: dict[str, Any], key: str) -> list[tuple[int, Any]]:
    if not isinstance(row[key], list):
        raise UserError(f"{key} is not a list but {type(row[key]).__name__}")
    return list(enumerate(row[key], start=1))


def _message(number: int, message: Any, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise UserError(f"turn {number} is not an object but {type(message).__name__}")
    role, text = message.get(role_key), message.get(text_key)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise UserError(f"turn {number}: {role_key} is {role!r:.40}: {nearest(str(role), ROLES)}")
    role = ROLES[role.lower()]
    if not isinstance(text, str | None):
        raise UserError(f"turn {number}: {text_key} is not a string but {type(text).__name__}")
    if text is None or not text.strip():
        name = {"user": "question", "assistant": "answer", "system": "system text"}[role]
        raise UserError(f"turn {number}: the {name} is empty")
    _check_text(number, text)
    return role, text.strip()


def _check_text(number: int, text: str) -> None:
    if special := _special_in(text):
        raise UserError(f"turn {number} holds the special piece '{special[0]}'")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"turn {number} holds half a surrogate pair") from None


def _pairs(messages: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    for number, (role, _) in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            before = f"after a turn of the {messages[number - 1][0]}" if number else "at the start"
            raise UserError(
                f"turns do not alternate: {before} comes one of the {role}, not of the {expected}"
            )
    if not messages or len(messages) % 2:
        raise UserError("the conversation does not end with a turn of the assistant")
    texts = [text for _, text in messages]
    return tuple(zip(texts[::2], texts[1::2], strict=True))
