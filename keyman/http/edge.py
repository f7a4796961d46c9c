"""The outermost layer of a plane: pure ASGI around the whole application.

Each request gets an id from keyman (an id from the client would put its text into our log). A request from a page of
another site is refused, and the body has a time limit. Each request gives one log line and one measurement. Each answer
gets the common headers. An exception that the application did not handle becomes a problem.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any
from uuid import uuid4

import structlog

from keyman.config.settings import Settings
from keyman.errors import (
    FieldError,
    Forbidden,
    HeadersTooLarge,
    Internal,
    InvalidRequest,
    NotFound,
    Problem,
    raise_alone,
)
from keyman.http import problems, sites
from keyman.http.backlog import Backlog
from keyman.http.credentials import bearer_token
from keyman.http.problems import Answer
from keyman.http.root_path import RootPath
from keyman.http.sites import CROSS_SITE, PREFLIGHT, SAFE_METHODS, Cors
from keyman.telemetry import Metrics, frames, log

# The types of ASGI. Those of Litestar are narrower than what a server may send.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

KNOWN_METHODS = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Routes whose requests are logged at `debug`, unless they fail."""

BODY_TIMEOUT = 10.0
"""Seconds for a whole body, from when the application reads it. That is 64 KiB at 52 kbit/s, and less than a worker
that stops waits for its requests.
"""

MAX_HEADERS = 100
"""Header fields of a request. A browser sends about 20, and a proxy adds about 10."""

MAX_HEADER_BYTES = 32 * 1024
"""Bytes of the names and values of all headers, with those of path and query. Servers in front allow 8 to 32 KiB."""

MAX_PARAMETERS = 100
"""Parameters of a query. No address of keyman has a tenth. Litestar keeps the last 1,024 parsed queries in memory."""

SCOPE_KEY = "keyman.exchange"
"""The key of a request's Exchange in its ASGI scope."""

SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer, unless the route says otherwise."""


@dataclass
class Exchange:
    """One request and its answer, for the log line and for the handlers.

    `target` and `headers` are those of the request: the path below the root path, and names in lower case. `page`
    renders a problem as a page; it is None for a client that reads JSON. `is_foreign` says that a page of another site
    sent the request, and `is_excused` that a bearer token authenticated it nevertheless.
    `is_draining` is True in a process that will stop soon (`http/worker.py`).
    """

    request_id: str
    address: str | None
    method: str
    target: str  # path and query
    headers: Mapping[str, str]
    page: ProblemPage | None = None
    is_foreign: bool = False
    is_excused: bool = False
    is_draining: bool = False
    user_id: int | None = None
    application_id: int | None = None
    status: int = 500
    started: bool = False

    @property
    def caller(self) -> dict[str, int | None]:
        """The caller, for the log: an application, a user, or `{"user_id": None}`."""
        if self.application_id is not None:
            return {"application_id": self.application_id}
        return {"user_id": self.user_id}

    @property
    def counts_cookies(self) -> bool:
        """False for a script of another origin. A link on another site leads here with its user's session."""
        return not (self.is_foreign and "origin" in self.headers)

    @property
    def is_cross_site(self) -> bool:
        """True for a request that must change nothing: unsafe, sent by a page of another site, without a token."""
        return self.is_foreign and self.method not in SAFE_METHODS and not self.is_excused

    def require_same_site(self) -> None:
        """Raise Forbidden for a request that is_cross_site."""
        if self.is_cross_site:
            raise Forbidden(CROSS_SITE)

    def render(self, problem: Problem) -> Answer:
        """Return the answer for this problem, as JSON or as a page."""
        return problems.answer(problem, self.request_id) if self.page is None else self.page(problem, self)


ProblemPage = Callable[[Problem, Exchange], Answer]
"""Renders a problem as a page, for planes that have pages."""


def exchange_of(scope: Mapping[str, object]) -> Exchange:
    found = scope[SCOPE_KEY]
    assert isinstance(found, Exchange)
    return found


class Edge:
    """The outermost layer of a plane.

    While `is_draining` is set, each answer ends its connection, so that the client opens the next one to another
    process.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        page: ProblemPage | None = None,
        cors: Cors | None = None,
        root_path: str = "",
    ) -> None:
        self._app = app
        self._limited = Backlog(app, settings.max_queue)
        self._root = RootPath(root_path)
        self._page = page
        self._cors = cors or Cors()
        self._public_origin = settings.public_origin
        self.metrics = metrics
        self.is_draining = False
        self._trusted = settings.trusted_proxies
        self._headers = dict(SECURITY_HEADERS)
        if settings.is_https and settings.hsts:
            self._headers["strict-transport-security"] = settings.hsts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        is_too_large = _is_too_large(scope)
        headers = {} if is_too_large else _headers(scope)
        entered = self._root.enter(scope["path"])
        scope["path"] = entered or "/"
        page = self._page if _reads_pages(scope["path"], headers) else None
        method = scope["method"]
        query = scope.get("query_string", b"").decode("latin-1")
        target = f"{scope['path']}?{query}" if query else scope["path"]
        foreign, address = sites.is_foreign(headers, self._public_origin), self._address(scope, headers)
        exchange = Exchange(uuid4().hex, address, method, target, headers, page, foreign, is_draining=self.is_draining)
        scope[SCOPE_KEY] = exchange
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        if method == "HEAD":
            # The answer to HEAD is that of GET without the body (RFC 9110, 9.3.2).
            scope["method"] = "GET"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.started = message["status"], True
                self._add_headers(message, exchange, scope["path"])
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        with self.metrics.requests_in_progress.track_inprogress():
            try:
                if is_too_large:
                    raise HeadersTooLarge("Send at most 100 header fields, and at most 32 KiB of headers and address.")
                if bearer_token(scope) is None:
                    exchange.require_same_site()  # with a token, once the token was found to be valid or not
                _check_query(scope)
                if entered is None:
                    raise NotFound("There is nothing at this address.")
                if self._cors.is_preflight(method, scope["path"], headers):
                    await _send_preflight(send_with_headers)
                else:
                    await self._limited(scope, _in_time(receive), send_with_headers)
            except Exception as fault:  # noqa: BLE001  # the last handler: every exception becomes an answer
                problem = fault
                if not isinstance(problem, Problem):
                    log.error("unhandled exception", **frames(fault))
                    problem = Internal.of(exchange.request_id)
                if exchange.started:
                    # Part of the answer was sent. End the connection, so that the client notices.
                    exchange.status = 500
                    raise_alone(RuntimeError("the answer could not be finished"))
                await _answer(problem, exchange, send_with_headers)
            finally:
                self._observe(scope, method, exchange, perf_counter() - started)
                structlog.contextvars.clear_contextvars()

    def _observe(self, scope: Scope, method: str, exchange: Exchange, seconds: float) -> None:
        # Labels come from fixed sets. With the path or method of the request, a caller could create any number.
        route = scope.get("path_template") or "unmatched"
        known = method if method in KNOWN_METHODS else "other"
        self.metrics.requests.labels(known, route, str(exchange.status)).observe(seconds)
        if exchange.status >= 400:
            self.metrics.errors.labels(str(exchange.status)).inc()
        # A platform asks every few seconds. Its requests would push everything else out of a log that is rotated.
        is_routine = route in PROBES and exchange.status < 400
        log.log(
            logging.DEBUG if is_routine else logging.INFO,
            "request",
            method=known,
            route=route,
            status=exchange.status,
            duration_ms=round(seconds * 1000, 2),
            **exchange.caller,
        )

    def _add_headers(self, message: Message, exchange: Exchange, path: str) -> None:
        headers: list[tuple[bytes, bytes]] = self._root.leave(list(message["headers"]))
        present = {name.lower() for name, _ in headers}
        wanted = {**self._headers, "x-request-id": exchange.request_id}
        if self.is_draining:
            wanted["connection"] = "close"
        headers += [(name.encode(), value.encode()) for name, value in wanted.items() if name.encode() not in present]
        headers += self._cors.headers(path, exchange.headers)
        message["headers"] = headers

    def _address(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        """Return the client's address: the peer's, or else the last forwarded one that is not of a trusted proxy."""
        client = scope.get("client")
        if not client:
            return None
        hops = [part.strip() for part in headers.get("x-forwarded-for", "").split(",") if part.strip()]
        address = _parse_address(str(client[0]))
        while hops and address is not None and any(address in network for network in self._trusted):
            hop = _parse_address(_without_port(hops.pop()))
            if hop is None:
                break  # not an address, so its sender may have invented everything further left
            address = hop
        return None if address is None else str(address)


def _in_time(receive: Receive) -> Receive:
    """Limit the time for the whole body to BODY_TIMEOUT. The returned function raises InvalidRequest after that.

    Otherwise a client that announces a body and sends none could keep a request open, and keep a worker from stopping.
    """
    deadline: float | None = None
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal deadline, is_whole
        if is_whole:
            return await receive()  # after the body comes only the disconnect, at any time
        deadline = deadline or asyncio.get_running_loop().time() + BODY_TIMEOUT
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise InvalidRequest.at(FieldError("", "The body did not arrive in time.")) from None
        if message["type"] == "http.disconnect":  # before Content-Length, or in the middle of a chunk
            raise InvalidRequest.at(FieldError("", "The body ended before it was complete."))
        is_whole = not message.get("more_body", False)
        return message

    return receive_in_time


def _reads_pages(path: str, headers: Mapping[str, str]) -> bool:
    """Return True for a browser outside the API.

    Below `/api`, every client gets JSON. Elsewhere, a client that does not accept HTML by name, such as curl, gets
    JSON too.
    """
    return not path.startswith("/api/") and "text/html" in headers.get("accept", "")


async def _answer(problem: Problem, exchange: Exchange, send: Send) -> None:
    status, headers, body = exchange.render(problem)
    headers["content-length"] = str(len(body))
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _is_too_large(scope: Scope) -> bool:
    """Return True for a request with more headers than MAX_HEADERS or MAX_HEADER_BYTES allow.

    Decide this before anything else is done with them: some parsers need time that grows with the square of a length.
    """
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        return True
    target = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    return target + sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES


def _check_query(scope: Scope) -> None:
    """Raises InvalidRequest for a query with more than MAX_PARAMETERS."""
    if scope.get("query_string", b"").count(b"&") >= MAX_PARAMETERS:
        raise InvalidRequest.at(FieldError("", "The query has more than 100 parameters."))


async def _send_preflight(send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in PREFLIGHT.items()]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name.

    Repeated headers are joined with commas (RFC 9110, 5.3), and cookies with semicolons (RFC 9113, 8.2.3).
    """
    lines: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        lines.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return {name: ("; " if name == "cookie" else ", ").join(values) for name, values in lines.items()}


_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


def _without_port(hop: str) -> str:
    """Return the address of `203.0.113.7:51234` or `[2001:db8::1]:443`, or the text as it is."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found["v6"] or found["v4"] or ""


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address, or return None. Drops the zone, which can be any text, and unwraps an IPv4-mapped address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
