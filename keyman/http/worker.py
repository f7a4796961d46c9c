"""A plane as a worker of `keyman serve` runs it: it counts its connections, and drains before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyman.logs import log

if TYPE_CHECKING:  # they import Litestar, which the parent of the workers does not need
    from keyman.http.edge import Edge
    from keyman.http.exchange import Receive, Scope, Send

COUNT_INTERVAL = 1.0
"""Seconds between two counts of the connections. One of 4,096 takes 30 ms of a processor, one of 50 0.3 ms."""

READ_TIMEOUT = 30.0
"""Seconds in which a client must take some of what was sent to it. The server itself would wait for ever."""


@dataclass(frozen=True)
class Listener:
    """Where a worker accepts connections: the port, how many may be open at once, and for how many seconds after
    SIGTERM it goes on accepting.

    `always_drains` is for a plane that must know of SIGTERM even if it stops accepting at once.
    """

    port: int
    limit: int
    drain: float
    always_drains: bool = False


class Worker:
    """The ASGI application of a worker: a plane, which a signal makes drain.

    A load balancer needs time to notice that a process will stop. Until then it sends requests, and those that come
    when nothing accepts any more are lost. So SIGTERM first turns `/readyz` to 503, and ends each connection with its
    answer. The worker stops accepting some seconds later.
    """

    def __init__(self, plane: Edge, listener: Listener) -> None:
        self._plane = plane
        self._listener = listener
        self._is_full = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._plane(scope, receive, send)
            return
        if self._listener.drain > 0 or self._listener.always_drains:
            # It replaces the server's own handler, which stops at once. That for SIGINT stays.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._drain)
        counting = asyncio.create_task(self._count())
        try:
            await self._plane(scope, receive, send)
        finally:
            counting.cancel()

    def _drain(self) -> None:
        if self._plane.is_draining:
            return  # a service manager signals the workers, and so does their parent
        self._plane.is_draining = True
        log.info("draining", seconds=self._listener.drain)
        asyncio.get_running_loop().call_later(self._listener.drain, os.kill, os.getpid(), signal.SIGINT)

    async def _count(self) -> None:
        """Keep the metrics of the connections up to date, and log when there is no room for more, and when there is."""
        metrics, limit = self._plane.metrics, self._listener.limit
        metrics.connections_limit.set(limit)
        while True:
            count = count_connections(self._listener.port)
            metrics.open_connections.set(count)
            metrics.heartbeat.set_to_current_time()
            metrics.write_in_progress()
            if (count >= limit) != self._is_full:
                self._is_full = not self._is_full
                if self._is_full:
                    log.warning("no more connections are accepted", open=count, limit=limit)
                else:
                    log.info("connections are accepted again", open=count, limit=limit)
            await asyncio.sleep(COUNT_INTERVAL)


def count_connections(port: int) -> int:
    """Return how many connections to this local port the process has open, and limit how long each may read nothing.

    They are found among its open files, because the server does not show them.
    """
    try:
        descriptors = [int(entry) for entry in os.listdir("/dev/fd")]
    except OSError:
        return 0  # a machine without this directory
    return sum(_is_connection(descriptor, port) for descriptor in descriptors)


def _is_connection(descriptor: int, port: int) -> bool:
    with contextlib.suppress(OSError):  # not a socket, or closed by now
        connection = socket.socket(fileno=descriptor)
        try:
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != port:
                return False
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            if _TCP_USER_TIMEOUT is not None:
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(READ_TIMEOUT * 1000))
            return True
        finally:
            connection.detach()  # it belongs to the server
    return False


_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
"""`tcp(7)`. Only Linux has it."""
