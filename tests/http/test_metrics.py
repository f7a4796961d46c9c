"""`keyman.http.metrics`: the small server for metrics, and clients that would like to keep others from it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest

from keyman.config.metrics import DEFAULTS, Address, Listen
from keyman.errors import ConfigurationError
from keyman.http import metrics
from keyman.http.metrics import MAX_CONNECTIONS, open_listener, served
from tests.support.http import free_port
from tests.support.waiting import PATIENCE, until

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def opened(wanted: Listen) -> socket.socket:
    listener = open_listener(wanted, "management", 8000)
    assert listener is not None
    return listener


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a server for the counts of workers in `tmp_path`."""
    listener = opened(Address("127.0.0.1", 0))
    number: int = listener.getsockname()[1]
    with served(listener, tmp_path):
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def received(connection: socket.socket) -> bytes:
    """What arrives until the other end closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of an answer, after which the connection is closed."""
    with connect(port) as connection:
        connection.sendall(request)
        head, _, body = received(connection).partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    return int(first.split()[1]), dict(field.lower().split(": ", 1) for field in fields), body


# --- requests


def test_a_request_for_metrics_is_answered_and_its_connection_closed(port: int) -> None:
    for request in (GET, GET.replace(b"1.1", b"1.0"), GET.replace(b"/metrics", b"/metrics?name[]=up")):
        status, headers, body = ask(port, request)
        assert (status, body) == (200, b"")  # no worker has counted anything
        assert headers["content-type"].startswith("text/plain; version=")
        assert (headers["connection"], headers["content-length"]) == ("close", "0")


def test_there_is_nothing_else(port: int) -> None:
    for path in (b"/", b"/metrics/", b"//metrics", b"/livez", b"/api/keys", b"*"):
        status, _, body = ask(port, GET.replace(b"/metrics", path))
        assert (status, body) == (404, b"The metrics are at /metrics.\n"), path
    for method in (b"POST", b"DELETE", b"OPTIONS", b"get"):
        status, headers, _ = ask(port, GET.replace(b"GET", method))
        assert (status, headers["allow"]) == (405, "get, head"), method


def test_what_is_no_http_gets_no_metrics(port: int) -> None:
    for request in (b"\r\n\r\n", b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET  /metrics\r\n\r\n", b" /metrics\r\n\r\n"):
        status, _, _ = ask(port, request)
        assert status in (404, 405), request


def test_a_head_that_is_too_large_gets_no_answer(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 2 * metrics.MAX_HEAD)
        assert received(connection) == b""
    assert ask(port, GET)[0] == 200


def test_counts_that_cannot_be_read_are_logged_and_the_server_goes_on(
    port: int, tmp_path: Path, logged: StringIO
) -> None:
    broken = tmp_path / "counter_1.db"
    broken.write_bytes((64).to_bytes(4, sys.byteorder) + b"\x7f" * 60)  # longer than it says
    status, _, body = ask(port, GET)
    assert (status, body) == (500, b"The metrics cannot be read. The log says why.\n")
    line = json.loads(logged.getvalue().splitlines()[-1])
    assert (line["event"], line["level"]) == ("the metrics cannot be read", "error")
    broken.write_bytes(b"")  # as for a moment in each worker that starts
    assert ask(port, GET)[0] == 200


def test_requests_at_once_are_answered_from_one_look_at_the_files(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []

    def look(directory: Path) -> bytes:
        looks.append(directory)
        return b"counts"

    monkeypatch.setattr(metrics, "render_workers", look)
    monkeypatch.setattr(metrics, "FRESH", PATIENCE)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(partial(ask, port), [GET] * 24))
    assert {(status, body) for status, _, body in answers} == {(200, b"counts")}
    assert len(looks) == 1
    monkeypatch.setattr(metrics, "FRESH", -1.0)
    ask(port, GET)
    assert len(looks) == 2


# --- clients that keep connections open


@contextmanager
def held(port: int, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent something and stay open."""
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(port)) for _ in range(count)]
        for connection in connections:
            connection.sendall(sent)
        yield connections


@pytest.mark.parametrize("sent", [b"", GET[:-2], b"GET /metrics HTTP/1.1\r\nX-Half: ", b"\x16\x03\x01\x02\0\x01\0"])
def test_the_oldest_of_too_many_connections_gives_way_to_one_that_asks(port: int, sent: bytes) -> None:
    with held(port, sent, MAX_CONNECTIONS + 5) as connections:
        assert ask(port, GET)[0] == 200
        assert received(connections[0]) == b""  # it was ended
        connections[-1].sendall(GET)  # the youngest was not
        assert received(connections[-1]) or sent


def test_a_client_that_sends_nothing_is_ended(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TIMEOUT", 0.1)
    with connect(port) as connection:
        assert received(connection) == b""


def test_a_client_that_reads_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    monkeypatch.setattr(metrics, "render_workers", lambda _directory: b"x" * 20_000_000)
    monkeypatch.setattr(metrics, "TIMEOUT", 0.1)
    listener = opened(Address("127.0.0.1", 0))
    server = metrics._Server(listener, tmp_path)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    with connect(listener.getsockname()[1]) as connection:
        until(lambda: server._open, "the connection")
        connection.sendall(GET)
        until(lambda: not server._open, "its end")
        assert len(received(connection)) < 20_000_000
    server.stop()
    thread.join()
    assert len(logged.getvalue().splitlines()) == 1  # where it listens


def test_it_ends_while_clients_are_connected(tmp_path: Path) -> None:
    listener = opened(Address("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    with ExitStack() as stack:
        with served(listener, tmp_path):
            (silent,) = stack.enter_context(held(port, b"", 1))
            assert ask(port, GET)[0] == 200
        assert received(silent) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(port)


# --- addresses


def test_without_metrics_nothing_listens() -> None:
    assert open_listener("off", "management", 8000) is None


def test_a_default_address_that_is_taken_is_warned_of(monkeypatch: pytest.MonkeyPatch, logged: StringIO) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address("127.0.0.1", other.getsockname()[1])
        monkeypatch.setitem(DEFAULTS, "resolver", taken)
        assert open_listener(None, "resolver", 8000) is None
    line = json.loads(logged.getvalue())
    assert (line["level"], line["address"]) == ("warning", str(taken))
    assert "KEYMAN_METRICS_LISTEN" in line["remedy"]


def test_the_planes_own_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setitem(DEFAULTS, "gateway", Address("127.0.0.1", port))
    assert open_listener(None, "gateway", port) is None
    with pytest.raises(ConfigurationError, match="in use"):
        open_listener(Address("127.0.0.1", port), "gateway", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7", "nowhere.invalid", "x" * 64 + ".example"])
def test_an_address_of_another_machine_is_refused_without_repeating_it(host: str) -> None:
    with pytest.raises(ConfigurationError, match="KEYMAN_METRICS_LISTEN is not an address of this machine") as raised:
        open_listener(Address(host, 0), "management", 8000)
    assert host not in str(raised.value)
