"""The way out: one request to a provider, with aiohttp.

It follows no redirect, keeps no cookie, decompresses nothing, reads no variables such as `HTTPS_PROXY`, and repeats
nothing: a request that was sent may have cost something. No error contains a byte of what was sent or received.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from yarl import URL

from keyman.config.gateway import GatewaySettings
from keyman.planes.gateway.addresses import public_socket
from keyman.planes.gateway.answers import check
from keyman.planes.gateway.body import Body
from keyman.planes.gateway.connector import Connector
from keyman.planes.gateway.faults import faults
from keyman.planes.gateway.headers import Fields

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


class Outgoing(NamedTuple):
    """A request for a provider. Its fields contain the key."""

    method: str
    url: str
    fields: Fields
    is_private: bool

    def __repr__(self) -> str:
        return f"Outgoing({self.method} ***)"


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
                connector=Connector(
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
        with faults(body):
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
            check(response)
            yield response
        except BaseException:
            response.close()  # its body was not read to the end
            raise
        response.release()
