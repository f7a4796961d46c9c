"""The common part of all routes: dependencies, ids in paths, and exceptions that become problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, cast

from litestar import Request, Response, Router
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.params import SkipValidation
from litestar.types import ExceptionHandlersMap
from litestar.utils import normalize_path

from keyman import errors
from keyman.errors import FieldError, Internal, InvalidRequest, Problem
from keyman.http.exchange import Message, exchange_of
from keyman.http.sites import CROSS_SITE
from keyman.identity.principals import Principal
from keyman.ids import MAX_ID
from keyman.logs import frames, log
from keyman.values import JsonSchema

# What Litestar leaves open: who asks (set by the guards), how, and the state of the application.
AnyRequest: TypeAlias = Request[Any, Any, Any]
AnyConnection: TypeAlias = ASGIConnection[Any, Any, Any, Any]

T = TypeVar("T")

Injected: TypeAlias = NamedDependency[SkipValidation[T]]
"""A part of the application that a handler gets unchanged. Otherwise Litestar would validate its fields."""


class Routes(Router):
    """Routes for one application, which uses them without a copy.

    Litestar copies a Router with all its handlers, which takes two fifths of the time to create an application.
    """

    def __deepcopy__(self, _memo: dict[int, object]) -> Self:
        return self


class Part(Provide):
    """A dependency that `read` only has to look up, so that a route can be run directly (`http/direct.py`)."""

    __slots__ = ("read",)

    def __init__(self, read: Callable[[AnyRequest], object]) -> None:
        def provide(request: AnyRequest) -> object:
            return read(request)

        super().__init__(provide, sync_to_thread=False)
        self.read = read


def from_state(name: str) -> Part:
    """Return a dependency that provides the part of the application with this name."""
    return Part(lambda request: request.app.state[name])


CALLER = Part(lambda request: request.user)
"""Who calls, for a handler of a route that is not public."""


_ROW_ID = re.compile(r"[1-9][0-9]{0,18}")


MAX_DIGITS = 18
"""Digits of a Content-Length that is read as a number. A body whose length has more is too large for every route."""


class RowId(int):
    """The id in a path. A text that cannot be an id gets the same answer as an id that does not exist."""

    schema: ClassVar[JsonSchema] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}

    @classmethod
    def parse(cls, raw: object) -> Self:
        # int() would also accept "+1", "01", "1_0" and digits of other scripts: many spellings for one row.
        if not (isinstance(raw, str) and _ROW_ID.fullmatch(raw) and int(raw) <= MAX_ID):
            raise errors.NotFound("There is nothing with this id.")
        return cls(raw)


async def read_body(request: AnyRequest, *, confirm: bool = True) -> bytes:
    """Return the body of a request, and check the caller again, who may have been revoked before the body arrived.

    Without `confirm` there is no check. This is for a route that does nothing before a transaction that checks the
    caller. Raises Unauthenticated, and Litestar's RequestEntityTooLarge.
    """
    exchange = exchange_of(request.scope)
    if exchange.body is None:
        exchange.body = await _receive_body(request, exchange.headers.get("content-length", ""))
    caller: Principal | None = request.scope.get("user")
    if confirm and caller is not None and not exchange.is_confirmed:
        await caller.confirm_for_reading(request.app.state.db)
        exchange.is_confirmed = True
    return exchange.body


async def _receive_body(request: AnyRequest, announced: str) -> bytes:
    """Return the whole body. `announced` is its Content-Length. Raises RequestEntityTooLarge.

    `Request.body` would parse all headers again, which costs as much as the rest of it.
    """
    most = request.route_handler.resolve_request_max_body_size() or inf
    if announced.isdecimal() and (len(announced) > MAX_DIGITS or int(announced) > most):
        raise RequestEntityTooLarge
    parts, size, has_more = list[bytes](), 0, True
    while has_more:
        message = cast("Message", await request.receive())
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > most:
            raise RequestEntityTooLarge
        has_more = message.get("more_body", False)
    return b"".join(parts)


def respond(problem: Problem, request: AnyRequest) -> Response[bytes]:
    """Return the answer for a problem, as JSON or as a page."""
    exchange = exchange_of(request.scope)
    if exchange.is_cross_site:
        problem = errors.Forbidden(CROSS_SITE)  # a page of another site learns nothing else
    status, headers, body = exchange.render(problem)
    return Response(body, status_code=status, headers=headers, media_type=headers["content-type"])


def _on_problem(request: AnyRequest, problem: Problem) -> Response[bytes]:
    return respond(problem, request)


def _on_http_exception(request: AnyRequest, fault: HTTPException) -> Response[bytes]:
    response = respond(to_problem(fault), request)
    if response.status_code == 405:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: AnyRequest) -> Iterator[str]:
    """Yield the methods of the path, as RFC 9110 (15.5.6) requires. The edge adds HEAD to every GET."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        try:
            request.app.asgi_router.handle_routing(normalize_path(request.scope["path"]), method)
        except HTTPException:
            continue
        yield from ("GET", "HEAD") if method == "GET" else (method,)


def _on_exception(request: AnyRequest, fault: Exception) -> Response[bytes]:
    log.error("unhandled exception", **frames(fault))
    return respond(Internal.of(exchange_of(request.scope).request_id), request)


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    Problem: _on_problem,
    HTTPException: _on_http_exception,
    Exception: _on_exception,
}


async def answer_options(request: AnyRequest) -> Response[None] | None:
    """Answer OPTIONS with the methods of the path. Litestar's own answer would list only those of one handler."""
    if request.method != "OPTIONS":
        return None
    return Response(None, status_code=204, headers={"Allow": ", ".join(_allowed_methods(request))})


def to_problem(fault: HTTPException) -> Problem:
    """Turn an exception of Litestar into a problem, without its message, which can repeat what was sent."""
    if isinstance(fault, ValidationException):
        return InvalidRequest.at(*_field_errors(fault))
    known = {
        400: InvalidRequest("The request is malformed."),
        404: errors.NotFound("There is nothing at this address."),
        405: errors.MethodNotAllowed("The Allow header lists the methods that this address accepts."),
        413: errors.PayloadTooLarge("The body is larger than 64 KiB."),
    }
    if fault.status_code in known:
        return known[fault.status_code]
    log.error("unexpected http exception", status=fault.status_code, **frames(fault))
    return Internal("An unexpected error occurred. The log has the details.")


def _field_errors(fault: ValidationException) -> list[FieldError]:
    # Parameters are of keyman's own value types, whose messages repeat nothing.
    entries = fault.extra if isinstance(fault.extra, list) else []
    return [FieldError(entry.get("key", ""), entry["message"].partition(" - at ")[0]) for entry in entries] or [
        FieldError("", "The request is malformed.")
    ]
