"""A request to a plane, part by part in both directions, as a server would speak with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from keyman.http.edge import Edge
from keyman.http.exchange import Message

PATIENCE = 20.0
"""Seconds for one step: ten times what the slowest takes."""


class Talk:
    """One request, which starts at once: one without a body can be at the provider before anything is given.

    `most` limits the parts of the answer that wait to be read, as the buffer of a server does.
    """

    def __init__(
        self, app: Edge, method: str, path: str, headers: Mapping[str, str] | list[tuple[str, str]], most: int = 0
    ) -> None:
        raw, _, query = path.partition("?")
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.outbox: asyncio.Queue[Message] = asyncio.Queue(most)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": raw,
            "raw_path": raw.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
            "client": ("192.0.2.7", 1),
            "server": ("127.0.0.1", 8002),
        }
        self.task = asyncio.create_task(app(scope, self.inbox.get, self.outbox.put))
        self.status = 0
        self.headers: list[tuple[str, str]] = []

    def give(self, body: bytes = b"", *, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def begun(self) -> int:
        """The status, once the answer has begun."""
        message = await self._next()
        assert message["type"] == "http.response.start"
        self.status = message["status"]
        self.headers = [(name.decode(), value.decode("latin-1")) for name, value in message["headers"]]
        return self.status

    async def part(self) -> bytes | None:
        """The next part of the answer that is not empty, None at its end."""
        message = await self._next()
        assert message["type"] == "http.response.body"
        if message["body"] or not message.get("more_body"):
            return message["body"] or None
        return await self.part()

    async def _next(self) -> Message:
        waiting = asyncio.ensure_future(self.outbox.get())
        done, _ = await asyncio.wait({waiting, self.task}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if waiting in done:
            return waiting.result()
        waiting.cancel()
        assert done, "nothing came in time"
        if not self.outbox.empty():
            return self.outbox.get_nowait()
        await self.task
        raise EOFError("the answer ended")

    async def was_cut(self) -> bool:
        """Wait until the plane is done with the request, and say whether it left the answer without an end.

        The server then closes the connection.
        """
        assert await self.ended() is None
        messages = [self.outbox.get_nowait() for _ in range(self.outbox.qsize())]
        return all(message.get("more_body", True) for message in messages)

    async def ended(self) -> BaseException | None:
        """Wait until the plane is done with the request, and return what it raised."""
        done, _ = await asyncio.wait({self.task}, timeout=PATIENCE)
        assert done, "the request goes on"
        return self.task.exception()

    def header(self, name: str) -> str | None:
        return next((value for given, value in self.headers if given == name), None)


class Answer:
    """A whole answer."""

    def __init__(self, talk: Talk, body: bytes, *, is_whole: bool) -> None:
        self.status, self.fields, self.body, self.is_whole = talk.status, talk.headers, body, is_whole
        self.header = talk.header

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def asked(
    app: Edge,
    method: str,
    path: str,
    headers: Mapping[str, str] | list[tuple[str, str]],
    body: bytes = b"",
) -> Answer:
    """Send a whole request and return the whole answer."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs):
        pairs.append(("content-length", str(len(body))))
    talk = Talk(app, method, path, pairs)
    talk.give(body)
    assert await talk.ended() is None
    return _collected(talk)


def _collected(talk: Talk) -> Answer:
    messages = []
    while not talk.outbox.empty():
        messages.append(talk.outbox.get_nowait())
    start = next(message for message in messages if message["type"] == "http.response.start")
    talk.status = start["status"]
    talk.headers = [(name.decode(), value.decode("latin-1")) for name, value in start["headers"]]
    body = b"".join(message["body"] for message in messages if message["type"] == "http.response.body")
    return Answer(talk, body, is_whole=not messages[-1].get("more_body", True))
