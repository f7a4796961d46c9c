"""The connections of a worker, as the kernel sees them: how many there are, and what has become of their clients.

The server does not show its connections, so they are found among the open files of the process. Only Linux says more
than their number.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic

Peer = tuple[str, int]
"""The address and the port of a client, as the connection has them."""

_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_INFO_SIZE = 148
"""Bytes of `struct tcp_info` up to the last that is read. Linux has them since 4.6."""

_CLOSED_BY_PEER = frozenset({7, 8})
"""`TCP_CLOSE`, after a reset, and `TCP_CLOSE_WAIT`. The server notices neither while it does not read."""

_NOTHING = bytes(4)

AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: when the connection is closed, what the other side did not take is thrown away."""


@dataclass(slots=True)
class _Known:
    """A connection. `acked` is how many bytes its client has taken, and `since` when there was a reason to wait.

    `has_longer` says whether the longer limit holds for it.
    """

    peer: Peer
    acked: bytes
    since: float
    has_longer: bool


class Connections:
    """The connections to a local port that this process has open.

    A client may take nothing of what was sent to it for `read_timeout` seconds, or for `longer_timeout` if the plane
    asks for that. The kernel has a time limit for that, TCP_USER_TIMEOUT, but it also ends connections whose clients
    take a little now and then.
    """

    def __init__(self, port: int, read_timeout: float, longer_timeout: float) -> None:
        self._port = port
        self._read_timeout = read_timeout
        self._longer_timeout = longer_timeout
        self._known: dict[int, _Known] = {}

    def look(self, longer: Collection[Peer] = ()) -> tuple[int, set[Peer]]:
        """Return how many are open, and the clients that have closed their side of one, or whose connection has ended.

        End those whose clients take nothing, or do not answer any more. The connections of the clients in `longer` have
        the longer limit from now on. Call it at least once in some seconds.
        """
        try:
            descriptors = [int(entry) for entry in os.listdir("/dev/fd")]
        except OSError:
            return 0, set()  # a machine without this directory
        count, left, before = 0, set[Peer](), self._known
        self._known = {}
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # not a socket, or closed by now
                connection = socket.socket(fileno=descriptor)
                try:
                    if self._is_ours(connection):
                        count += 1
                        self._examine(connection, before.get(descriptor), left, longer)
                finally:
                    connection.detach()  # it belongs to the server
        gone = {known.peer for known in before.values()} - {known.peer for known in self._known.values()}
        return count, left | gone

    def _is_ours(self, connection: socket.socket) -> bool:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        is_listener = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return connection.getsockname()[1] == self._port and not is_listener

    def _examine(
        self, connection: socket.socket, known: _Known | None, left: set[Peer], longer: Collection[Peer]
    ) -> None:
        if _TCP_INFO is None:
            return
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
        if len(info) < _INFO_SIZE:
            return
        peer = _peer_of(connection) or (None if known is None else known.peer)
        if peer is None:
            return
        if info[0] in _CLOSED_BY_PEER:
            left.add(peer)
        now, acked = monotonic(), info[120:128]
        is_waiting = info[24:28] != _NOTHING or info[144:148] != _NOTHING  # unacknowledged, or not sent yet
        if known is None or known.peer != peer:
            known = _Known(peer, acked, now, has_longer=False)
        elif known.acked != acked or not is_waiting:
            known.acked, known.since = acked, now
        known.has_longer = known.has_longer or peer in longer
        self._known[connection.fileno()] = known
        if now - known.since >= (self._longer_timeout if known.has_longer else self._read_timeout):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            connection.shutdown(socket.SHUT_RDWR)


def _peer_of(connection: socket.socket) -> Peer | None:
    """Return the client, or None after a reset: then the kernel does not say any more who it was."""
    try:
        address, port = connection.getpeername()[:2]
    except OSError:
        return None
    return address, port
