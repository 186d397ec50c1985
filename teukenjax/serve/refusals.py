"""What goes wrong, told in OpenAI's form: one error object, whoever raised it.

The handlers are the application's, so that no route has a branch for them. One failure they
cannot tell: that of a stream which has begun, whose status is sent; there the object is an event.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Received
from starlette.responses import JSONResponse, Response

from teukenjax.errors import UserError


class BusyError(Exception):
    """As many requests wait as may."""


def error_object(
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
) -> dict:
    """OpenAI's error object; ``kind`` is what they call type."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


FAILED = error_object("the server failed at this request: its log says how", kind="server_error")


async def _no_route(received: Received, error: HTTPException) -> Response:
    """An unknown path, or a method that the path does not take."""
    known = {
        f"{method} {route.path_format.rstrip('/')}"
        for route in received.app.routes
        for method in route.methods - {"HEAD"}
    }
    asked = f"{received.method} {received.scope['path']}"
    content = error_object(f"{asked}: allowed: {', '.join(sorted(known))}")
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def _mistaken(_: Received, error: UserError) -> Response:
    return JSONResponse(error_object(str(error)), status_code=400)


async def _busy(_: Received, error: BusyError) -> Response:
    return JSONResponse(error_object(str(error), kind="overloaded"), status_code=503)


async def _gone(_: Received, __: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nginx's word for it; nobody reads it


async def _failed(_: Received, __: Exception) -> Response:
    # The traceback goes on to uvicorn, which logs it and closes the connection: clients are told.
    return JSONResponse(FAILED, status_code=500, headers={"Connection": "close"})


HANDLERS: Mapping[type[Exception], Callable[..., Awaitable[Response]]] = {
    HTTPException: _no_route,
    UserError: _mistaken,
    BusyError: _busy,
    ClientDisconnect: _gone,
    Exception: _failed,
}
