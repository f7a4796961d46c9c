"""`keyman.http.connections`: connections are counted, and clients that take nothing or have left are found."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from keyman.http.connections import Connections
from tests.support.waiting import until

MUCH = b"x" * 16_000_000
"""More than the buffers between two sides hold."""


LONGER = 600.0
"""Seconds: a test would not see the end."""


def count(port: int) -> int:
    return Connections(port, 30, 30).look()[0]


def test_connections_to_the_port_are_counted_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port = listener.getsockname()[1]
        assert count(port) == 0, "the listener is not a connection"
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        accepted = [listener.accept()[0] for _ in clients]
        elsewhere = socket.create_connection(other.getsockname())
        theirs = other.accept()[0]
        assert count(port) == 3
        accepted.pop().close()
        until(lambda: count(port) == 2, "the end of one")
        for connection in (*clients, *accepted, elsewhere, theirs):
            connection.close()
        assert count(port) == 0


def test_counting_leaves_every_file_open() -> None:
    with pair() as (client, accepted, connections):
        for _ in range(3):
            connections.look()
        client.sendall(b"still here")
        assert accepted.recv(20) == b"still here"


Pair = tuple[socket.socket, socket.socket, Connections]


@contextmanager
def pair(family: socket.AddressFamily = socket.AF_INET, read_timeout: float = 30) -> Iterator[Pair]:
    """The client's and the server's side of a connection, and the connections to its port."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family) as listener, socket.socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # as on a network
        client.settimeout(20)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.setblocking(False)
            yield client, accepted, Connections(listener.getsockname()[1], read_timeout, LONGER)


def is_over(accepted: socket.socket) -> bool:
    """Whether the server notices the end of this connection when it writes next."""
    try:
        accepted.send(b"x")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


def _read_all(client: socket.socket) -> None:
    while client.recv(65536):
        pass


def test_a_client_that_takes_nothing_is_ended() -> None:
    with pair(read_timeout=0.5) as (client, accepted, connections):
        accepted.send(MUCH)

        def ended() -> bool:
            connections.look()
            return is_over(accepted)

        assert not ended()
        until(ended, "the end of the connection")
        accepted.close()
        with pytest.raises(ConnectionResetError):  # what it did not take is thrown away
            _read_all(client)


def test_a_client_that_may_take_nothing_for_longer_is_not_ended_with_the_others() -> None:
    """Whatever it did before on the same connection, and also after its request has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        port = listener.getsockname()[1]
        connections = Connections(port, 0.5, LONGER)
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        accepted = [stack.enter_context(listener.accept()[0]) for _ in clients]
        of = {connection.getpeername(): connection for connection in accepted}
        first, late, other = (of[client.getsockname()] for client in clients)
        for connection in accepted:
            connection.setblocking(False)
            connection.send(MUCH)
        assert connections.look({first.getpeername()})[0] == 3
        connections.look({late.getpeername()})

        def ended() -> bool:
            connections.look()
            return is_over(other)

        until(ended, "the end of the connection")
        assert not is_over(first)
        assert not is_over(late)


def test_a_new_connection_in_the_place_of_one_with_the_longer_limit_does_not_have_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        connections = Connections(listener.getsockname()[1], 0.5, LONGER)
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(2)]
        place, other = (stack.enter_context(listener.accept()[0]) for _ in clients)
        connections.look({place.getpeername()})
        os.dup2(other.fileno(), place.fileno())  # as if one had ended, and its number was used for the next
        other.close()
        place.setblocking(False)
        place.send(MUCH)

        def ended() -> bool:
            connections.look()
            return is_over(place)

        until(ended, "the end of the connection")


def test_a_client_that_takes_a_little_now_and_then_is_not_ended() -> None:
    """The time limit of the kernel, TCP_USER_TIMEOUT, would end it."""
    with pair(read_timeout=1) as (client, accepted, connections):
        ends_at = time.monotonic() + 5
        while time.monotonic() < ends_at:
            with suppress(BlockingIOError):
                accepted.send(MUCH)
            assert client.recv(65536)
            connections.look()
            time.sleep(0.3)
        assert not is_over(accepted)


def test_a_client_to_which_nothing_was_sent_is_not_ended() -> None:
    with pair(read_timeout=0.2) as (client, accepted, connections):
        accepted.send(b"all of it")
        assert client.recv(100) == b"all of it"
        for _ in range(3):
            connections.look()
            time.sleep(0.2)
        assert not is_over(accepted)


def test_a_client_whose_connection_the_server_has_closed_is_found_once() -> None:
    with pair() as (client, accepted, connections):
        address = client.getsockname()
        connections.look()
        accepted.close()
        assert connections.look() == (0, {address})
        assert connections.look() == (0, set())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("is_reset", [True, False])
def test_a_client_that_leaves_is_found_although_nothing_is_read(family: socket.AddressFamily, is_reset: bool) -> None:
    with pair(family) as (client, _accepted, connections):
        client.sendall(b"a part of a body that nobody reads")
        address = client.getsockname()[:2]
        assert connections.look() == (1, set())
        if is_reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        until(lambda: connections.look()[1] == {address}, "the client that left")
