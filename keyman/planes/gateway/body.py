"""The body of a request to a provider, as its client sends it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from keyman.errors import InvalidRequest, PayloadTooLarge, Problem
from keyman.http.exchange import Receive
from keyman.planes.gateway.headers import Fields, values_of

IN_ONE = 64 * 1024
"""Bytes of a body that are handed to aiohttp in one piece, which it copies."""


class Body:
    """The body of a request, as its client sends it.

    `over` is set when no more of it is to come: all of it has arrived, or `fault` says why it does not.
    """

    def __init__(self, receive: Receive, most: int, fields: Fields) -> None:
        self._receive = receive
        self._most = most
        self.fault: Problem | None = None
        self.over = asyncio.Event()
        self.is_answered = False
        """Whether the provider has begun to answer. It may do so before the body is whole."""
        self._size = 0
        lengths = values_of(fields, b"content-length")
        chunked = values_of(fields, b"transfer-encoding")
        if len(lengths) > 1 or (lengths and chunked):
            raise InvalidRequest(
                "The request says in two ways how long its body is. Send one Content-Length, or Transfer-Encoding: "
                "chunked."
            )
        if chunked and [coding.strip().lower() for coding in chunked] != [b"chunked"]:
            raise InvalidRequest("The only Transfer-Encoding that the gateway takes is chunked.")
        length = _length(lengths[0]) if lengths else 0
        if length > most:
            raise self._too_large()
        self._length = length if lengths else None
        self.is_empty = not chunked and length == 0

    @property
    def is_under_way(self) -> bool:
        """Whether some of the body may still come."""
        return not (self.is_empty or self.over.is_set())

    def forget(self) -> None:
        """Free what a fault refers to. To be called when nobody reads the body any more."""
        if self.fault is not None:
            self.fault.__traceback__ = None
            self.fault = None

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The body is larger than {self._most} bytes. Send less, or ask the operator of keyman to allow more."
        )

    async def content(self, patience: asyncio.Timeout, seconds: float) -> bytes | AsyncIterator[bytes] | None:
        """Return the body: None if it is empty, all of it if it has arrived with its first part, and otherwise its
        parts as they arrive. Each part starts `patience` again.

        aiohttp needs less for bytes than for an iterator. Most bodies arrive in one part.
        """
        if self.is_empty:
            return None
        first, is_last = await self._part(patience, seconds)
        return first if is_last and len(first) <= IN_ONE else self._chunks(first, is_last, patience, seconds)

    async def _chunks(
        self, part: bytes, is_last: bool, patience: asyncio.Timeout, seconds: float
    ) -> AsyncIterator[bytes]:
        try:
            while True:
                if part:
                    yield part
                if is_last:
                    break
                part, is_last = await self._part(patience, seconds)
        except Problem as fault:
            self.fault = fault  # aiohttp raises another error instead, or none once an answer has begun
            self.over.set()
            raise

    async def _part(self, patience: asyncio.Timeout, seconds: float) -> tuple[bytes, bool]:
        """Return the next part of the body, and whether it is the last. Raises what is wrong with it."""
        message = await self._receive()
        part, is_last = message.get("body", b""), not message.get("more_body", False)
        self._size += len(part)
        if self._size > self._most:
            raise self._too_large()
        if self._size == self._length and not is_last:
            # The server says in another message that this is all. If it is not received, the server takes the body for
            # unread: it closes the connection after the answer, and before the end of a chunked one.
            await self.drained()
            is_last = True
        if not self.is_answered and not patience.expired():
            patience.reschedule(asyncio.get_running_loop().time() + seconds)
        if is_last:
            self.over.set()
        return part, is_last

    async def drained(self) -> None:
        """Receive the end of a body whose content has arrived."""
        while (await self._receive()).get("more_body", False):
            pass
        self.over.set()

    async def left(self) -> None:
        """Return when the client has closed its connection. To be called after the whole body has arrived."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _length(value: bytes) -> int:
    """Return the value of a `Content-Length`. Raises InvalidRequest."""
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise InvalidRequest("The Content-Length must be a number of bytes.")
    return int(value)
