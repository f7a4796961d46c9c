"""The connections to providers, as aiohttp keeps them, where it does less than the gateway needs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace

from keyman.http.connections import AT_ONCE


class _Connection(ResponseHandler):
    """A connection that tells the reader of a body when the rest of it does not come.

    If what comes is no longer HTTP, such as a chunk without a size, aiohttp closes the connection, and the reader would
    wait for ever. If the connection is reset, or its TLS does not come to its end, aiohttp takes a body without a
    length for whole.
    """

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        super().set_exception(exc)  # its cause can contain what was received
        if isinstance(exc, HttpProcessingError):
            self._end_body()

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None or _breaks_off(self.transport):
            self._end_body()
        super().connection_lost(exc)

    def _end_body(self) -> None:
        body = self._payload
        if body is not None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError())


def _breaks_off(transport: asyncio.BaseTransport | None) -> bool:
    """Return True if a connection has ended without the end of its TLS. Anyone on the way can end a connection, so a
    body without a length is not whole then (RFC 9112, 9.8).
    """
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    try:
        return tls is not None and tls.read(1) != b""
    except ssl.SSLZeroReturnError:  # TLS has ended
        return False
    except ssl.SSLError:
        return True


class Connector(aiohttp.TCPConnector):
    """Keeps connections, and uses none again on which more than its answer has arrived.

    aiohttp would take that for the answer to the next request, which can be another caller's. A connection whose
    request did not come to its end is reset: aiohttp would keep it open until the provider has taken all that was
    written, which it may never do.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        kind: type[ResponseHandler] = _Connection
        self._factory = partial(kind, loop=self._loop)

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:  # it has no public hook
        while (kept := await super()._get(key, traces)) is not None:
            if kept.protocol is not None and not kept.protocol.should_close:
                return kept
            kept.close()
        return None

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if should_close and protocol.transport is not None:
            _reset(protocol.transport)
        super()._release(key, protocol, should_close=should_close)


def _reset(transport: asyncio.Transport) -> None:
    """Close a connection at once, without what was not sent yet."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it has ended
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    transport.abort()
