"""What clients may ask: the parts of OpenAI's completions and chat that this server does."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from teukenjax.errors import UserError, nearest
from teukenjax.infer.sampling import Sampling

NAMES_ONLY = {"user", "metadata", "store", "safety_identifier"}  # change nothing in an answer
DEFAULT_TOKENS = 256
Count = Annotated[int, Field(ge=1)]


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
    seed: int = Sampling.seed
    max_tokens: Count | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Clients send what they leave at its default as null."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None}

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen; a UserError for a value out of range."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
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
    """POST /v1/completions: a text, or its token ids."""

    prompt: str | list[int]


class ChatCompletion(Request):
    """POST /v1/chat/completions; the language as vLLM's clients give it, or by itself."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    language: str | None = None
    chat_template_kwargs: dict[str, str] = {}

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


def _keys(kind: type[Request]) -> list[str]:
    return list(kind.model_fields)
