"""Serves `/metrics` of all workers of a plane, from their parent, on an address of its own.

Workers write their counts to files, which the parent adds up, so a scrape waits for no worker. The server has one
thread, and answers one request for each connection. A connection has TIMEOUT seconds in all. If too many are open, the
oldest ends, so clients that send nothing, or read nothing, do not keep a scraper out.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from math import inf
from pathlib import Path
from threading import Thread
from time import monotonic

from prometheus_client import CONTENT_TYPE_LATEST

from keyman.config.metrics import DEFAULTS, METRICS_LISTEN, Address, Listen
from keyman.errors import ConfigurationError
from keyman.logs import frames, log
from keyman.metrics import render_workers
from keyman.processes import bound, is_taken

TIMEOUT = 10.0
"""Seconds from the beginning of a connection to its end. Prometheus itself waits for 10 by default."""

MAX_CONNECTIONS = 32
"""Connections that are open at once. Two Prometheus servers and a person with curl need three."""

AT_ONCE = 4
"""Connections that are accepted before the server looks at what the others have sent. If it accepted all that wait, a
flood would end a connection before its request is read.
"""

WAITING = 128
"""Connections that the kernel keeps until they are accepted."""

FRESH = 0.25
"""Seconds in which an answer is given again. It takes 10 ms to make, and a flood must not take a whole processor."""

MAX_HEAD = 8 * 1024
"""Bytes of a request line with its headers. Those of Prometheus have 300."""

STOP_SECONDS = 1.0
"""Seconds in which the thread ends. The process ends without it, too."""

PATH = "/metrics"

TEXT = "text/plain; charset=utf-8"


def open_listener(wanted: Listen | None, plane: str, port: int) -> socket.socket | None:
    """Return a socket for the metrics of a plane that itself listens on `port`. None if there are no metrics.

    If the default address is taken, it logs a warning, and there are none. Raises ConfigurationError if nothing can
    listen on an address that was set.
    """
    if wanted == "off":
        return None
    address = wanted or DEFAULTS[plane]
    try:
        listener = _listening(address, port)
    except (OSError, UnicodeError) as fault:
        if wanted is None:
            remedy = f"Set {METRICS_LISTEN} to an address that is free, or to off."
            log.warning("there are no metrics, because their address is taken", address=str(address), remedy=remedy)
            return None
        why = "is in use, or not allowed for this user" if is_taken(fault) else "is not an address of this machine"
        raise ConfigurationError(f"{METRICS_LISTEN} {why}: choose another, or set it to off") from None
    found = Address(*listener.getsockname()[:2])
    log.info("metrics are served", url=f"http://{found}{PATH}")
    return listener


def _listening(address: Address, port: int) -> socket.socket:
    if address.port == port:  # on two addresses it would work, and mislead
        raise OSError(errno.EADDRINUSE, "the plane's own port")
    listener = bound(address.host, address.port)
    listener.listen(WAITING)
    return listener


@contextmanager
def served(listener: socket.socket, directory: Path) -> Iterator[None]:
    """Serve what the workers keep in `directory`, in a thread, until the block ends. It closes the listener."""
    server = _Server(listener, directory)
    # A daemon: whatever a client does, the process ends when its main thread does.
    thread = Thread(target=server.run, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(STOP_SECONDS)


class _Server:
    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._body = b""
        self._made_at = -inf
        self._open: dict[asyncio.StreamWriter, None] = {}  # the oldest first

    def run(self) -> None:
        """Serve until `stop`."""
        # The main thread handles signals, and waits for them: the kernel must not wake this thread instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """Let `run` return."""
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=MAX_HEAD, backlog=AT_ONCE)
        self._listener.listen(WAITING)
        try:
            await self._stopped.wait()
        finally:
            server.close()
            for writer in self._open:
                _abort(writer)
            await asyncio.sleep(0)  # for the transports, which close at the loop's next turn

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            _abort(oldest)
        self._open[writer] = None
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, asyncio.LimitOverrunError):  # a client that left, was too slow, or sent too much
            _abort(writer)
        finally:
            self._open.pop(writer, None)

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        if rest.partition(b" ")[0].partition(b"?")[0] != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND, f"The metrics are at {PATH}.\n".encode())
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"Ask with GET.\n", "Allow: GET, HEAD")
        try:
            body = self._rendered()
        except Exception as fault:  # noqa: BLE001  # a directory that somebody emptied must not end the plane
            log.error("the metrics cannot be read", **frames(fault))
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, b"The metrics cannot be read. The log says why.\n")
        answer = _response(HTTPStatus.OK, body, content_type=CONTENT_TYPE_LATEST)
        return answer.removesuffix(body) if method == b"HEAD" else answer

    def _rendered(self) -> bytes:
        if monotonic() - self._made_at > FRESH:
            self._body = render_workers(self._directory)
            self._made_at = monotonic()
        return self._body


def _abort(writer: asyncio.StreamWriter) -> None:
    with suppress(AttributeError):  # what asyncio raises if the connection ended a moment ago
        writer.transport.abort()


def _response(status: HTTPStatus, body: bytes, *headers: str, content_type: str = TEXT) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
