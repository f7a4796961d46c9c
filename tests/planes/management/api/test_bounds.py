"""What a stranger may send is bounded, and the work grows no faster than its length."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from keyman.http.received import MAX_HEADER_BYTES, MAX_HEADERS, MAX_PARAMETERS
from tests.planes.management.api.harness import ApiPlane, problem

pytestmark = pytest.mark.anyio

MOST_SECONDS = 0.5
"""Of the processor for one request: ten times what the slowest of them takes. Quadratic work on 32 KiB takes 2 to 5."""

ROOM = 30 * 1024
"""What a single header may have beside the others."""


async def test_a_request_has_at_most_100_header_fields(sqlite_plane: ApiPlane) -> None:
    fields = [(b"x-%d" % number, b"") for number in range(MAX_HEADERS - 1)]  # the harness adds Host
    assert (await sqlite_plane.wire("GET", b"/livez", fields)).status_code == 200
    for more in ([(b"x-more", b"")], [(b"x-0", b"")], [(b"x-more", b"")] * 90_000):
        problem(await sqlite_plane.wire("GET", b"/livez", [*fields, *more], documented=False), "headers-too-large")


async def test_headers_and_address_have_at_most_32_kib(sqlite_plane: ApiPlane) -> None:
    target, host = b"/livez", (b"host", b"127.0.0.1:8000")
    left = MAX_HEADER_BYTES - len(target) - len(b"".join(host)) - len(b"x-filler")
    assert (await sqlite_plane.wire("GET", target, [host, (b"x-filler", b"x" * left)])).status_code == 200
    for headers in ([host, (b"x-filler", b"x" * (left + 1))], [host, (b"x" * 20_000, b"y" * 20_000)]):
        problem(await sqlite_plane.wire("GET", target, headers, documented=False), "headers-too-large")
    for long in (b"/" + b"x" * MAX_HEADER_BYTES, b"/livez?" + b"x" * MAX_HEADER_BYTES):
        problem(await sqlite_plane.wire("GET", long, documented=False), "headers-too-large")


async def test_headers_that_are_too_large_are_refused_before_the_caller_is_known(sqlite_plane: ApiPlane) -> None:
    """Otherwise a stranger could make the parsers of cookies and languages work on them."""
    headers = [(b"accept", b"text/html"), (b"cookie", b"keyman_session=" + b"\\" * MAX_HEADER_BYTES)]
    answer = await sqlite_plane.wire("GET", b"/settings/keys", headers, documented=False)
    assert answer.headers["content-type"] == "application/problem+json"
    problem(answer, "headers-too-large")


async def test_a_query_has_at_most_100_parameters(sqlite_plane: ApiPlane) -> None:
    query = b"&".join(b"done=" for _ in range(MAX_PARAMETERS))
    assert (await sqlite_plane.wire("GET", b"/sign-in?" + query)).status_code == 200
    problem(await sqlite_plane.wire("GET", b"/sign-in?" + query + b"&done=", documented=False), "invalid-request")


def of_32_kib(piece: bytes) -> bytes:
    return (piece * (ROOM // len(piece) + 1))[:ROOM]


HEADERS: dict[str, Callable[[], list[tuple[bytes, bytes]]]] = {
    "a quoted cookie": lambda: [(b"cookie", b'keyman_session="' + of_32_kib(b"\\") + b'"')],
    "octal escapes in a cookie": lambda: [(b"cookie", b'keyman_session="' + of_32_kib(b"\\101") + b'"')],
    "escaped quotes in a cookie": lambda: [(b"cookie", b'keyman_session="' + of_32_kib(b'\\"') + b'"')],
    "many cookies": lambda: [(b"cookie", of_32_kib(b"a=b;"))],
    "one cookie many times": lambda: [(b"cookie", of_32_kib(b"keyman_session=;"))],
    "cookies in 90 lines": lambda: [(b"cookie", b"a=b; " * 60)] * 90,
    "one header in 90 lines": lambda: [(b"x-forwarded-for", b"10.0.0.1," * 35)] * 90,
    "forwarded addresses": lambda: [(b"x-forwarded-for", of_32_kib(b"10.0.0.1,"))],
    "one long address": lambda: [(b"x-forwarded-for", of_32_kib(b":"))],
    "an IPv6 address of many groups": lambda: [(b"x-forwarded-for", of_32_kib(b"a:"))],
    "a User-Agent of repetitions": lambda: [(b"user-agent", of_32_kib(b"Android Mozilla/5.0 (Linux; "))],
    "a User-Agent of spaces": lambda: [(b"user-agent", of_32_kib(b" "))],
    "languages": lambda: [(b"accept-language", of_32_kib(b"de;q=0.1,")), (b"accept", b"text/html")],
    "one weight of many digits": lambda: [(b"accept-language", b"de;q=" + of_32_kib(b"9")), (b"accept", b"text/html")],
    "media types": lambda: [(b"accept", of_32_kib(b"text/html;q=0,"))],
    "parameters of a media type": lambda: [(b"content-type", b"application/json;" + of_32_kib(b"charset=utf-8;"))],
    "a bearer token": lambda: [(b"authorization", b"Bearer " + of_32_kib(b" "))],
    "a token of many parts": lambda: [(b"authorization", b"Bearer " + of_32_kib(b"a."))],
    "ETags": lambda: [(b"if-match", of_32_kib(b'"a",'))],
    "an ETag of quotes": lambda: [(b"if-match", of_32_kib(b'"'))],
    "weak ETags": lambda: [(b"if-match", of_32_kib(b"W/"))],
    "an idempotency key": lambda: [(b"idempotency-key", of_32_kib(b"a"))],
    "an origin": lambda: [(b"origin", of_32_kib(b"://"))],
    "a referer": lambda: [(b"referer", b"http://" + of_32_kib(b"/settings/")), (b"accept", b"text/html")],
    "encodings": lambda: [(b"accept-encoding", of_32_kib(b"gzip;q=0,"))],
}


@pytest.mark.parametrize("name", HEADERS)
async def test_no_header_of_32_kib_takes_long(sqlite_plane: ApiPlane, name: str) -> None:
    headers = HEADERS[name]()
    assert sum(len(field) + len(value) for field, value in headers) > ROOM // 2
    body = b'{"email": "nobody@example.com"}'
    targets = [("GET", b"/sign-in"), ("GET", b"/api/auth/me"), ("GET", b"/settings/keys"), ("POST", b"/api/auth/login")]
    for method, target in targets:
        await _in_time(sqlite_plane, method, target, headers, body if method == "POST" else b"")


async def test_no_header_of_a_signed_in_user_takes_long(sqlite_plane: ApiPlane) -> None:
    user = await sqlite_plane.user()
    cookie = user.cookies["keyman_session"].encode()
    for name in ("ETags", "an ETag of quotes", "weak ETags", "an idempotency key", "parameters of a media type"):
        headers = [(b"cookie", b"keyman_session=" + cookie), *HEADERS[name]()]
        for method, target in (("PATCH", b"/api/keys/1"), ("DELETE", b"/api/keys/1"), ("POST", b"/api/keys")):
            await _in_time(sqlite_plane, method, target, headers, b'{"name": "x"}')


@pytest.mark.parametrize("piece", [b"/", b"a/", b"%2f", b"%ff", b"//settings", b"../", b";"], ids=repr)
async def test_no_path_of_32_kib_takes_long(sqlite_plane: ApiPlane, piece: bytes) -> None:
    for target in (b"/" + of_32_kib(piece), b"/api/keys/" + of_32_kib(piece), b"/problems/" + of_32_kib(piece)):
        await _in_time(sqlite_plane, "GET", target, [(b"accept", b"text/html")], b"")


@pytest.mark.parametrize("piece", [b"a=b&", b"&", b"%", b"%ff", b"cursor=a", b"+", b"9"], ids=repr)
async def test_no_query_of_32_kib_takes_long(sqlite_plane: ApiPlane, piece: bytes) -> None:
    for target in (b"/api/keys?limit=", b"/sign-in?done=", b"/settings/keys?cursor=", b"/livez?"):
        await _in_time(sqlite_plane, "GET", target + of_32_kib(piece), [(b"accept", b"text/html")], b"")


BODIES = {
    "nested lists": b"[" * 65_000,
    "nested objects": b'{"a":' * 13_000,
    "an object of many members": b"{" + b",".join(b'"%d":1' % number for number in range(6_000)) + b"}",
    "one member many times": b"{" + b'"email":"a",' * 5_000 + b'"email":"a"}',
    "a number of many digits": b'{"email":' + b"9" * 65_000 + b"}",
    "a fraction of many digits": b'{"email":0.' + b"1" * 65_000 + b"}",
    "an exponent": b'{"email":1e' + b"9" * 65_000 + b"}",
    "half characters": b'{"email":"' + b"\\ud800" * 10_000 + b'"}',
    "an address of many dots": b'{"email":"a@' + b"a." * 32_000 + b'a","password":"' + b"a" * 20 + b'"}',
    "an address of many at signs": b'{"email":"' + b"@" * 65_000 + b'","password":"aaaaaaaaaaaaaaa"}',
    "a password of combining characters": b'{"email":"a@example.com","password":"a' + b"\xcc\x88" * 32_000 + b'"}',
    "an address of combining characters": b'{"email":"a' + b"\xcc\x88\xcc\xa3" * 16_000 + b'@example.com"}',
    "spaces": b" " * 65_000,
    "bytes that are no text": b"\xff" * 65_000,
}


@pytest.mark.parametrize("name", BODIES)
async def test_no_body_of_64_kib_takes_long(sqlite_plane: ApiPlane, name: str) -> None:
    headers = [(b"content-type", b"application/json")]
    for target in (b"/api/auth/login", b"/api/auth/signup"):
        await _in_time(sqlite_plane, "POST", target, headers, BODIES[name])


@pytest.mark.parametrize("piece", [b"a=b&", b"&", b"%", b"email=a&", b"+"], ids=repr)
async def test_no_form_of_64_kib_takes_long(sqlite_plane: ApiPlane, piece: bytes) -> None:
    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"text/html")]
    await _in_time(sqlite_plane, "POST", b"/sign-in", headers, of_32_kib(piece) * 2)


async def _in_time(
    plane: ApiPlane, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    start = time.process_time()
    answer = await plane.wire(method, target, headers, body, documented=False)
    seconds = time.process_time() - start
    assert answer.status_code < 500
    assert seconds < MOST_SECONDS, f"{method} took {seconds:.1f} s of the processor"
