"""Bytes on a socket to the real server that no client library would send. It answers or closes the connection.

What the server refuses as invalid HTTP does not reach keyman. What does is answered like any other request.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from tests.planes.management.api.served import served
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

LULL = 0.4
"""Seconds of silence after which a request is ended that the server takes for half of one; more would do no harm."""

VALUE = b"kNrYsk-hq2v9mXbT0c7eUKwN4Rd1234"


@pytest.fixture(scope="module")
def wire(provisioned: Vault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path]]:
    directory = tmp_path_factory.mktemp("wire")
    database: URL = make_url(f"sqlite+aiosqlite:///{directory}/keyman.db")
    asyncio.run(migrations.upgrade(database))
    with served(database, provisioned.settings, directory / "log") as url:
        address = httpx.URL(url)
        assert address.port is not None
        yield address.host, address.port, directory / "log"


def speak(server: tuple[str, int, Path], sent: bytes) -> bytes:
    """Everything that comes back until the server closes. The client closes its side once the server waits for more."""
    host, port, _ = server
    received = b""
    with socket.create_connection((host, port), PATIENCE) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        connection.settimeout(LULL)
        while True:
            try:
                data = connection.recv(65536)
            except TimeoutError:
                connection.settimeout(PATIENCE)
                connection.shutdown(socket.SHUT_WR)
                continue
            if not data:
                break
            received += data
    return received


def head(method: bytes, target: bytes, *headers: bytes) -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: 127.0.0.1", *headers, b"Connection: close", b"", b""]
    return b"\r\n".join(lines)


JSON = b"Content-Type: application/json"
REQUESTS = {
    "nothing": b"",
    "a line break": b"\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 64,
    "HTTP/0.9": b"GET /api/keys\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TRACE": head(b"TRACE", b"/api/keys"),
    "TRACE with a proof": head(b"TRACE", b"/api/keys", b"Authorization: Bearer " + VALUE),
    "CONNECT": head(b"CONNECT", b"127.0.0.1:22"),
    "an unknown method": head(b"BREW", b"/api/keys"),
    "a method in lower case": head(b"get", b"/api/keys"),
    "a method with a colon": head(b"G:ET", b"/api/keys"),
    "a whole URL": head(b"GET", b"http://evil.example/api/keys"),
    "an asterisk": head(b"OPTIONS", b"*"),
    "a path without a slash": head(b"GET", b"api/keys"),
    "bytes beyond ASCII in a path": head(b"GET", b"/api/keys/\xff\xfe"),
    "UTF-8 in a path": head(b"GET", "/api/keys/ключ".encode()),
    "a percent sign alone": head(b"GET", b"/api/keys/%"),
    "half an escape": head(b"GET", b"/api/keys/%2"),
    "an escape that is none": head(b"GET", b"/api/keys/%zz"),
    "escaped bytes that are no UTF-8": head(b"GET", b"/api/keys/%ff%fe"),
    "an escaped NUL": head(b"GET", b"/static/%00"),
    "a NUL": head(b"GET", b"/api/\0keys"),
    "a space": head(b"GET", b"/api/keys /x"),
    "a path of 60,000 characters": head(b"GET", b"/" + b"a" * 60_000),
    "a query of 60,000 characters": head(b"GET", b"/api/keys?q=" + b"a" * 60_000),
    "a fragment": head(b"GET", b"/api/keys#" + VALUE),
    "dots": head(b"GET", b"/static/../../../../etc/passwd"),
    "escaped dots": head(b"GET", b"/static/%2e%2e/%2e%2e/etc/passwd"),
    "a header beyond ASCII": head(b"GET", b"/api/keys", b"X-Name: \xff\xfe"),
    "a NUL in a header": head(b"GET", b"/api/keys", b"X-Name: a\0b"),
    "a header without a name": head(b"GET", b"/api/keys", b": x"),
    "a header without a colon": head(b"GET", b"/api/keys", b"Authorization"),
    "a folded header": head(b"GET", b"/api/keys", b"X-Name: a\r\n b"),
    "a carriage return in a header": head(b"GET", b"/api/keys", b"X-Name: a\rX-Evil: b"),
    "a header of 60,000 characters": head(b"GET", b"/api/keys", b"X-Name: " + b"a" * 60_000),
    "500 headers": head(b"GET", b"/api/keys", *(b"X-%d: 1" % n for n in range(500))),
    "two hosts": head(b"GET", b"/api/keys", b"Host: evil.example"),
    "two proofs": head(b"GET", b"/api/keys", b"Authorization: Bearer x", b"Authorization: Bearer y"),
    "no host": b"GET /api/keys HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two lengths": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 2", b"Content-Length: 3") + b"{}x",
    "a negative length": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: -1") + b"{}",
    "a length that is no number": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: x") + b"{}",
    "a length that is too great": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 50") + b"{}",
    "a length beyond the limit": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 99999999") + b"{}",
    "a length and chunks": head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 5", b"Transfer-Encoding: chunked")
    + b"2\r\n{}\r\n0\r\n\r\n",
    "chunks": head(b"POST", b"/api/auth/login", JSON, b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n",
    "chunks that are none": head(b"POST", b"/api/auth/login", JSON, b"Transfer-Encoding: chunked") + b"zz\r\n{}",
    "chunks without an end": head(b"POST", b"/api/auth/login", JSON, b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n",
    "chunks beyond the limit": head(b"POST", b"/api/auth/login", JSON, b"Transfer-Encoding: chunked")
    + b"10000\r\n%s\r\n" % (b"x" * 65536) * 3
    + b"0\r\n\r\n",
    "an upgrade": head(
        b"GET",
        b"/api/keys",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ),
    "an expectation": head(b"POST", b"/api/auth/login", JSON, b"Expect: 200-maybe", b"Content-Length: 2") + b"{}",
    "two requests in one": head(b"GET", b"/livez").replace(b"close", b"keep-alive") + head(b"GET", b"/livez"),
}


@pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS)
def test_any_bytes_get_an_answer_below_500_or_none(wire: tuple[str, int, Path], sent: bytes) -> None:
    received = speak(wire, sent)
    statuses = re.findall(rb"^HTTP/1\.[01] (\d{3})", received, re.MULTILINE)
    assert all(int(status) < 500 for status in statuses), received
    assert b"evil" not in received.lower()
    assert VALUE not in received
    if b"application/problem+json" in received:
        assert re.search(rb"\nx-request-id: [0-9a-f]{32}\r", received)
    # And the next one is served.
    assert speak(wire, head(b"GET", b"/livez")).startswith(b"HTTP/1.1 200")
    assert "unhandled" not in wire[2].read_text()


def test_http_2_is_not_spoken(wire: tuple[str, int, Path]) -> None:
    """In HTTP/2, 90 KB can be 90,000 headers, and the server has no time limit for a silent connection."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    assert re.match(rb"(HTTP/1\.1 400 |$)", speak(wire, preface)), "HTTP/2 begins with a SETTINGS frame"


def test_more_than_100_headers_and_more_than_32_kib_get_431(wire: tuple[str, int, Path]) -> None:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(101))
    for headers in (many, b"a: 1\r\n" * 5_000, b"x: " + b"y" * 33_000 + b"\r\n", b"x: " + b"y" * 1_000_000 + b"\r\n"):
        received = speak(wire, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + headers + b"Connection: close\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 431 ")
    fits = b"x: " + b"y" * 32_000 + b"\r\n"
    assert speak(wire, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + fits + b"Connection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


def test_a_request_in_the_body_of_another_is_not_carried_out(wire: tuple[str, int, Path]) -> None:
    """Request smuggling: where the end of a body is in doubt, what follows is not taken for a request."""
    hidden = b'{"email": "smuggled@example.com", "password": "%s"}' % PASSWORD.encode()
    length = b"Content-Length: %d" % len(hidden)
    inner = head(b"POST", b"/api/auth/signup", JSON, length) + hidden
    for outer in (
        head(b"POST", b"/api/auth/login", JSON, b"Content-Length: %d" % len(inner)),
        head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 0", b"Content-Length: %d" % len(inner)),
        head(b"POST", b"/api/auth/login", JSON, b"Transfer-Encoding: x", b"Content-Length: %d" % len(inner)),
    ):
        speak(wire, outer.replace(b"Connection: close\r\n", b"") + inner)
    host, port, _ = wire
    login = {"email": "smuggled@example.com", "password": PASSWORD}
    assert (
        httpx.post(f"http://{host}:{port}/api/auth/login", json=login, timeout=PATIENCE, verify=NO_TLS).status_code
        == 401
    )


def test_a_body_that_does_not_come_is_answered_and_the_door_closed(wire: tuple[str, int, Path]) -> None:
    host, port, _ = wire
    outer = head(b"POST", b"/api/auth/login", JSON, b"Content-Length: 57").replace(b"Connection: close\r\n", b"")
    with ExitStack() as stack:
        waiting = []
        for sent in (b"", b'{"email": '):
            connection = stack.enter_context(socket.create_connection((host, port), PATIENCE))
            connection.sendall(outer + sent)
            waiting.append(connection)
        for connection in waiting:
            received = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023  # used up before the next
            assert received.startswith(b"HTTP/1.1 400 ")
            assert b'"message":"The body did not arrive in time."' in received


def test_an_answer_over_http_has_one_of_each_header(wire: tuple[str, int, Path]) -> None:
    for target in (b"/livez", b"/nothing", b"/api/keys", b"/static/page.css", b"/docs"):
        received = speak(wire, head(b"GET", target))
        names = [line.partition(b":")[0].lower() for line in received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
        assert len(names) == len(set(names)), names
        assert {b"x-request-id", b"content-security-policy", b"x-content-type-options", b"cache-control"} <= set(names)
