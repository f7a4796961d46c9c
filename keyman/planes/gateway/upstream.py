"""The way out: one request to a provider, with aiohttp.

It follows no redirect, keeps no cookie, decompresses nothing, reads no variables such as `HTTPS_PROXY`, and repeats
nothing: a request that was sent may have cost something. No error contains a byte of what was sent or received.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.tracing import Trace
from yarl import URL

from keyman.config.gateway import GatewaySettings
from keyman.errors import (
    InvalidRequest,
    PayloadTooLarge,
    Problem,
    ProviderAnswerRefused,
    ProviderRedirected,
    ProviderTimeout,
    ProviderUnreachable,
    raise_alone,
)
from keyman.http.connections import AT_ONCE
from keyman.http.exchange import Receive
from keyman.logs import log
from keyman.planes.gateway.addresses import public_socket
from keyman.planes.gateway.headers import Fields, values_of

CONNECT_TIMEOUT = 5.0
"""Seconds for name, connection and TLS."""

NO_LIMIT = 0
"""Of connections to providers. Each request has one beside that of its client, and `cli/serve.py` limits those. With a
smaller limit here, a caller could keep others from a provider.
"""

KEEP_ALIVE = 15.0
"""Seconds for which a connection without a request stays open: less than providers and their proxies keep it."""

BUFFER = 64 * 1024
"""Bytes of an answer that are read before the client takes some. aiohttp stops reading at twice as many."""

PART = 16 * 1024
"""The most bytes of an answer that are passed on at a time. The server holds some ten parts for a client that does not
read, whatever their size.
"""

IN_ONE = 64 * 1024
"""Bytes of a body that are handed to aiohttp in one piece, which it copies."""

UNREACHABLE = (
    "The provider cannot be reached: its name, its address or its certificate is wrong, or it is down. Nothing was "
    "sent. Try again later, or ask the operator of keyman: its log says why."
)

_MAY_COST = "It may have done the work all the same, so a second request can cost a second time."


class Outgoing(NamedTuple):
    """A request for a provider. Its fields contain the key."""

    method: str
    url: str
    fields: Fields
    is_private: bool

    def __repr__(self) -> str:
        return f"Outgoing({self.method} ***)"


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
            self.fault = fault  # aiohttp turns it into an error of its own, and not even that once an answer has begun
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


class _Connection(ResponseHandler):
    """A connection that tells the reader of a body when the rest of it does not come.

    If what comes is no longer HTTP, such as a chunk without a size, aiohttp closes the connection, and the reader would
    wait for ever. If the connection is reset, aiohttp takes a body without a length for whole.
    """

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        super().set_exception(exc)  # its cause can contain what was received
        if isinstance(exc, HttpProcessingError):
            self._end_body()

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is not None:
            self._end_body()
        super().connection_lost(exc)

    def _end_body(self) -> None:
        body = self._payload
        if body is not None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError())


class _Connector(aiohttp.TCPConnector):
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


class Upstreams:
    """The connections of one process to all providers."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext | None = None
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def open(self) -> None:
        """Read the certificates, which takes a while."""
        self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._settings.ca_certificate)

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _session(self, *, is_private: bool) -> aiohttp.ClientSession:
        """Return the session for addresses of both kinds, or for public ones only. They share no connection."""
        session = self._sessions.get(is_private)
        if session is None:
            # A proxy resolves the names, and its own address is the operator's choice.
            checks = not is_private and self._settings.proxy is None
            session = self._sessions[is_private] = aiohttp.ClientSession(
                connector=_Connector(
                    limit=NO_LIMIT,
                    limit_per_host=NO_LIMIT,
                    keepalive_timeout=KEEP_ALIVE,
                    ssl=self._tls or True,
                    socket_factory=public_socket if checks else None,
                ),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=self._settings.timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=BUFFER,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
            session._retry_connection = False  # aiohttp would repeat a GET. It has no public option
        return session

    @asynccontextmanager
    async def sent(self, outgoing: Outgoing, body: Body) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and yield the answer once its headers have arrived. At the end, close or keep the connection.

        Raises ProviderUnreachable, ProviderTimeout, ProviderAnswerRefused, ProviderRedirected, and what is wrong with
        the client's body.
        """
        seconds = self._settings.timeout
        with _faults(body):
            async with asyncio.timeout(seconds) as patience:
                response = await self._session(is_private=outgoing.is_private).request(
                    outgoing.method,
                    URL(outgoing.url, encoded=True),
                    headers=[(name.decode(), value.decode()) for name, value in outgoing.fields],
                    data=await body.content(patience, seconds),
                    allow_redirects=False,
                    proxy=self._settings.proxy,
                )
                body.is_answered = True
        try:
            _check(response)
            yield response
        except BaseException:
            response.close()  # its body was not read to the end
            raise
        response.release()


async def parts(response: aiohttp.ClientResponse, body: Body, seconds: float) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the parts of an answer's body as they arrive, each with whether it is the last.

    The first part is what came with the headers. It can be empty, and so can the last. Raises ProviderTimeout if
    nothing more comes within so many seconds, and ProviderAnswerRefused.
    """
    content = response.content
    with _faults(body):
        part, is_last = content.read_nowait(PART), content.at_eof()
        yield part, is_last
        if is_last:
            return
        waiting = _Waiting(content, seconds)
        try:
            while not is_last:  # the end can arrive while a part is passed on, and then it is a part of its own
                part = await waiting.read()
                is_last = content.at_eof()
                yield part, is_last
        finally:
            waiting.end()


class _Waiting:
    """Reads the body of an answer, and gives up when none of it has come for so many seconds.

    aiohttp counts from the last bytes that have arrived. They need not be of the body: what a provider may write beside
    the chunks has no end. There is one timer for a whole answer, because one for each part would cost more than the
    part.
    """

    def __init__(self, content: aiohttp.StreamReader, seconds: float) -> None:
        self._content, self._seconds = content, seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """Since when the next part is awaited, while it is."""
        self._timer = self._loop.call_later(seconds, self._look)

    async def read(self) -> bytes:
        self._since = self._loop.time()
        part = await self._content.read(PART)
        self._since = None
        return part

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        moment = self._loop.time()
        ends_at = (moment if self._since is None else self._since) + self._seconds
        if ends_at > moment:
            self._timer = self._loop.call_at(ends_at, self._look)
        else:
            self._content.set_exception(aiohttp.SocketTimeoutError())


def _check(response: aiohttp.ClientResponse) -> None:
    if not 200 <= response.status <= 599:
        raise ProviderAnswerRefused("The provider answered with a status that the gateway does not pass on.")
    if 300 <= response.status < 400 and "Location" in response.headers:
        raise ProviderRedirected(
            "The provider redirected the request. The gateway follows no redirect, because it would take the key "
            "along. The operator of keyman can change the base URL of the service."
        )
    codings = _codings(response, "Content-Encoding") | _codings(response, "Transfer-Encoding") - {"chunked"}
    if codings - {"identity", ""}:
        raise ProviderAnswerRefused(
            "The provider compressed its answer, although it was asked not to, so nobody can look for the key in it. "
            "Use the resolver for this request."
        )


def _codings(response: aiohttp.ClientResponse, field: str) -> set[str]:
    """Return what an answer says was done to its body, in lower case."""
    return {part.strip() for part in ",".join(response.headers.getall(field, [])).lower().split(",")}


_UNREACHED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)


@contextmanager
def _faults(body: Body) -> Iterator[None]:
    """Turn the errors of aiohttp into problems. They can contain what was sent or received, so none is kept.

    aiohttp's connection refers to its error, and the error by its traceback to the body. So the traceback ends here.
    """
    try:
        yield
    except _UNREACHED as fault:
        fault.__traceback__ = None
        if body.fault is None:
            log.warning("a provider cannot be reached", fault=_kind(fault))
        raise_alone(body.fault or ProviderUnreachable(UNREACHABLE))
    except TimeoutError as fault:
        fault.__traceback__ = None
        raise_alone(body.fault or ProviderTimeout(f"The provider sent nothing for too long. {_MAY_COST}"))
    except (aiohttp.ClientError, OSError, ValueError) as fault:
        fault.__traceback__ = None
        raise_alone(
            body.fault
            or ProviderAnswerRefused(f"The provider ended the connection, or its answer is not HTTP. {_MAY_COST}")
        )


def _kind(fault: Exception) -> str:
    """Return the class of what keeps the gateway from a provider. Its text can contain a name that a user chose."""
    if isinstance(fault, aiohttp.ClientConnectorError) and type(fault) is aiohttp.ClientConnectorError:
        return type(fault.os_error).__name__  # the other classes say more than what is in them
    return type(fault).__name__
