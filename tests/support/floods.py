"""Floods: many connections from one address, each of which keeps a server waiting in another way.

They go to loopback only. A flood opens its connections once and closes them when its block ends.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

COUNT = 1_200
"""Connections of a flood: more than the 1,024 that a server usually has room for."""

OPENING = 10.0
"""Seconds in which a flood opens its connections."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
LARGE = b"GET /docs/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
"""Requests for a large answer, more than the buffers of a connection hold at first."""

FLOODS = {
    "silent": b"",
    "half a header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Half: ",
    "half a body": (
        b"POST /api/auth/login HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    ),
    "idle keep-alive": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "the preface of HTTP/2": PREFACE,
    "never reading": LARGE,
    "slow reading": LARGE,
}
"""What each connection of a flood sends. Of the two last, one reads nothing and the other a few bytes a second."""


class Flood:
    """Connections that are open. `left` counts those that the server has not closed."""

    def __init__(self, port: int, kind: str, count: int, source: str) -> None:
        self._port, self._kind, self._source = port, kind, source
        self._connections = [self._connect() for _ in range(count)]
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def _connect(self) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.bind((self._source, 0))
        connection.setblocking(False)
        with suppress(BlockingIOError):
            connection.connect(("127.0.0.1", self._port))
        return connection

    def start(self) -> None:
        """Return once every connection is open and has sent its opening, or was refused."""
        waiting = selectors.DefaultSelector()
        for connection in self._connections:
            waiting.register(connection, selectors.EVENT_WRITE)
        deadline = time.monotonic() + OPENING
        while waiting.get_map() and time.monotonic() < deadline:
            for key, _ in waiting.select(0.1):
                with suppress(OSError):
                    key.fileobj.send(FLOODS[self._kind])  # type: ignore[union-attr]  # each is a socket
                waiting.unregister(key.fileobj)
        waiting.close()
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            if self._kind == "slow reading":
                for connection in self._connections:
                    with suppress(OSError):
                        connection.recv(16)

    @property
    def left(self) -> int:
        return sum(map(_is_open, self._connections))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()


def _is_open(connection: socket.socket) -> bool:
    """Return False for a connection that the server has closed or reset, or never accepted. Discards what was sent."""
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def flood(port: int, kind: str, *, count: int = COUNT, source: str = "127.0.0.1") -> Iterator[Flood]:
    """Keep `count` connections open from the address `source` of loopback until the block ends."""
    running = Flood(port, kind, count, source)
    running.start()
    try:
        yield running
    finally:
        running.end()
