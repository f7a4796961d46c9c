"""Runs the routes of a Litestar application directly, without what Litestar would work out again for each request.

Litestar still says what there is: it registers the routes, their guards and their parameters, describes them in the
OpenAPI document, and serves the pages. At the start of a plane, a `Call` is made from each route that only needs parts
of the application, the caller, and parameters of keyman's own types. When a request comes, nothing is left to do but to
parse its parameters, to run the guards and to call the function.

What is not the usual case is left to Litestar before anything was done with it: another path or method, and a parameter
that is unknown, repeated or invalid. So there is one place that words the answers to these.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter, QueryParameter
from litestar.routes import HTTPRoute
from litestar.serialization import encode_json
from litestar.types import Guard
from litestar.types import Scope as LitestarScope
from litestar.typing import FieldDefinition

from keyman.errors import Forbidden, Problem
from keyman.http.exchange import ASGIApp, Receive, Scope, Send, exchange_of
from keyman.http.passage import Headers
from keyman.http.requests import EXCEPTION_HANDLERS, AnyRequest, Part, answer_options, to_problem
from keyman.http.sites import CROSS_SITE
from keyman.logs import frames, log

T_co = TypeVar("T_co", covariant=True)


class Parsed(Protocol[T_co]):
    """One of keyman's own types. `parse` raises ValueError or a Problem."""

    def parse(self, raw: object) -> T_co: ...


Provided = Callable[[AnyRequest], object]
"""Returns what a handler gets for one of its parameters, from a request whose guards have run."""


@dataclass(frozen=True, slots=True)
class Call:
    """What to do for the requests of one method and path."""

    handler: HTTPRouteHandler
    template: str
    guards: Sequence[Guard]
    before: Callable[[AnyRequest], Any] | None
    provided: Mapping[str, Provided]
    in_path: Mapping[str, Parsed[object] | None]
    in_query: Mapping[str, tuple[str, Parsed[object]]]
    in_headers: Mapping[str, str]
    status_code: int
    content_type: bytes

    @property
    def is_bare(self) -> bool:
        """True if nothing of a request matters but its method and path."""
        return not (self.guards or self.before or self.provided or self.in_path or self.in_headers)

    async def answer(self, request: AnyRequest, values: dict[str, object]) -> object:
        """Run the guards and the function of the route. `values` are the parsed parameters.

        Return what the function returns: a Response, or only the content of one.
        """
        for guard in self.guards:
            await guard(request, self.handler)  # type: ignore[misc]  # guards of keyman are coroutines
        if self.before is not None and (early := await self.before(request)) is not None:
            return early
        for name, provide in self.provided.items():
            values[name] = provide(request)
        return await self.handler.fn(**values)

    def parse(self, request: AnyRequest, last: str) -> dict[str, object] | None:
        """Return the parameters of a request, or None if one is not as it should be. `last` is the end of its path."""
        try:
            values: dict[str, object] = {
                name: last if wanted is None else wanted.parse(last) for name, wanted in self.in_path.items()
            }
            if request.scope["query_string"]:
                for sent_as, raw in request.query_params.multi_items():
                    name, kind = self.in_query[sent_as]
                    if name in values:
                        return None
                    values[name] = kind.parse(raw)
        except (KeyError, ValueError, Problem):
            return None
        sent = exchange_of(request.scope).headers
        for name, header in self.in_headers.items():
            if header in sent and _is_repeated(request, header):
                return None
            values[name] = sent.get(header)
        return values

    async def send(self, answer: object, send: Send) -> None:
        """Send what Litestar would have sent for this answer."""
        if isinstance(answer, Response):
            await self._send_response(answer, send)
        else:
            body, headers = self._body(answer, self.status_code, self.content_type)
            await _send(send, self.status_code, headers, body)

    async def _send_response(self, response: Response[Any], send: Send) -> None:
        status = response.status_code or self.status_code
        content_type = _content_type(response.media_type) if response.media_type else self.content_type
        headers = [(name.lower().encode(), str(value).encode()) for name, value in response.headers.items()]
        body, more = self._body(response.content, status, content_type)
        headers += more
        headers += [cookie.to_encoded_header() for cookie in response.cookies]
        await _send(send, status, headers, body)
        if response.background is not None:
            await response.background()

    def _body(self, content: object, status: int, content_type: bytes) -> tuple[bytes, Headers]:
        if status == 204:
            return b"", []
        body = _encoded(content)
        return body, [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]


def _is_repeated(request: AnyRequest, header: str) -> bool:
    return len(request.headers.getall(header)) > 1


class Direct:
    """An application of Litestar, some of whose routes are run directly."""

    def __init__(self, app: Litestar) -> None:
        self._litestar = app
        self._app = cast("ASGIApp", app)
        self._plain: dict[tuple[str, str], Call] = {}
        self._below: dict[tuple[str, str], Call] = {}  # by the path without its last part, which is a parameter
        self._fixed = {path for route in app.routes for path in _beginnings(route.path)}
        for route in app.routes:
            if isinstance(route, HTTPRoute):
                self._add(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        call, last = found
        scope["app"] = scope["litestar_app"] = self._litestar
        scope["route_handler"], scope["path_template"] = call.handler, call.template
        scope.setdefault("state", {})
        if call.is_bare and not scope["query_string"]:
            running: Awaitable[object] = call.handler.fn()
        else:
            request: AnyRequest = Request(cast("LitestarScope", scope), receive, send)  # type: ignore[arg-type]
            values = call.parse(request, last)
            if values is None:
                await self._app(scope, receive, send)
                return
            running = call.answer(request, values)
        try:
            await call.send(await running, send)
        except Exception as fault:
            if exchange_of(scope).is_cross_site:
                if not isinstance(fault, Problem | HTTPException):
                    log.error("unhandled exception", **frames(fault))
                raise Forbidden(CROSS_SITE) from None  # a page of another site learns nothing else
            if isinstance(fault, HTTPException):
                raise to_problem(fault) from None
            raise

    @property
    def templates(self) -> set[tuple[str, str]]:
        """The methods and paths that are run directly."""
        return {(method, call.template) for table in (self._plain, self._below) for (method, _), call in table.items()}

    def _find(self, scope: Scope) -> tuple[Call, str] | None:
        """Return what to do for a request, and the last part of its path. None for what Litestar does."""
        method, path = scope["method"], scope["path"]
        if not _PLAIN_HOST.fullmatch(exchange_of(scope).headers.get("host", "")):
            return None
        call = self._plain.get((method, path))
        if call is not None:
            return call, ""
        if path in self._fixed:
            return None  # Litestar prefers a fixed part of a path to a parameter, whatever the method is
        parent, _, last = path.rpartition("/")
        call = self._below.get((method, parent)) if last else None
        return None if call is None else (call, last)

    def _add(self, route: HTTPRoute) -> None:
        """Run the handlers of a route directly, as far as possible."""
        parent, _, last = route.path.rpartition("/")
        for handler in route.route_handlers:
            if (call := _call(handler, route)) is None:
                continue
            for method in handler.http_methods:
                if not route.path_parameters:
                    self._plain[method, route.path] = call
                elif len(route.path_parameters) == 1 and last.startswith("{"):
                    self._below[method, parent] = call


def _beginnings(path: str) -> Iterator[str]:
    """Yield the paths to each part before the first parameter of a path, such as `/a` and `/a/b` of `/a/b/{c}/d`."""
    parts = path.partition("/{")[0].split("/")
    for number in range(2, len(parts) + 1):
        yield "/".join(parts[:number])


_PLAIN_HOST = re.compile(r"[0-9A-Za-z.:-]*")
"""A host that Litestar would accept. It checks the others more closely."""


def _call(handler: HTTPRouteHandler, route: HTTPRoute) -> Call | None:
    """Return how to run a route, or None for one that needs more of Litestar."""
    if _needs_litestar(handler):
        return None
    before = handler.resolve_before_request()
    provided: dict[str, Provided] = {}
    in_path: dict[str, Parsed[object] | None] = {}
    in_query: dict[str, tuple[str, Parsed[object]]] = {}
    in_headers: dict[str, str] = {}
    parts = handler.resolve_dependencies()
    for name, field in handler.parsed_fn_signature.parameters.items():
        kind = _own_type(field)
        if name == "request":
            provided[name] = _itself
        elif name in parts:
            if not isinstance(part := parts[name], Part):
                return None
            provided[name] = part.read
        elif name in route.path_parameters and (kind is not None or field.annotation is str):
            in_path[name] = kind
        elif not field.has_default:
            return None  # Litestar words the answer to a request without it
        elif isinstance(field.kwarg_definition, QueryParameter) and kind is not None:
            in_query[field.kwarg_definition.name or name] = name, kind
        elif isinstance(field.kwarg_definition, HeaderParameter) and field.kwarg_definition.name:
            in_headers[name] = field.kwarg_definition.name.lower()
        else:
            return None
    return Call(
        handler,
        route.path_format,
        handler.resolve_guards(),
        None if before is answer_options else before,
        provided,
        in_path,
        in_query,
        in_headers,
        handler.status_code,
        _content_type(handler.media_type or "application/json"),
    )


def _needs_litestar(handler: HTTPRouteHandler) -> bool:
    """Return True for a route with something that `Call` does not do, on whichever layer it was declared."""
    returned = handler.parsed_fn_signature.return_type
    return bool(
        handler.has_sync_callable
        or handler.cache
        or handler.background
        or any(layer.after_request for layer in handler.ownership_layers)
        or handler.resolve_after_response()
        or handler.resolve_middleware()
        or handler.resolve_exception_handlers() != EXCEPTION_HANDLERS
        or handler.resolve_request_class() is not Request
        or handler.resolve_response_class() is not Response
        or (returned.is_subclass_of(Response) and (returned.origin or returned.annotation) is not Response)
        or handler.resolve_return_dto()
        or handler.resolve_type_encoders()
        or handler.resolve_response_cookies()
        or not all(header.documentation_only for header in handler.resolve_response_headers())
    )


def _own_type(field: FieldDefinition) -> Parsed[object] | None:
    """Return the type of keyman's own that a parameter has, besides None."""
    kinds = [inner.annotation for inner in field.inner_types if inner.annotation is not type(None)]
    kind = kinds[0] if field.is_union and len(kinds) == 1 else field.annotation
    return cast("Parsed[object]", kind) if isinstance(kind, type) and hasattr(kind, "parse") else None


def _itself(request: AnyRequest) -> AnyRequest:
    return request


def _encoded(content: object) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else encode_json(content)


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _content_type(media_type: object) -> bytes:
    media_type = str(getattr(media_type, "value", media_type))
    return (f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type).encode()
