"""Limits the requests that wait in a process, so that one more gets an answer at once instead of after a long wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from keyman.errors import Overloaded

# The types of ASGI, as in edge.py.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

LIVENESS = "/livez"
"""Always answered: a platform ends a process that does not answer here, and that would help nobody."""


class Backlog:
    """An application for HTTP, with a limit of `most` requests that wait in this process for an answer.

    A request counts while keyman works on it, and not while keyman waits for its client. So clients that send a body
    slowly, or do not read the answer, do not keep others out: other limits end them. Raises Overloaded.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._waiting = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == LIVENESS:
            await self._app(scope, receive, send)
            return
        entry = _Entry(self)
        is_whole = False

        async def receive_outside() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()  # after the body comes only the disconnect, at any time
            entry.leave()
            message = await receive()
            entry.enter()
            is_whole = not message.get("more_body", False)
            return message

        async def send_outside(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.leave()
            await send(message)

        entry.enter()
        try:
            await self._app(scope, receive_outside, send_outside)
        finally:
            entry.leave()

    def enter(self) -> None:
        if self._waiting >= self._most:
            raise Overloaded
        self._waiting += 1

    def leave(self) -> None:
        self._waiting -= 1


class _Entry:
    """One request, which counts once or not at all."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._counts = False

    def enter(self) -> None:
        if not self._counts:
            self._backlog.enter()
            self._counts = True

    def leave(self) -> None:
        if self._counts:
            self._backlog.leave()
            self._counts = False
