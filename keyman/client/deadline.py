"""Connections of the synchronous client, with a deadline for the whole call.

A timeout of httpx limits each single read. A server that sends its headers or its body one byte per second would block
a thread forever. In this module, the timeouts that httpcore passes on are moments of `time.monotonic`, and each read,
write and handshake gets the time that is left until then. Only the DNS lookup cannot be interrupted: the operating
system does it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator
from time import monotonic

import httpcore
import httpx

CONNECT = 3.0
"""Seconds for one address to accept a connection. This leaves time to try another address."""


class DeadlineTransport(httpx.BaseTransport):
    """A transport for HTTP/1.1. A request carries its deadline as the extension `deadline`."""

    def __init__(self, tls: ssl.SSLContext, max_connections: int, idle: float) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls, max_connections=max_connections, keepalive_expiry=idle, network_backend=_Backend()
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises exceptions of httpcore."""
        moment: float = request.extensions["deadline"]
        url = request.url
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.read(),
                extensions={
                    # Unlike the others, the pool takes a number of seconds.
                    "timeout": {"connect": moment, "read": moment, "write": moment, "pool": moment - monotonic()}
                },
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        return self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


def _left(moment: float | None) -> float:
    assert moment is not None
    left = moment - monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        fault: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError()
        # One by one: socket.create_connection would give each address the whole time.
        for address in _addresses(host, port):
            try:
                stream = self._system.connect_tcp(
                    address, port, min(CONNECT, _left(timeout)), local_address, socket_options
                )
                return _Stream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as refused:
                fault = refused
        raise fault


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
