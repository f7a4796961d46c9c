"""A plane as a worker of `keyman serve` runs it: it counts its connections, and drains before it stops."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from keyman.http.connections import Connections
from keyman.logs import log

if TYPE_CHECKING:  # they import Litestar, which the parent of the workers does not need
    from keyman.http.edge import Edge
    from keyman.http.exchange import Receive, Scope, Send

COUNT_INTERVAL = 0.9
"""Seconds between two looks at the connections, so that a plane knows within a second of a client that has left. One at
4,096 takes 30 ms of a processor, one at 50 0.3 ms.
"""

READ_TIMEOUT = 30.0
"""Seconds in which a client must take some of what was sent to it. The server itself would wait for ever. At the
gateway, a client whose request went to a provider has `KEYMAN_GATEWAY_TIMEOUT`.
"""

REMINDER = signal.SIGURG
"""A signal that a worker sends to itself at each look. uvloop only notes a signal that comes while the loop does not
run, and acts on it at the next signal. The server runs the loop twice, to open the plane and to serve. A SIGTERM
between the two would be forgotten, and the worker killed in the end.
"""


@dataclass(frozen=True)
class Listener:
    """Where a worker accepts connections: the port, how many may be open at once, and for how many seconds after
    SIGTERM it goes on accepting.

    `read_timeout` is how many seconds a client may take nothing of what was sent to it, if the plane has passed on a
    request of it; others have `READ_TIMEOUT`, if that is less. `always_drains` is for a plane that must know of SIGTERM
    even if it stops accepting at once.
    """

    port: int
    limit: int
    drain: float
    read_timeout: float = READ_TIMEOUT
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
        signal.signal(REMINDER, _ignored)
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
        """Keep the metrics of the connections up to date, and log when there is no room for more, and when there is.

        Tell the plane of clients that have left, and the loop to look for signals.
        """
        metrics, limit = self._plane.metrics, self._listener.limit
        longer = self._listener.read_timeout
        connections = Connections(self._listener.port, min(READ_TIMEOUT, longer), longer)
        metrics.connections_limit.set(limit)
        while True:
            signal.raise_signal(REMINDER)
            count, left = connections.look(self._plane.passed_on_for())
            self._plane.clients_left(left)
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


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal that needs no answer. Python tells the loop only of a signal that has a handler."""
