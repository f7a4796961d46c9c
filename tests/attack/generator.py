"""Makes hostile requests for every route of a plane, which it reads from the plane's own OpenAPI document."""

from __future__ import annotations

import json
import random
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

HOST = "127.0.0.1"

SECRET_FIELDS = re.compile(r"key$|password|token|secret|value", re.IGNORECASE)
"""The names of fields whose content no answer may ever repeat."""

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


@dataclass
class Known:
    """What the attacker has: credentials, and ids of rows that are theirs and other people's."""

    tokens: Sequence[str]
    sessions: Sequence[str]
    ids: Sequence[int]
    cookie: str = "keyman_session"


class Attempt(NamedTuple):
    """One request, as bytes. An answer never repeats `secret`, and an error that is no page does not repeat `plain`."""

    kind: str
    raw: bytes
    secret: str
    plain: str
    is_head: bool = False
    is_well_formed: bool = True


@dataclass
class _Draft:
    """A request that is still being made."""

    method: str
    path: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    length: str | None = None

    def raw(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}", *(f"{n}: {v}" for n, v in self.headers)]
        length = str(len(self.body)) if self.length is None else self.length
        if self.body or self.method not in ("GET", "HEAD"):
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + self.body


class Generator:
    """Draws attempts. The same seed, document and knowledge draw the same ones."""

    def __init__(self, document: Mapping[str, Any], known: Known, seed: int) -> None:
        self.known = known
        self._chance = random.Random(seed)  # noqa: S311  # a test, no cryptography
        self._document = document
        self._routes = [
            (method.upper(), path, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if method in ("get", "post", "put", "patch", "delete")
        ]
        self._number = 0

    def draw(self) -> Attempt:
        """Return the next attempt."""
        self._number += 1
        mark = f"{self._number:x}q{self._chance.getrandbits(48):012x}"
        self._secret, self._plain = f"c4n4ry{mark}", f"pl41n{mark}"
        kind = self._chance.choices(KINDS, WEIGHTS)[0]
        method, path, operation = self._route()
        draft = _Draft(method, self._path(path, operation), self._credentials(), *self._body(operation))
        if draft.body:
            draft.headers.append(("Content-Type", self._content_type()))
        raw, is_well_formed = kind(self, draft)
        name = kind.__name__.strip("_")
        return Attempt(name, raw, self._secret, self._plain, raw.startswith(b"HEAD "), is_well_formed)

    # --- parts of a request

    def _route(self) -> tuple[str, str, Mapping[str, Any]]:
        while True:
            method, path, operation = self._chance.choice(self._routes)
            # A hash of a password takes a tenth of a second, on purpose: a few of them are enough.
            if "/auth/" not in path or self._chance.random() < 0.02:
                return method, path, operation

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        return schema

    def _text(self) -> str:
        nasty = self._chance.choice(NASTY)
        return self._chance.choice((nasty, self._plain, f"{self._plain}{nasty}"))

    def _path(self, path: str, operation: Mapping[str, Any]) -> str:
        path = re.sub(r"\{[^}]+\}", lambda _: self._path_part(), path)
        query = [
            f"{quote(parameter['name'])}={quote(self._text().encode('utf-8', 'surrogatepass'))}"
            for parameter in operation.get("parameters", ())
            if parameter.get("in") == "query" and self._chance.random() < 0.4
        ]
        return path + (f"?{'&'.join(query)}" if query else "")

    def _path_part(self) -> str:
        if self._chance.random() < 0.6:
            return str(self._chance.choice(self.known.ids))
        if self._chance.random() < 0.3:
            return str(self._chance.randint(-5, 2**65))
        return quote(self._text().encode("utf-8", "surrogatepass"), safe="")

    def _credentials(self) -> list[tuple[str, str]]:
        token = self._chance.choice(self.known.tokens)
        choices: list[list[tuple[str, str]]] = [
            [],
            [("Authorization", f"Bearer km_{self._secret}")],
            [("Authorization", f"Bearer {self._secret}")],
            [("Authorization", f"Basic {b64encode(self._secret.encode()).decode()}")],
            [("Authorization", f"bEARER  {token}")],
            [("Cookie", f"{self.known.cookie}={self._secret}")],
            [("Authorization", f"Bearer {token}x"), ("Authorization", f"Bearer {token}")],
            [("Authorization", f"Bearer eyJhbGciOiJub25lIn0.e30.{self._secret}")],
        ]
        if self.known.sessions:
            session = self._chance.choice(self.known.sessions)
            choices.append([("Cookie", f"{self.known.cookie}={session}"), ("Sec-Fetch-Site", "same-origin")])
            choices.append([("Cookie", f"{self.known.cookie}={session}"), ("Origin", "https://evil.example")])
        if self._chance.random() < 0.6:
            return [("Authorization", f"Bearer {token}")]
        return self._chance.choice(choices)

    def _content_type(self) -> str:
        if self._chance.random() < 0.9:
            return "application/json"
        return self._chance.choice(
            ("text/plain", "application/json; charset=utf-7", "multipart/form-data", "", "x" * 200)
        )

    def _body(self, operation: Mapping[str, Any]) -> tuple[bytes, str | None]:
        content = operation.get("requestBody", {}).get("content", {})
        schema = next((self._resolved(kind["schema"]) for kind in content.values() if "schema" in kind), None)
        if schema is None:
            return (self._secret.encode() if self._chance.random() < 0.1 else b""), None
        fields = {name: self._resolved(kind) for name, kind in schema.get("properties", {}).items()}
        if self._chance.random() < 0.3:  # a valid one, so that the attack gets past the checks of the body
            valid = {
                name: self._valid(name, kind) for name, kind in fields.items() if name in schema.get("required", ())
            }
            return json.dumps(valid).encode(), None
        values = {name: self._value(name, kind) for name, kind in fields.items()}
        kept = {name: value for name, value in values.items() if self._chance.random() < 0.8}
        if self._chance.random() < 0.1:
            kept[self._secret] = self._secret
        return json.dumps(kept).encode("utf-8", "surrogatepass"), None

    def _valid(self, name: str, schema: Mapping[str, Any]) -> object:
        if SECRET_FIELDS.search(name):
            return f"sk-{self._secret}"
        if name.endswith("_id"):
            return self._chance.choice(self.known.ids)
        return self._chance.choice(schema.get("examples") or schema.get("enum") or ["OPENAI"])

    def _value(self, name: str, schema: Mapping[str, Any]) -> object:
        examples = schema.get("examples") or [schema.get("example", "x")]
        if SECRET_FIELDS.search(name):
            nasty = self._chance.choice(NASTY)
            return self._chance.choice((f"sk-{self._secret}", f"{self._secret}{nasty}", f"{nasty}{self._secret}"))
        if name.endswith("_id") and self._chance.random() < 0.7:
            return self._chance.choice(self.known.ids)
        if self._chance.random() < 0.6:
            return self._chance.choice(examples)
        return self._chance.choice((*NASTY_VALUES, self._text()))

    # --- kinds of attempts: each returns the bytes, and whether they are one whole HTTP request

    def _plausible(self, draft: _Draft) -> tuple[bytes, bool]:
        return draft.raw(), True

    def _damaged_body(self, draft: _Draft) -> tuple[bytes, bool]:
        damages: tuple[Callable[[bytes], bytes], ...] = (
            lambda body: body[: self._chance.randint(0, len(body))],
            lambda body: b"[" * 20_000,
            lambda body: b'{"a":' * 5_000,
            lambda body: body + body,
            lambda body: b"\xef\xbb\xbf" + body,
            lambda body: body.decode("utf-8", "replace").encode("utf-16"),
            lambda body: bytes(self._chance.getrandbits(8) for _ in range(200)),
            lambda body: b'{"x":"' + self._secret.encode() + b"a" * self._chance.choice((1_000, 70_000)) + b'"}',
            lambda body: b'{"name":"\\ud800' + self._secret.encode() + b'"}',
            lambda body: b"1" * 10_000,
        )
        draft.body = self._chance.choice(damages)(draft.body)
        return draft.raw(), True

    def _strange_headers(self, draft: _Draft) -> tuple[bytes, bool]:
        name = self._chance.choice(
            (
                "X-Forwarded-For",
                "Cookie",
                "If-Match",
                "Idempotency-Key",
                "Accept",
                "Accept-Language",
                "Range",
                "User-Agent",
            )
        )
        value = self._chance.choice(
            (*NASTY, "1.2.3.4, " * 500, '"' * 300, "W/" * 100, "a=b; " * 800, "é", self._secret)
        )
        value = re.sub(r"[\x00\r\n]", "?", value).encode("utf-8", "replace").decode()
        draft.headers += [(name, value)] * self._chance.choice((1, 1, 1, 2, 50))
        return draft.raw(), True

    def _many_headers(self, draft: _Draft) -> tuple[bytes, bool]:
        count, length = self._chance.choice(((90, 10), (101, 1), (3_000, 1), (5, 9_000), (200, 200)))
        name = self._chance.choice(("X-{}", "X-Same", "Cookie", "X-Forwarded-For"))
        draft.headers += [(name.format(number), "v" * length) for number in range(count)]
        return draft.raw(), False

    def _strange_target(self, draft: _Draft) -> tuple[bytes, bool]:
        draft.path = self._chance.choice(
            (
                "*",
                "//evil.example/" + self._secret,
                "http://evil.example/api/keys",
                draft.path.replace("/", "//"),
                draft.path + "/../../metrics",
                draft.path + "%00",
                draft.path + "%2e%2e%2f" * 10,
                draft.path + "?" + "a=1&" * 2_000,
                draft.path + "?cursor=" + self._secret,
                "/" + "a" * 9_000,
                "/%ff%fe" + self._secret,
                draft.path + ";jsessionid=" + self._secret,
                draft.path.upper(),
            )
        )
        return draft.raw(), True

    def _strange_method(self, draft: _Draft) -> tuple[bytes, bool]:
        draft.method = self._chance.choice(
            ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 50, draft.method + "X")
        )
        return draft.raw(), draft.method in ("HEAD", "OPTIONS")

    def _broken_http(self, draft: _Draft) -> tuple[bytes, bool]:
        raw, secret = draft.raw(), self._secret.encode()
        damages = (
            raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1),
            raw.replace(b"HTTP/1.1", b"HTTP/9.9", 1),
            raw.replace(b"HTTP/1.1\r\n", b"\r\n", 1),
            raw.replace(b"Host: ", b"Host : ", 1),
            raw.replace(b"Host: 127.0.0.1\r\n", b"", 1),
            raw.replace(b"Host: 127.0.0.1\r\n", b"Host: a\r\nHost: b\r\n", 1),
            raw.replace(b"\r\n", b"\n"),
            raw.replace(
                b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + secret, 1
            ),
            raw.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + secret, 1),
            raw.replace(b"\r\n\r\n", b"\r\nContent-Length: -1\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\nContent-Length: 99999999999\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\nX: a\0b\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\n folded: " + secret + b"\r\n\r\n", 1),
            raw[: self._chance.randint(1, len(raw))],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            bytes(self._chance.getrandbits(8) for _ in range(300)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),
            b"\r\n" * 500,
        )
        return self._chance.choice(damages), False


KINDS = (
    Generator._plausible,
    Generator._damaged_body,
    Generator._strange_headers,
    Generator._many_headers,
    Generator._strange_target,
    Generator._strange_method,
    Generator._broken_http,
)
WEIGHTS = (50, 15, 12, 4, 8, 4, 7)
"""How many of a hundred attempts are of each kind."""
