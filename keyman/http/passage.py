"""The way of one request through a plane: what the application receives from its client, and what it sends back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from keyman.errors import FieldError, InvalidRequest
from keyman.http.exchange import Exchange, Message, Receive, Send

BODY_TIMEOUT = 10.0
"""Seconds for a whole body, from when the application reads it. That is 64 KiB at 52 kbit/s or 1 MiB at
840 kbit/s, and less than a worker that stops waits for its requests.
"""

Headers = list[tuple[bytes, bytes]]


class Passage:
    """Stands between the server and the application, for one request.

    `complete` adds the headers that every answer has. The body must arrive within BODY_TIMEOUT, or each part of it
    within `between` seconds after the one before, if that is given. While its client is to send or to read something,
    the request does not count in the backlog.

    Nothing that a passage refers to may refer to it: until `receive` is freed, the server waits for the rest of a body
    that the application has refused.
    """

    __slots__ = ("_between", "_complete", "_deadline", "_exchange", "_is_whole", "_receive", "_send")

    def __init__(
        self,
        exchange: Exchange,
        receive: Receive,
        send: Send,
        complete: Callable[[Exchange, Headers], Headers],
        between: float | None,
    ) -> None:
        self._between = between
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._complete = complete
        self._is_whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """Return the next message, which must arrive in time.

        Otherwise a client that announces a body and sends none could keep a request open, and keep a worker from
        stopping. Raises InvalidRequest for a body that does not arrive, and Overloaded.
        """
        if self._is_whole:
            return await self._receive()  # after the body comes only the disconnect, at any time
        self._exchange.turn.pause()
        message = await self._receive_in_time()
        self._exchange.turn.resume()
        self._is_whole = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        moment = asyncio.get_running_loop().time()
        if self._between is not None:
            self._deadline = moment + self._between
        self._deadline = self._deadline or moment + BODY_TIMEOUT
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise InvalidRequest.at(FieldError("", "The body did not arrive in time.")) from None
        if message["type"] == "http.disconnect":  # before Content-Length, or in the middle of a chunk
            raise InvalidRequest.at(FieldError("", "The body ended before it was complete."))
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            exchange = self._exchange
            exchange.turn.pause()
            exchange.status, exchange.started = message["status"], True
            message["headers"] = self._complete(exchange, list(message["headers"]))
        elif self._exchange.method == "HEAD" and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        return self._send(message)
