"""Texts and framings that attackers try."""

from __future__ import annotations

NASTY = (
    "",
    " ",
    "\0",
    "\r\nSet-Cookie: a=b",
    "'; DROP TABLE users; --",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "%s%n%x{0.__class__}",
    "../../../../etc/passwd",
    "<script>alert(1)</script>",
    "\u202eevil\u2066",
    "\u200b\u2060\ufeff",
    "e\u0301" * 200,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ud800",
    "\uffff",
    "-1",
    "1e400",
    "NaN",
    "true",
    "null",
    "[]",
    "9" * 400,
    "a" * 5_000,
    "sk-" + "a" * 60,
    "https://user:pw@example.com/\u2028",
)

NASTY_VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    2**64 + 1,
    10**400,
    1e308,
    0.1,
    [],
    {},
    [[[[]]]],
    {"a": {"b": [1, {"c": None}]}},
    *NASTY,
)

FORWARDED = (
    "203.0.113.7",
    "203.0.113.7:51234, 127.0.0.1:8080",
    "[2001:db8::1]:443, ::ffff:127.0.0.1",
    "not an address, 127.0.0.1",
    "127.0.0.1, " * 300,
    "fe80::1%" + "x" * 500,
    ",,,,",
    "203.0.113.7:" + "9" * 2_000,
    "[" * 3_000,
)
"""Values of `X-Forwarded-For`."""

TAGS = ("*", "W/" * 100, '"' * 300, '""', 'W/"x"-gzip', ", ".join(['"x"'] * 500), "x" * 5_000)
"""Values of `If-Match`."""

SAME_SITE: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (("Sec-Fetch-Site", "same-origin"),),
    (("Sec-Fetch-Site", "none"),),
)
"""What a browser says about a request of keyman's own pages, or a script says."""

CROSS_SITE: tuple[tuple[tuple[str, str], ...], ...] = (
    (("Sec-Fetch-Site", "cross-site"),),
    (("Sec-Fetch-Site", "same-site"), ("Origin", "https://neighbour.example.com")),
    (("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")),
    (("Sec-Fetch-Site", ""),),
    (("Origin", "https://evil.example"),),
    (("Origin", "null"),),
    (("Origin", ""),),
    (("Origin", "http://127.0.0.1.evil.example"),),
    (("Origin", "https://evil.example"), ("Origin", "http://127.0.0.1")),
)
"""The same for a page of another site, and what an attacker would try to get past the rule."""

CHUNK = b"5\r\nhello\r\n0\r\n\r\n"

FRAMINGS: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
    (b"Content-Length: 5, 6\r\n", b"hello"),
    (b"Content-Length: +5\r\n", b"hello"),
    (b"Content-Length: -1\r\n", b"hello"),
    (b"Content-Length: 0x5\r\n", b"hello"),
    (b"Content-Length: 5 5\r\n", b"hello"),
    (b"Content-Length: 99999999999999999999999\r\n", b"hello"),
    (b"Content-Length : 5\r\n", b"hello"),
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNK),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNK),
    (b"Transfer-Encoding: xchunked\r\n", CHUNK),
    (b"Transfer-Encoding: chunked, identity\r\n", CHUNK),
    (b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", b"hello"),
    (b"Transfer-Encoding:\x0bchunked\r\n", CHUNK),
    (b"Transfer-Encoding\t: chunked\r\n", CHUNK),
    (b"Transfer-Encoding\r\n : chunked\r\n", CHUNK),
    (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffff\r\nhello"),
    (b"Transfer-Encoding: chunked\r\n", b"-1\r\nhello"),
    (b"Transfer-Encoding: chunked\r\n", b"5;" + b"x" * 70_000 + b"\r\nhello\r\n"),
    (b"Transfer-Encoding: chunked\r\n", b"5\nhello\n0\n\n"),
    (b"X: a\rContent-Length: 5\r\n", b"hello"),
)
"""Header lines and a body whose end a proxy and a server may see at different places. A request follows them."""

LINES = (
    b"X: a\r\n folded\r\n",
    b"X: a\0b\r\n",
    b"X\0: a\r\n",
    b"X y: a\r\n",
    b": a\r\n",
    b"X: a\rb\r\n",
    b"X: a\nb\r\n",
    b"X: " + b"v" * 70_000 + b"\r\n",
    b"X" * 70_000 + b": v\r\n",
    b"X: v\r\n" * 3_000,
)
"""Header lines that break rules."""

FOLLOWING = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
