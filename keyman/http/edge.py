"""The outermost layer of a plane: pure ASGI around the whole application.

Each request gets an id from keyman (an id from the client would put its text into our log). A request from a page of
another site is refused, and the body has a time limit. Each request gives one log line and one measurement. Each answer
gets the common headers. An exception that the application did not handle becomes a problem.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import urandom
from time import perf_counter

from keyman.config.settings import Settings
from keyman.errors import HeadersTooLarge, Internal, NotFound, Problem, raise_alone
from keyman.http import sites
from keyman.http.backlog import LIVENESS, Backlog
from keyman.http.connections import Peer
from keyman.http.credentials import Claim, of_authorization
from keyman.http.exchange import SCOPE_KEY, ASGIApp, Exchange, ProblemPage, Receive, Scope, Send
from keyman.http.passage import Headers, Passage
from keyman.http.received import address_of, check_query, headers_of, is_too_large
from keyman.http.root_path import RootPath
from keyman.http.sites import PREFLIGHT, SAFE_METHODS, Cors
from keyman.logs import REQUEST_ID, LineLog, frames, log
from keyman.metrics import Metrics

KNOWN_METHODS = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Routes whose requests are logged at `debug`, unless they fail."""

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


class Edge:
    """The outermost layer of a plane.

    `claim` finds the credential in the headers: by default, an access token in `Authorization`. `problem` renders
    problems in another form than that of keyman. `body_pause` is how many seconds may be between two parts of a
    body; without it, there is a limit for the whole body. While `is_draining` is set, each answer ends its connection,
    so that the client opens the next one to another process. `clients_left` is called with the clients that have closed
    their connections, also while nothing of these is read. `passed_on_for` returns the clients of which a request was
    passed on to another server since its last call: they may read nothing for longer than others.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        page: ProblemPage | None = None,
        cors: Cors | None = None,
        root_path: str = "",
        claim: Claim = of_authorization,
        problem: ProblemPage | None = None,
        body_pause: float | None = None,
    ) -> None:
        self._app = app
        self._backlog = Backlog(settings.max_queue)
        self._claim = claim
        self._problem = problem
        self._body_pause = body_pause
        self._root = RootPath(root_path)
        self._page = page
        self._cors = cors or Cors()
        self._public_origin = settings.public_origin
        self.metrics = metrics
        self.is_draining = False
        self.clients_left: Callable[[set[Peer]], None] = lambda _peers: None
        self.passed_on_for: Callable[[], set[Peer]] = set
        self._lines = LineLog()
        self._trusted = settings.trusted_proxies
        headers = dict(SECURITY_HEADERS)
        if settings.is_https and settings.hsts:
            headers["strict-transport-security"] = settings.hsts
        # Encoded once, because every answer has them.
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._names = frozenset(name for name, _ in self._headers) | {b"x-request-id", b"connection"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        are_too_large = is_too_large(scope)
        headers = {} if are_too_large else headers_of(scope)
        entered = self._root.enter(scope["path"])
        scope["path"] = entered or "/"
        exchange = scope[SCOPE_KEY] = self._exchange(scope, headers)
        REQUEST_ID.set(exchange.request_id)
        passage = Passage(exchange, receive, send, self._complete, self._body_pause)
        self.metrics.in_progress += 1
        try:
            if are_too_large:
                raise HeadersTooLarge("Send at most 100 header fields, and at most 32 KiB of headers and address.")
            exchange.claimed = self._claim(scope)
            if exchange.claimed.token is None and exchange.claimed.jwt is None:
                exchange.require_same_site()  # with a token, once the token was found to be valid or not
            check_query(scope)
            if entered is None:
                raise NotFound("There is nothing at this address.")
            await self._answer(scope, exchange, passage)
        except Exception as fault:  # noqa: BLE001  # the last handler: every exception becomes an answer
            await _answer_for(fault, exchange, passage.send)
        finally:
            exchange.turn.end()
            self.metrics.in_progress -= 1
            self._observe(scope, exchange, perf_counter() - began)
            REQUEST_ID.set(None)

    def _exchange(self, scope: Scope, headers: dict[str, str]) -> Exchange:
        path, method = scope["path"], scope["method"]
        query = scope.get("query_string", b"").decode("latin-1")
        if method == "HEAD":
            # The answer to HEAD is that of GET without the body (RFC 9110, 9.3.2).
            scope["method"] = "GET"
        return Exchange(
            urandom(16).hex(),
            address_of(scope, headers, self._trusted),
            method,
            f"{path}?{query}" if query else path,
            headers,
            self._page if self._page is not None and _reads_pages(path, headers) else self._problem,
            path != sites.EXEMPT and sites.is_foreign(headers, self._public_origin),
            is_draining=self.is_draining,
        )

    async def _answer(self, scope: Scope, exchange: Exchange, passage: Passage) -> None:
        """Let the application answer, or answer a preflight."""
        path = scope["path"]
        if self._cors.is_preflight(exchange.method, path, exchange.headers):
            await _send_preflight(passage.send)
            return
        if path != LIVENESS:
            exchange.turn.enter(self._backlog)
        await self._app(scope, passage.receive, passage.send)

    def _observe(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        # Labels come from fixed sets. With the path or method of the request, a caller could create any number.
        route = scope.get("path_template") or "unmatched"
        method = exchange.method if exchange.method in KNOWN_METHODS else "other"
        self.metrics.observe_request(method, route, exchange.status, seconds, is_own=not exchange.is_passed_on)
        # A platform asks every few seconds. Its requests would push everything else out of a log that is rotated.
        is_routine = route in PROBES and exchange.status < 400
        level = logging.DEBUG if is_routine else logging.INFO
        if not self._lines.takes(level):
            return
        self._lines.log(
            level,
            "request",
            method=method,
            route=route,
            status=exchange.status,
            duration_ms=round(seconds * 1000, 2),
            **exchange.caller,
            **exchange.noted,
        )

    def _complete(self, exchange: Exchange, headers: Headers) -> Headers:
        """Return the headers of an answer, with those that every answer has unless the route says otherwise."""
        headers = self._root.leave(headers)
        wanted = [*self._headers, (b"x-request-id", exchange.request_id.encode())]
        if self.is_draining:
            wanted.append((b"connection", b"close"))
        present = {name.lower() for name, _ in headers}
        if not present.isdisjoint(self._names):
            wanted = [header for header in wanted if header[0] not in present]
        if self._cors.is_off:
            return headers + wanted
        path = exchange.target.partition("?")[0]
        return headers + wanted + self._cors.headers(exchange.method, path, exchange.headers)


async def _answer_for(fault: Exception, exchange: Exchange, send: Send) -> None:
    """Answer a request that ended with this exception.

    If a part of its answer was sent before, the answer never ends: the server closes the connection, so that the client
    notices. The log line says why. Raises RuntimeError if the reason is not a problem.
    """
    problem = fault
    if not isinstance(problem, Problem):
        log.error("unhandled exception", **frames(fault))
        problem = Internal.of(exchange.request_id)
    status, headers, body = exchange.render(problem)
    if exchange.started:
        exchange.status, exchange.is_passed_on = status, False
        exchange.noted["cut"] = problem.slug
        if isinstance(fault, Problem):
            return
        raise_alone(RuntimeError("the answer could not be finished"))
    headers["content-length"] = str(len(body))
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _reads_pages(path: str, headers: dict[str, str]) -> bool:
    """Return True for a browser outside the API.

    Below `/api`, every client gets JSON. Elsewhere, a client that does not accept HTML by name, such as curl, gets
    JSON too.
    """
    return not path.startswith("/api/") and "text/html" in headers.get("accept", "")


async def _send_preflight(send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in PREFLIGHT.items()]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
