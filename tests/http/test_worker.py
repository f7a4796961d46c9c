"""`keyman.http.worker`: connections are counted. The drain is in tests/cli/test_drain.py."""

from __future__ import annotations

import socket

from keyman.http.worker import count_connections
from tests.support.waiting import until


def test_connections_to_the_port_are_counted_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port = listener.getsockname()[1]
        assert count_connections(port) == 0, "the listener is not a connection"
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        accepted = [listener.accept()[0] for _ in clients]
        elsewhere = socket.create_connection(other.getsockname())
        theirs = other.accept()[0]
        assert count_connections(port) == 3
        accepted.pop().close()
        until(lambda: count_connections(port) == 2, "the end of one")
        for connection in (*clients, *accepted, elsewhere, theirs):
            connection.close()
        assert count_connections(port) == 0


def test_counting_leaves_every_file_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        for _ in range(3):
            count_connections(listener.getsockname()[1])
        client.sendall(b"still here")
        assert accepted.recv(20) == b"still here"
        client.close()
        accepted.close()


def test_a_client_may_read_nothing_only_for_so_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        count_connections(listener.getsockname()[1])
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        client.close()
        accepted.close()
