"""Makes hostile requests for every route of a plane: those of its OpenAPI document, and its pages."""

from __future__ import annotations

import json
import random
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from tests.attack.payloads import (
    CROSS_SITE,
    FOLLOWING,
    FORWARDED,
    FRAMINGS,
    HTTP2_PREFACE,
    LINES,
    NASTY,
    NASTY_VALUES,
    SAME_SITE,
    TAGS,
    TLS_HELLO,
)

HOST = "127.0.0.1"

VICTIM = b"v1ct1m"
"""A mark in everything that belongs to an account and an application that are not the attacker's."""

SECRET_FIELDS = re.compile(r"key$|password|token|secret|value", re.IGNORECASE)
"""The names of fields whose content no answer may ever repeat."""

FORM_FIELDS = (
    *("account", "api_key", "attempt", "back", "current_password", "email", "etag", "expires_at", "name"),
    *("new_password", "password", "paused", "q", "scopes", "service", "settings-AZURE_OPENAI-endpoint"),
    *("shown_expires_at", "shown_name", "shown_settings", "view"),
)
"""The fields of the forms of all pages."""

UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Known:
    """What the attacker has: credentials, what an answer contains, and what belongs to other people.

    `root` is the root path, and `origins` are those whose pages may read answers.
    """

    tokens: Sequence[str]
    sessions: Sequence[str]
    ids: Sequence[int]
    etags: Sequence[str] = ('"0"',)
    cursors: Sequence[str] = ("AAAAAAAAAAo",)
    cookie: str = "keyman_session"
    root: str = ""
    origins: Sequence[str] = ()


class Attempt(NamedTuple):
    """One request, as bytes.

    An answer never repeats `secret`, and an error that is no page does not repeat `plain`. `is_whole` says that it is
    one whole HTTP request, after which the connection can be used again. After one that `is_endless` nothing follows,
    not even the end of the connection. One that `must_fail` is of another site. The answer to one that `is_shared` may
    be for another origin.
    """

    kind: str
    raw: bytes
    secret: str
    plain: str
    is_head: bool = False
    is_whole: bool = True
    is_endless: bool = False
    must_fail: bool = False
    is_shared: bool = False


@dataclass
class _Draft:
    """A request that is still being made. `framing` replaces the `Content-Length`."""

    method: str
    path: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    framing: bytes | None = None
    is_whole: bool = True
    is_endless: bool = False
    is_foreign: bool = False
    has_token: bool = False

    def raw(self) -> bytes:
        framing = self.framing
        if framing is None:
            has_length = self.body or self.method not in ("GET", "HEAD")
            framing = b"Content-Length: %d\r\n" % len(self.body) if has_length else b""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}", *(f"{n}: {v}" for n, v in self.headers), ""]
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + framing + b"\r\n" + self.body


class _Route(NamedTuple):
    method: str
    path: str
    operation: Mapping[str, Any]
    is_page: bool = False


def _weight(route: _Route) -> float:
    """Return how often a route is drawn, compared with a route that reads."""
    if route.path.endswith(("/login", "/signup", "/password", "/sign-in", "/sign-up", "/settings/account")):
        # A hash of a password takes a tenth of a second, on purpose: a few of them are enough.
        return 0.02 if route.method in UNSAFE else 1
    if route.path.endswith(("/logout", "/sign-out", "/end", "/revoke")) or route.path.startswith("/api/tokens/"):
        return 0.05  # they take away what the attacker has
    if route.path == "/v1/resolve":
        return 6
    return 0.3 if route.method in UNSAFE else 1


class Generator:
    """Draws attempts. The same seed, document and knowledge draw the same ones.

    `pages` are the methods and paths of pages.
    """

    def __init__(
        self, document: Mapping[str, Any], known: Known, seed: int, pages: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.known = known
        self._chance = random.Random(seed)  # noqa: S311  # a test, no cryptography
        self._document = document
        self._routes = [
            _Route(method.upper(), path, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if method in ("get", "post", "put", "patch", "delete")
        ]
        self._pages = [_Route(method, path, {}, is_page=True) for method, path in pages]
        self._route_weights = list(accumulate(map(_weight, self._routes)))
        self._page_weights = list(accumulate(map(_weight, self._pages)))
        self._fields = {
            id(route.operation): self._fields_of(route.operation) for route in self._routes if route.method in UNSAFE
        }
        kinds = [(kind, weight) for kind, weight in KINDS if kind is not _PAGE or pages]
        self._kinds = [kind for kind, _ in kinds]
        self._shared = [[origin] for origin in known.origins]
        self._kind_weights = list(accumulate(weight for _, weight in kinds))
        self._number = 0

    def draw(self) -> Attempt:
        """Return the next attempt."""
        self._number += 1
        mark = f"{self._number:x}q{self._chance.getrandbits(48):012x}"
        self._secret, self._plain = f"c4n4ry{mark}", f"pl41n{mark}"
        (kind,) = self._chance.choices(self._kinds, cum_weights=self._kind_weights)
        draft = self._draft(self._page() if kind is _PAGE else self._route())
        raw = kind(self, draft) or draft.raw()
        method = raw.partition(b" ")[0].decode("latin-1")
        is_foreign = draft.is_foreign and draft.is_whole and method in UNSAFE
        return Attempt(
            kind.__name__.strip("_"),
            raw,
            self._secret,
            self._plain,
            is_head=method == "HEAD",
            is_whole=draft.is_whole,
            is_endless=draft.is_endless,
            must_fail=is_foreign and not draft.has_token,
            is_shared=[value for name, value in draft.headers if name == "Origin"] in self._shared,
        )

    # --- parts of a request

    def _draft(self, route: _Route) -> _Draft:
        draft = _Draft(route.method, self._path(route.path, route.operation))
        draft.headers, draft.has_token = self._credentials()
        if route.is_page:
            draft.headers.append(("Accept", "text/html"))
            if route.method == "POST":
                draft.body = self._form()
                draft.headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        elif route.method in UNSAFE:
            draft.body = self._body(self._fields[id(route.operation)])
            if draft.body:
                draft.headers.append(("Content-Type", self._content_type()))
        return draft

    def _route(self) -> _Route:
        (route,) = self._chance.choices(self._routes, cum_weights=self._route_weights)
        return route

    def _page(self) -> _Route:
        (route,) = self._chance.choices(self._pages, cum_weights=self._page_weights)
        return route

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in schema:
            schema = self._document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        return schema

    def _text(self) -> str:
        nasty = self._chance.choice(NASTY)
        return self._chance.choice((nasty, self._plain, f"{self._plain}{nasty}"))

    def _path(self, path: str, operation: Mapping[str, Any]) -> str:
        if "{" in path:
            path = re.sub(r"\{[^}]+\}", lambda _: self._path_part(), path)
        query = [
            f"{quote(parameter['name'])}={quote(self._text().encode('utf-8', 'surrogatepass'))}"
            for parameter in operation.get("parameters", ())
            if parameter.get("in") == "query" and self._chance.random() < 0.4
        ]
        return self.known.root + path + (f"?{'&'.join(query)}" if query else "")

    def _path_part(self) -> str:
        if self._chance.random() < 0.6:
            return str(self._chance.choice(self.known.ids))
        if self._chance.random() < 0.3:
            return str(self._chance.randint(-5, 2**65))
        return quote(self._text().encode("utf-8", "surrogatepass"), safe="")

    def _credentials(self) -> tuple[list[tuple[str, str]], bool]:
        """Return headers, and whether they have a token that could be valid."""
        token, chance = self._chance.choice(self.known.tokens), self._chance.random()
        if chance < 0.45:
            return [("Authorization", f"Bearer {token}")], True
        if self.known.sessions and chance < 0.7:
            return [("Cookie", f"{self.known.cookie}={self._chance.choice(self.known.sessions)}")], False
        choices: tuple[tuple[list[tuple[str, str]], bool], ...] = (
            ([], False),
            ([("Authorization", f"bEARER  {token}")], True),
            ([("Authorization", f"Bearer km_{self._secret}")], False),
            ([("Authorization", f"Bearer {self._secret}")], False),
            ([("Authorization", f"Basic {b64encode(self._secret.encode()).decode()}")], False),
            ([("Cookie", f"{self.known.cookie}={self._secret}")], False),
            ([("Authorization", f"Bearer {token}x"), ("Authorization", f"Bearer {token}")], False),
            ([("Authorization", f"Bearer eyJhbGciOiJub25lIn0.e30.{self._secret}")], False),
        )
        return self._chance.choice(choices)

    def _content_type(self) -> str:
        if self._chance.random() < 0.9:
            return "application/json"
        return self._chance.choice(
            ("text/plain", "application/json; charset=utf-7", "multipart/form-data", "", "x" * 200)
        )

    def _fields_of(self, operation: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Sequence[str]] | None:
        """Return the fields of the body with their schemas, and the names of those that are required."""
        content = operation.get("requestBody", {}).get("content", {})
        schema = next((self._resolved(kind["schema"]) for kind in content.values() if "schema" in kind), None)
        if schema is None:
            return None
        fields = {name: self._resolved(kind) for name, kind in schema.get("properties", {}).items()}
        return fields, schema.get("required", ())

    def _body(self, known: tuple[Mapping[str, Mapping[str, Any]], Sequence[str]] | None) -> bytes:
        if known is None:
            return self._secret.encode() if self._chance.random() < 0.1 else b""
        fields, required = known
        if self._chance.random() < 0.3:  # a valid one, so that the attack gets past the checks of the body
            return json.dumps({name: self._valid(name, fields[name]) for name in required}).encode()
        values = {name: self._value(name, kind) for name, kind in fields.items() if self._chance.random() < 0.8}
        if self._chance.random() < 0.1:
            values[self._secret] = self._secret
        return json.dumps(values).encode("utf-8", "surrogatepass")

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

    def _form(self) -> bytes:
        """Return the body of a form: a valid one for a new key, or with any fields."""
        if self._chance.random() < 0.2:
            valid = {"service": "OPENAI", "api_key": f"sk-{self._secret}", "name": "x", "paused": "true"}
            return urlencode(valid).encode()
        chosen = self._chance.sample(FORM_FIELDS, self._chance.randint(0, 12))
        fields = [(name, self._form_value(name)) for name in chosen]
        if self._chance.random() < 0.1:
            fields *= self._chance.choice((2, 10))
        return urlencode(fields, errors="surrogatepass").encode()

    def _form_value(self, name: str) -> str:
        if SECRET_FIELDS.search(name):
            return self._secret + self._chance.choice(NASTY)
        valid = {
            "account": str(self._chance.choice(self.known.ids)),
            "etag": self._chance.choice(self.known.etags),
            "expires_at": "2099-01-31",
            "paused": "true",
            "scopes": "keys:read",
            "service": "OPENAI",
            "view": "cursor=AAAAAAAAAAo&q=x",
        }
        return valid[name] if name in valid and self._chance.random() < 0.5 else self._text()

    # --- kinds of attempts: each changes the draft, or returns the bytes to send instead

    def _plausible(self, draft: _Draft) -> None:
        """Leave the request as it is."""

    def _page_or_form(self, draft: _Draft) -> None:
        self._of_a_site(draft)
        if self._chance.random() < 0.1:
            draft.headers.append(("HX-Request", "true"))
        if draft.body and self._chance.random() < 0.1:
            draft.body = self._chance.choice((b"%", b"a=%ff", b"&" * 500, b"a=1&" * 41, b"=" * 5_000, b"\xff\xfe"))

    def _of_a_site(self, draft: _Draft) -> None:
        draft.is_foreign = self._chance.random() < 0.4
        draft.headers += self._chance.choice(CROSS_SITE if draft.is_foreign else SAME_SITE)

    def _cross_site(self, draft: _Draft) -> None:
        self._of_a_site(draft)

    def _preflight(self, draft: _Draft) -> None:
        listed = self._chance.choice(self.known.origins or ("https://app.example.com",))
        origins = (
            listed,
            listed.upper(),
            f"{listed}.",
            f"{listed}:443",
            f"{listed}.evil.example",
            listed.replace("https", "http"),
            listed.replace("app", "evil-app"),
            f"{listed}, https://evil.example",
            f"{listed}/{self._plain}",
            "null",
            "*",
            f"https://{self._plain}.example",
        )
        draft.headers.append(("Origin", self._chance.choice(origins)))
        if self._chance.random() < 0.1:
            draft.headers.append(("Origin", listed))
        if self._chance.random() < 0.6:
            draft.method, draft.body = "OPTIONS", b""
            draft.headers.append(("Access-Control-Request-Method", self._chance.choice((*UNSAFE, "X" * 200))))
            draft.headers.append(("Access-Control-Request-Headers", f"authorization, {self._plain}"))

    def _cookies(self, draft: _Draft) -> None:
        session, name = self._chance.choice(self.known.sessions or (self._secret,)), self.known.cookie
        values = (
            f"{name}={session}; {name}={session}",
            f"{name}={self._secret}; {name}={session}",
            f'{name}="{session}"',
            f"{name}={session}{'a' * 8_000}",
            f"{name}=; {name}={session}",
            f"{name.upper()}={session}",
            f"keyman_session={session}; __Host-keyman_session={session}; __Secure-keyman_session={session}",
            f"$Version=1; {name}={session}; $Path=/",
            f" {name} = {session} ",
            f"{name}={session},{name}={session}",
            f"{name}\t={session}",
            "; ".join(f"c{number}={self._secret}" for number in range(300)),
            "=" * 3_000,
            ";" * 8_000,
            f'a="{name}={session}; {name}={session}"',
        )
        draft.headers = [(key, value) for key, value in draft.headers if key not in ("Cookie", "Authorization")]
        draft.has_token = False
        draft.headers += [("Cookie", self._chance.choice(values))] * self._chance.choice((1, 1, 2))

    def _conditions(self, draft: _Draft) -> None:
        choose = self._chance.choice
        etag, cursor = choose(self.known.etags), choose(self.known.cursors)
        tags = (etag, f"W/{etag}", f"{etag[:-1]}-gzip{etag[-1:]}", f"{etag[:3]}x{etag[4:]}", f"{etag}, *", *TAGS)
        draft.headers.append(("If-Match", choose(tags)))
        draft.headers.append(("Idempotency-Key", choose(("victim", "a", "x" * 255, "x" * 256, "\x7f"))))
        damaged = (cursor[:-1], f"{cursor[:4]}B{cursor[5:]}", cursor.swapcase(), f"{cursor}=", f"f{'_' * 9}8")
        asked = {"cursor": choose((cursor, *damaged)), "limit": choose((1, 200, 0, "1e2"))}
        draft.path += ("&" if "?" in draft.path else "?") + urlencode(asked)

    def _damaged_body(self, draft: _Draft) -> None:
        damages: tuple[Callable[[bytes], bytes], ...] = (
            lambda body: body[: self._chance.randint(0, len(body))],
            lambda body: b"[" * 20_000,
            lambda body: b'{"a":' * 5_000,
            lambda body: body + body,
            lambda body: b"\xef\xbb\xbf" + body,
            lambda body: body.decode("utf-8", "replace").encode("utf-16"),
            lambda body: self._chance.randbytes(200),
            lambda body: b'{"x":"' + self._secret.encode() + b"a" * self._chance.choice((1_000, 70_000)) + b'"}',
            lambda body: b'{"name":"\\ud800' + self._secret.encode() + b'"}',
            lambda body: b"1" * 10_000,
        )
        draft.body = self._chance.choice(damages)(draft.body)

    def _strange_headers(self, draft: _Draft) -> None:
        names = ("Cookie", "If-Match", "Idempotency-Key", "Accept", "Accept-Language", "Range", "User-Agent", "Referer")
        if self._chance.random() < 0.3:
            name, value = "X-Forwarded-For", self._chance.choice(FORWARDED)
        else:
            name = self._chance.choice(names)
            value = self._chance.choice((*NASTY, *TAGS, "a=b; " * 800, "é", self._secret))
        value = re.sub(r"[\x00\r\n]", "?", value).encode("utf-8", "replace").decode()
        draft.headers += [(name, value)] * self._chance.choice((1, 1, 1, 2, 50))

    def _many_headers(self, draft: _Draft) -> None:
        count, length = self._chance.choice(((90, 10), (101, 1), (3_000, 1), (5, 9_000), (200, 200)))
        name = self._chance.choice(("X-{}", "X-Same", "Cookie", "X-Forwarded-For"))
        draft.headers += [(name.format(number), "v" * length) for number in range(count)]
        draft.is_whole = False  # the server may end the connection before it has read everything

    def _strange_target(self, draft: _Draft) -> None:
        root, path = self.known.root, draft.path.removeprefix(self.known.root)
        draft.path = self._chance.choice(
            (
                "*",
                "//evil.example/" + self._plain,
                f"http://evil.example{root}/api/keys",
                draft.path.replace("/", "//"),
                draft.path + "/../../metrics",
                draft.path + "%00",
                draft.path + "%2e%2e%2f" * 10,
                draft.path + "?" + "a=1&" * 2_000,
                draft.path + "?cursor=" + self._plain,
                "/" + "a" * 9_000,
                f"{root}/%ff%fe{self._plain}",
                draft.path + ";jsessionid=" + self._plain,
                draft.path.upper(),
                path,
                root + root + path,
                f"{root}x{path}",
                f"{root}%2f{path[1:]}",
                f"{root}/..{path}",
                f"/.{root}{path}",
                f"/livez/..{path}",
                f"/problems/{self._plain}",
            )
        )

    def _strange_method(self, draft: _Draft) -> None:
        draft.method = self._chance.choice(
            ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X" * 50, draft.method + "X")
        )
        draft.is_whole = draft.method in ("HEAD", "OPTIONS")

    def _smuggled(self, draft: _Draft) -> None:
        draft.framing, body = self._chance.choice(FRAMINGS)
        draft.method, draft.body = self._chance.choice(("GET", "POST")), body + FOLLOWING
        draft.is_whole = False

    def _strange_lines(self, draft: _Draft) -> None:
        lines = self._chance.choice(LINES)
        draft.framing = lines + (b"Content-Length: %d\r\n" % len(draft.body) if draft.body else b"")
        draft.is_whole = False

    def _broken_http(self, draft: _Draft) -> bytes:
        raw = draft.raw()
        draft.is_whole = False
        damages = (
            raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1),
            raw.replace(b"HTTP/1.1", b"HTTP/9.9", 1),
            raw.replace(b"HTTP/1.1\r\n", b"\r\n", 1),
            raw.replace(b"Host: ", b"Host : ", 1),
            raw.replace(b"Host: 127.0.0.1\r\n", b"", 1),
            raw.replace(b"Host: 127.0.0.1\r\n", b"Host: a\r\nHost: b\r\n", 1),
            raw.replace(b"\r\n", b"\n"),
            raw.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n", 1),
            raw.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 1),
            raw[: self._chance.randint(1, len(raw))],
            HTTP2_PREFACE,
            self._chance.randbytes(300),
            TLS_HELLO,
            b"\r\n" * 500,
        )
        return self._chance.choice(damages)

    def _endless(self, draft: _Draft) -> bytes:
        draft.is_whole, draft.is_endless = False, True
        if self._chance.random() < 0.5:
            raw = draft.raw()
            return raw[: self._chance.randint(0, raw.index(b"\r\n\r\n"))]
        draft.framing = self._chance.choice((b"Content-Length: 100000\r\n", b"Transfer-Encoding: chunked\r\n"))
        return draft.raw()


_PAGE = Generator._page_or_form

KINDS = (
    (Generator._plausible, 36.0),
    (_PAGE, 14.0),
    (Generator._damaged_body, 10.0),
    (Generator._strange_headers, 9.0),
    (Generator._cross_site, 6.0),
    (Generator._cookies, 5.0),
    (Generator._conditions, 5.0),
    (Generator._strange_target, 5.0),
    (Generator._preflight, 4.0),
    (Generator._strange_method, 2.0),
    (Generator._smuggled, 2.0),
    (Generator._many_headers, 0.5),
    (Generator._strange_lines, 0.5),
    (Generator._broken_http, 1.0),
    (Generator._endless, 0.02),
)
"""How many of a hundred attempts are of each kind."""
