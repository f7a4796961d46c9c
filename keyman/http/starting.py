"""Lets a plane start while its database is away: it answers 503, and opens its parts as soon as it can.

A worker that ended instead would be started again and end again, until the server takes that for a fault of its own and
stops all workers.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from keyman.errors import ConfigurationError, DatabaseUnavailable, raise_alone
from keyman.http.exchange import ASGIApp, Receive, Scope, Send
from keyman.http.health import Checks, Liveness, Readiness
from keyman.logs import Repeats, frames, log

PAUSE = 1.0
"""Seconds between two attempts to open a plane. Each attempt is one connection for each worker."""


class Application(Protocol):
    """An application of Litestar."""

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Open the parts. Raises ConfigurationError for a wrong set-up, and DatabaseUnavailable."""


class Starting:
    """Serves an application that is open, and answers for one that is not open yet.

    The first attempt belongs to the start: wrong configuration ends it. After that, nothing does.
    """

    def __init__(self, application: Application, app: ASGIApp) -> None:
        self._application = application
        self._app = app
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._is_open or scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await _answer_for_it(scope, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        begun, ended = asyncio.get_running_loop().create_future(), asyncio.Event()
        keeper = asyncio.create_task(self._keep(begun, ended))
        try:
            await begun
        except ConfigurationError as fault:
            await send({"type": "lifespan.startup.failed", "message": str(fault)})
            raise_alone(ConfigurationError(str(fault)))
        except Exception as fault:  # noqa: BLE001  # the server would log the message, which may contain anything
            log.error("the plane cannot start", **frames(fault))
            await send({"type": "lifespan.startup.failed", "message": ""})
            raise_alone(RuntimeError("the plane cannot start"))
        try:
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
            ended.set()
            await keeper
        finally:
            keeper.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _keep(self, begun: asyncio.Future[None], ended: asyncio.Event) -> None:
        """Open the application, as often as it takes, and close it when `ended` is set.

        `begun` gets the outcome of the first attempt. A database that is away counts as begun.
        """
        repeats = Repeats()
        while not ended.is_set():
            try:
                async with self._application.lifespan():
                    self._is_open = True
                    _set(begun)
                    await ended.wait()
                    self._is_open = False
                    return
            except Exception as raised:  # noqa: BLE001  # the start raises it, or the log shows it
                fault = _only(raised)
            if not (isinstance(fault, DatabaseUnavailable) or begun.done()):
                begun.set_exception(fault)
                return
            event, details = _described(fault)
            if repeats.is_due((event, details)):
                log.error(event, **details)
            _set(begun)
            await _pause(ended)


def _described(fault: Exception) -> tuple[str, dict[str, object]]:
    if isinstance(fault, DatabaseUnavailable):
        return "the database is away: the plane answers 503 and tries again", {"kind": fault.kind}
    said: dict[str, object] = {"found": str(fault)} if isinstance(fault, ConfigurationError) else {**frames(fault)}
    return "the plane cannot be opened: it answers 503 and tries again", said


def _only(fault: Exception) -> Exception:
    """Return the exception in a group of one. Litestar opens its parts in a task group, which wraps exceptions."""
    while isinstance(fault, ExceptionGroup) and len(fault.exceptions) == 1:
        fault = fault.exceptions[0]
    return fault


def _set(begun: asyncio.Future[None]) -> None:
    if not begun.done():
        begun.set_result(None)


async def _pause(ended: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PAUSE):
            await ended.wait()


async def _answer_for_it(scope: Scope, send: Send) -> None:
    """Answer for an application that is not open. Raises DatabaseUnavailable, except for the platform's questions."""
    path, is_get = scope["path"], scope["method"] == "GET"
    if is_get and path == "/livez":
        status, answer = 200, msgspec.json.encode(Liveness("ok"))
    elif is_get and path == "/readyz":
        # Vault is only asked once the sentinel can be read.
        status, answer = 503, msgspec.json.encode(Readiness("degraded", Checks("unreachable", "unreachable")))
    else:
        raise DatabaseUnavailable
    scope["path_template"] = path
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer, "more_body": False})
