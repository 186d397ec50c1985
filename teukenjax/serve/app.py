"""The server: routes, the queue, and answers in OpenAI's form.

One request is generated at a time, on a thread; a bounded number waits, and one more is told to
come again. There are no keys and no users: it listens on this machine alone unless told otherwise.
"""

import asyncio
import contextlib
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Received
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from teukenjax.data.chat.template import system_sentences
from teukenjax.errors import UserError, nearest
from teukenjax.infer.chat import chat_ids, without_blank
from teukenjax.infer.generate import Generator
from teukenjax.serve.refusals import FAILED, HANDLERS, BusyError, error_object
from teukenjax.serve.requests import ChatCompletion, Completion, Request, read_request

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_BYTES = 1 << 20
LOG = logging.getLogger("uvicorn.error")  # where uvicorn tells of what fails before a stream


class Server:
    """A model, whose turn it is, and who waits."""

    def __init__(self, generator: Generator, *, name: str, queue: int, language: str):
        """Args: the model, its name, how many requests may wait, the language of chats."""
        self.generator, self.name, self.queue, self.language = generator, name, queue, language
        self.waiting = 0
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The model, when it is free; ``BusyError`` when too many wait for it."""
        if self._turn.locked() and self.waiting >= self.queue:
            raise BusyError(f"{self.queue} requests wait already: try again")
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def prompt(self, request: Request) -> list[int]:
        """The request's prompt as ids, which leave room for an answer; else a UserError."""
        ids = self._ids(request)
        context, size = self.generator.model.config.context, self.generator.tokenizer.vocab_size
        if not ids or len(ids) >= context:
            raise UserError(f"prompt: {len(ids)} tokens: allowed: 1 to {context - 1}")
        if not all(0 <= token < size for token in ids):
            raise UserError(f"prompt: token ids: allowed: 0 to {size - 1}")
        return ids

    def _ids(self, request: Request) -> list[int]:
        tokenizer = self.generator.tokenizer
        if isinstance(request, ChatCompletion):
            language = request.language or request.chat_template_kwargs.language
            form = self.generator.form
            return chat_ids(tokenizer, request.messages, language or self.language, form)
        assert isinstance(request, Completion)
        if isinstance(request.prompt, str):
            return self.generator.prompt_ids(request.prompt)
        return request.prompt


class Answer:
    """One request's answer as it comes, in OpenAI's words."""

    def __init__(self, server: Server, request: Request, ids: list[int]):
        """Args: the server, what was asked, and the prompt."""
        self._server, self._request, self._ids = server, request, ids
        self._chat = isinstance(request, ChatCompletion)
        kind = "chatcmpl" if self._chat else "cmpl"
        self._head = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": server.name,
        }

    async def pieces(self) -> AsyncIterator[str]:
        """The text, when the model is free for it."""
        request = self._request
        async with self._server.turn():
            text = self._server.generator.text(
                self._ids, tokens=request.tokens, sampling=request.sampling, stops=request.stops
            )
            if self._chat:
                text = without_blank(text)
            try:
                async for piece in iterate_in_threadpool(text):
                    if piece:
                        yield piece
            finally:
                generator = self._server.generator
                self._new, self._met_stop = generator.speed.new_tokens, generator.met_stop

    async def whole(self) -> JSONResponse:
        """The answer in one piece."""
        async with contextlib.aclosing(self.pieces()) as pieces:
            text = "".join([piece async for piece in pieces])
        content = self._message("message", {"role": "assistant", "content": text}, text)
        kind = "chat.completion" if self._chat else "text_completion"
        body = self._body(kind, [content | {"finish_reason": self._reason()}])
        return JSONResponse(body | {"usage": self._usage()})

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        delta = {"role": "assistant"}
        async with contextlib.aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                content = self._message("delta", delta | {"content": piece}, piece)
                yield _event(self._body(kind, [content | {"finish_reason": None}]))
                delta = {}
        end = self._message("delta", delta, "") | {"finish_reason": self._reason()}
        yield _event(self._body(kind, [end]))
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield _event(self._body(kind, []) | {"usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _message(self, key: str, message: dict, text: str) -> dict:
        content = {key: message} if self._chat else {"text": text}
        return {"index": 0, "logprobs": None, **content}

    def _body(self, kind: str, choices: list[dict]) -> dict:
        return {**self._head, "object": kind, "choices": choices}

    def _reason(self) -> str:
        context = self._server.generator.model.config.context
        most = min(self._request.tokens, context - len(self._ids))
        return "length" if self._new >= most and not self._met_stop else "stop"

    def _usage(self) -> dict[str, int]:
        new, given = self._new, len(self._ids)
        return {"prompt_tokens": given, "completion_tokens": new, "total_tokens": given + new}


def make_app(
    generator: Generator,
    *,
    name: str,
    queue: int = 16,
    language: str = "en",
    host: str = "127.0.0.1",
) -> Starlette:
    """The application.

    Args:
      generator: the model.
      name: what clients call it; they may give any.
      queue: how many requests wait at most.
      language: of chats that name none.
      host: where it will listen; on loopback, requests to another host's name are refused.

    Raises:
      UserError: for an unknown language.
    """
    if language not in system_sentences():
        known = nearest(language, system_sentences())
        raise UserError(f"language '{language}' is unknown: {known}")
    server = Server(generator, name=name, queue=queue, language=language)
    local = [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])]
    return Starlette(
        routes=[
            Route("/health", _health(server)),
            Route("/v1/models", _models(server)),
            Route("/v1/models/", _models(server)),  # else an empty name of the next
            Route("/v1/models/{name:path}", _model(server)),  # a path: names may hold slashes
            Route("/v1/completions", _answers(server, Completion), methods=["POST"]),
            Route("/v1/chat/completions", _answers(server, ChatCompletion), methods=["POST"]),
        ],
        middleware=local if host in LOOPBACK else [],
        exception_handlers=HANDLERS,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; early, because reading a model takes minutes.

    Raises:
      UserError: for an address that is not of this machine, or a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # create_server adds the address, in other words, to what the system says.
        reason = error.strerror.partition(" (")[0]
        raise UserError(f"--host {host} --port {port}: cannot be listened on: {reason}") from None


def run_server(app: Starlette, listening: socket.socket) -> None:
    """Serves on a socket until it is interrupted."""
    with listening, contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _health(server: Server) -> Callable:
    async def health(_: Received) -> Response:
        return JSONResponse({"status": "ok", "model": server.name, "waiting": server.waiting})

    return health


def _models(server: Server) -> Callable:
    async def models(_: Received) -> Response:
        return JSONResponse({"object": "list", "data": [_card(server)]})

    return models


def _model(server: Server) -> Callable:
    async def model(received: Received) -> Response:
        name = received.path_params["name"]
        if name == server.name:
            return JSONResponse(_card(server))
        message = f"model '{name}' is unknown: {nearest(name, [server.name])}"
        content = error_object(message, param="model", code="model_not_found")
        return JSONResponse(content, status_code=404)

    return model


def _card(server: Server) -> dict:
    return {"id": server.name, "object": "model", "created": 0, "owned_by": "teukenjax"}


def _answers(server: Server, kind: type[Request]) -> Callable:
    async def answer(received: Received) -> Response:
        request = read_request(kind, await _body_of(received))
        _ = request.sampling
        answer = Answer(server, request, server.prompt(request))
        if not request.stream:
            return await _while_there(received, answer.whole())
        events = answer.events()
        # What goes wrong before any text has a status of its own.
        first = await _while_there(received, anext(events))
        return StreamingResponse(_after(first, events), media_type="text/event-stream")

    return answer


async def _while_there[T](received: Received, work: Awaitable[T]) -> T:
    """Does the work, unless the client goes: then it ends, and what it held is free."""
    with anyio.CancelScope() as scope:  # unlike a task's cancel, it waits for a step on a thread
        gone = asyncio.ensure_future(_disconnect(received))
        gone.add_done_callback(lambda done: done.cancelled() or scope.cancel())
        try:
            return await work
        finally:
            gone.cancel()
    raise ClientDisconnect


async def _disconnect(received: Received) -> None:
    while (await received.receive())["type"] != "http.disconnect":
        pass


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    try:
        async with contextlib.aclosing(rest):
            async for event in rest:
                yield event
    except Exception:
        LOG.exception("A stream that had begun failed")
        yield _event(FAILED)


async def _body_of(received: Received) -> bytes:
    body = b""
    async for chunk in received.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise UserError(f"the body: allowed: {BODY_BYTES:,} bytes")
    return body


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
