"""What clients may ask: the parts of OpenAI's completions and chat that this server does."""

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from teukenjax.errors import UserError, nearest
from teukenjax.infer.sampling import Sampling

NAMES_ONLY = {"user", "metadata", "store", "safety_identifier"}  # change nothing in an answer
DEFAULT_TOKENS = 256
CHANGE_NOTHING = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "echo": False,
    "best_of": 1,
}
Count = Annotated[int, Field(ge=1)]


def _only(words: str) -> pydantic.WrapValidator:
    """Says what is allowed in the words of the API; a union's own error names its types."""

    def check(value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except pydantic.ValidationError:
            raise PydanticCustomError("only", f"allowed: {words}") from None

    return pydantic.WrapValidator(check)


def _alone(prompt: Any) -> Any:
    """The prompt that is alone in a list."""
    only = isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list)
    return prompt[0] if only else prompt


Stop = Annotated[str | list[str], _only("a string or an array of strings")]
Prompt = Annotated[
    str | list[int],
    pydantic.BeforeValidator(_alone),
    _only("one prompt: a string or an array of tokens, or an array of one of these"),
]


class StreamOptions(BaseModel):
    """Whether a last chunk tells the usage."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request have; a key that is not here is refused by name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = ""
    temperature: float = Sampling.temperature
    top_p: float = Sampling.top_p
    top_k: int = Sampling.top_k
    repetition_penalty: float = Sampling.repetition_penalty
    seed: int | None = None  # none: another at each request
    max_tokens: Count | None = None
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, given: Any) -> Any:
        """Clients send what they leave at its default as null, or as what changes nothing."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if not _says_nothing(key, value)}

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; a UserError for a value out of range."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbelow(2**32) if self.seed is None else self.seed % 2**32,
        )

    @property
    def tokens(self) -> int:
        """The most new tokens."""
        return self.max_tokens or DEFAULT_TOKENS

    @property
    def stops(self) -> list[str]:
        """Strings that end the text."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]


class Completion(Request):
    """POST /v1/completions: a text, or its token ids; one."""

    prompt: Prompt


class TemplateOptions(BaseModel):
    """What vLLM's clients hand to a chat template; of ours the language alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: str | None = None


class ChatCompletion(Request):
    """POST /v1/chat/completions; the language as vLLM's clients give it, or by itself."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    language: str | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @pydantic.field_validator("messages")
    @classmethod
    def _in_plain_words(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Contents that come in parts of text as one, and the newer name of a role as its older."""
        return [message | _joined(message) | _older(message) for message in messages]

    @property
    def tokens(self) -> int:
        """The most new tokens, by its newer name or its older."""
        return self.max_completion_tokens or super().tokens


def read_request[R: Request](kind: type[R], body: bytes) -> R:
    """A request from JSON; a UserError says in one line what is wrong with it."""
    try:
        request = kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the body"
        raise UserError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    for key in request.model_extra or {}:
        if key not in NAMES_ONLY:
            raise UserError(f"{key}: this server does not know it: {nearest(key, _keys(kind))}")
    return request


def _joined(message: dict[str, Any]) -> dict[str, str]:
    parts = message.get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return {}
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    whole = len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return {"content": "".join(texts)} if whole else {}


def _older(message: dict[str, Any]) -> dict[str, str]:
    return {"role": "system"} if message.get("role") == "developer" else {}


def _says_nothing(key: str, value: Any) -> bool:
    if value is None:
        return True
    nothing = CHANGE_NOTHING.get(key)
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def _keys(kind: type[Request]) -> list[str]:
    return list(kind.model_fields)
