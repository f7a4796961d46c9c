"""What every route has in common: the parts it is given, ids in paths, and exceptions turned into problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from litestar import Request, Response, Router
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.params import SkipValidation
from litestar.types import ExceptionHandlersMap
from litestar.utils import normalize_path

from keyman import errors
from keyman.errors import FieldError, Internal, InvalidRequest, Problem
from keyman.http.edge import exchange_of
from keyman.ids import MAX_ID
from keyman.telemetry import frames, log
from keyman.values import JsonSchema

# What Litestar leaves open: who asks (set by the guards), how, and the state of the application.
AnyRequest: TypeAlias = Request[Any, Any, Any]
AnyConnection: TypeAlias = ASGIConnection[Any, Any, Any, Any]

T = TypeVar("T")

Injected: TypeAlias = NamedDependency[SkipValidation[T]]
"""A part of the application that a handler is given, as it is: Litestar would look through its fields."""


class Routes(Router):
    """Routes made for one application, which takes them as they are. A Router would be copied as deep as it goes, every
    handler of it: two fifths of what an application takes to be made.
    """

    def __deepcopy__(self, _memo: dict[int, object]) -> Self:
        return self


def from_state(name: str) -> Provide:
    """The part of the application of this name, for whichever handler asks for it."""

    def provide(state: State) -> object:
        return state[name]

    return Provide(provide, sync_to_thread=False)


_ROW_ID = re.compile(r"[1-9][0-9]{0,18}")


class RowId(int):
    """The id in a path. What cannot be one does not exist, so that nothing tells the two apart."""

    schema: ClassVar[JsonSchema] = {"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}

    @classmethod
    def parse(cls, raw: object) -> Self:
        # int() would take "+1", "01", "1_0" and the digits of other scripts: many spellings for one row.
        if not (isinstance(raw, str) and _ROW_ID.fullmatch(raw) and int(raw) <= MAX_ID):
            raise errors.NotFound("There is nothing with this id.")
        return cls(raw)


def respond(problem: Problem, request: AnyRequest) -> Response[bytes]:
    status, headers, body = exchange_of(request.scope).say(problem)
    return Response(body, status_code=status, headers=headers, media_type=headers["content-type"])


def _on_problem(request: AnyRequest, problem: Problem) -> Response[bytes]:
    return respond(problem, request)


def _on_http_exception(request: AnyRequest, fault: HTTPException) -> Response[bytes]:
    response = respond(_translated(fault), request)
    if fault.status_code == 405:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: AnyRequest) -> Iterator[str]:
    """What the path takes (RFC 9110, 15.5.6 requires it); HEAD wherever GET, by the edge."""
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
    """Before each handler: Litestar's own answer to OPTIONS lists one handler's methods, not the path's."""
    if request.method != "OPTIONS":
        return None
    return Response(None, status_code=204, headers={"Allow": ", ".join(_allowed_methods(request))})


def _translated(fault: HTTPException) -> Problem:
    """Litestar's own exceptions, without its messages: they can repeat what was sent."""
    if isinstance(fault, ValidationException):
        return InvalidRequest.at(*_field_errors(fault))
    known = {
        400: InvalidRequest("The request is not well-formed."),
        404: errors.NotFound("There is nothing at this address."),
        405: errors.MethodNotAllowed("The Allow header lists the methods that this address takes."),
        413: errors.PayloadTooLarge("The body is larger than 64 KiB."),
    }
    if fault.status_code in known:
        return known[fault.status_code]
    log.error("unexpected http exception", status=fault.status_code, **frames(fault))
    return Internal("This answer has no words yet; the log holds the rest.")


def _field_errors(fault: ValidationException) -> list[FieldError]:
    # Parameters are of keyman's own value types, whose messages repeat nothing.
    entries = fault.extra if isinstance(fault.extra, list) else []
    return [FieldError(entry.get("key", ""), entry["message"].partition(" - at ")[0]) for entry in entries] or [
        FieldError("", "The request is not well-formed.")
    ]
