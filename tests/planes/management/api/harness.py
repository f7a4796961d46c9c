"""Clients for the tests of the API. They check every answer against docs/reference/api.md and the OpenAPI document.

`ApiPlane` is a Plane whose clients come from addresses of their own, so that many tests share one plane without sharing
its throttle. It checks each answer: the headers, the shape of a problem, and that the OpenAPI document has
the operation's status and body.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from urllib.parse import unquote

import httpx
import jsonschema_rs
from sqlalchemy import Table, func, select
from sqlalchemy.engine import URL

from keyman import migrations
from keyman.config.vault import VaultSettings
from keyman.identity.passwords import Passwords
from keyman.planes.management.web.static import KEEP
from keyman.storage import driver
from keyman.storage.transactions import Database
from tests.support.planes import ORIGIN, PASSWORD, Plane, plane_at
from tests.support.rows import AnyRow

Json = dict[str, Any]

OPENAI_KEY = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
"""A value that is valid for OPENAI."""

KEY_FIELDS = {
    "id",
    "service",
    "name",
    "last_4_chars",
    "status",
    "created_at",
    "updated_at",
    "expires_at",
    "last_used_at",
    "last_used_by",
    "settings",
    "check",
    "default",
}
TOKEN_FIELDS = {"id", "name", "scopes", "hint", "created_at", "expires_at", "last_used_at"}
ACCOUNT_FIELDS = {"id", "email", "created_at"}

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
"""RFC 3339 in UTC with a Z, as docs/reference/api.md says of every time."""

STATUSES = {
    "invalid-request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "conflict": 409,
    "undecryptable": 409,
    "precondition-failed": 412,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "idempotency-mismatch": 422,
    "rate-limited": 429,
    "headers-too-large": 431,
    "vault-unavailable": 503,
    "database-unavailable": 503,
    "issuer-unavailable": 503,
    "overloaded": 503,
    "gateway-unavailable": 503,
    "path-not-allowed": 403,
    "provider-unreachable": 502,
    "provider-answer-refused": 502,
    "provider-redirected": 502,
    "provider-timeout": 504,
    "internal": 500,
}
"""The table of errors in docs/reference/api.md, copied by hand. The code's own table is tested against it."""

OBSERVED: Counter[tuple[str, int]] = Counter()
"""Every (operation, status) that the tests of this process have seen."""


class Document:
    """The OpenAPI document as something to hold answers against."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self.operations: dict[str, Json] = {}
        self._routes: list[tuple[re.Pattern[str], str, str]] = []
        self._validators: dict[tuple[str, str, str], jsonschema_rs.Validator] = {}
        for path, item in document["paths"].items():
            pattern = re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))
            for method, operation in item.items():
                self.operations[operation["operationId"]] = {**operation, "method": method.upper(), "path": path}
                self._routes.append((pattern, method.upper(), operation["operationId"]))

    def find(self, method: str, path: str) -> str | None:
        """The operationId of a request, None where the document has none for it.

        A path without parameters is none of those that a path with parameters describes.
        """
        wanted = "GET" if method == "HEAD" else method
        if path in self.document["paths"]:
            item: Json = self.document["paths"][path]
            return next((one["operationId"] for name, one in item.items() if name.upper() == wanted), None)
        return next((name for pattern, m, name in self._routes if m == wanted and pattern.fullmatch(path)), None)

    def validator(self, schema: Json) -> jsonschema_rs.Validator:
        whole = {**schema, "components": self.document["components"]}
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)

    def check(self, method: str, path: str, answer: httpx.Response) -> None:
        """Raises AssertionError for an answer that the document does not tell of."""
        name = self.find(method, path)
        if name is None:
            return
        OBSERVED[name, answer.status_code] += 1
        responses = self.operations[name]["responses"]
        status = str(answer.status_code)
        assert status in responses, f"{name} answered {status}, which the document does not have: {answer.text}"
        if method == "HEAD" or answer.status_code == 204:
            return
        content = responses[status].get("content", {})
        media_type = answer.headers.get("content-type", "").partition(";")[0]
        assert media_type in content, f"{name} {status}: {media_type} is not in the document"
        if not media_type.endswith("json"):
            return
        key = (name, status, media_type)
        if key not in self._validators:
            self._validators[key] = self.validator(content[media_type]["schema"])
        self._validators[key].validate(answer.json())


class Watched(httpx.ASGITransport):
    """Checks each answer before the test sees it."""

    def __init__(self, plane: ApiPlane, address: str) -> None:
        super().__init__(plane.app, client=(address, 40000), raise_app_exceptions=False)
        self._plane = plane

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        await response.aread()
        root = self._plane.settings.root_path
        below = request.url.path.startswith(f"{root}/")  # the document has no other paths
        self._plane.check(request.method, request.url.path.removeprefix(root) if below else "/", response)
        return response


@dataclass(repr=False)
class ApiPlane(Plane):
    """A plane whose clients each have an address of their own, and whose answers are checked on the way."""

    document: Document | None = None
    database: Database = field(init=False)
    answers: list[httpx.Response] | None = None
    """Every answer, where somebody wants to look through them."""
    _addresses: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.database = Database(self.settings.database_url)

    @property
    def is_sqlite(self) -> bool:
        return self.database.is_sqlite

    def client(self, *, address: str | None = None, **arguments: Any) -> httpx.AsyncClient:
        address = address or str(ipaddress.IPv4Address("10.0.0.0") + next(self._addresses))
        client = httpx.AsyncClient(transport=Watched(self, address), base_url=ORIGIN, **arguments)
        self._clients.append(client)
        return client

    def bearer(self, token: str) -> httpx.AsyncClient:
        return self.client(headers={"Authorization": f"Bearer {token}"})

    def with_cookie(self, cookie: str | None) -> httpx.AsyncClient:
        """A client that sends this session cookie, whatever the answers set."""
        return self.client(headers={"Cookie": f"keyman_session={cookie}"} if cookie is not None else {})

    async def wire(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | Sequence[bytes] = b"",
        *,
        address: str = "10.255.255.254",
        documented: bool = True,
        cut: bool = False,
    ) -> httpx.Response:
        """One request as a server hands it on, with bytes that httpx would not send; checked like any other.

        `documented` is False for what breaks HTTP itself, which the document of an API does not speak of; with `cut`
        the client goes away before the end of the body.
        """
        raw_path, _, query = target.partition(b"?")
        chunks = [body] if isinstance(body, bytes) else list(body)
        # As granian does: the path is decoded, and what is not UTF-8 in it is replaced.
        path = unquote(raw_path.decode("latin-1"), encoding="utf-8", errors="replace")
        sent = list(headers)
        if not any(name.lower() == b"host" for name, _ in sent):
            sent.append((b"host", b"127.0.0.1:8000"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": [(name.lower(), value) for name, value in sent],
            "client": (address, 40000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        inbox = [
            {"type": "http.request", "body": chunk, "more_body": cut or n < len(chunks)}
            for n, chunk in enumerate(chunks, 1)
        ]
        outbox: list[Any] = []

        async def receive() -> Any:
            return inbox.pop(0) if inbox else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            outbox.append(message)

        await self.app(scope, receive, send)
        start, *rest = outbox
        content = b"".join(message.get("body", b"") for message in rest)
        response = httpx.Response(start["status"], headers=start["headers"], content=content)
        self.check(method, path if documented else "/", response)
        return response

    def check(self, method: str, path: str, answer: httpx.Response) -> None:
        """What holds for every answer of keyman, whatever was asked."""
        if self.answers is not None:
            self.answers.append(answer)
        # Once each, and made here: a client's own would put its words into the log.
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"]), answer.headers
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        is_file = path.startswith("/static/") and answer.status_code == 200
        assert answer.headers["cache-control"] == (KEEP if is_file else "no-store")
        if method == "HEAD":
            assert answer.content == b""
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] in ("Bearer", 'Bearer error="invalid_token"')
        if answer.status_code == 405:
            assert answer.headers["allow"]
        if answer.status_code in (429, 503) and path != "/readyz":
            assert int(answer.headers["retry-after"]) > 0
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        if answer.status_code >= 400 and method != "HEAD" and path != "/readyz" and not is_page:
            problem(answer)
        if self.document is not None:
            self.document.check(method, path, answer)

    async def count(self, table: Table) -> int:
        async with self.database.read() as connection:
            counted: int = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            return counted

    async def rows(self, table: Table) -> Sequence[AnyRow]:
        async with self.database.read() as connection:
            return (await connection.execute(select(table).order_by(*table.primary_key.columns))).all()

    async def close(self) -> None:
        await super().close()
        await self.database.close()


@asynccontextmanager
async def api_plane_at(
    database: URL, vault: VaultSettings, passwords: Passwords | None = None, **settings: Any
) -> AsyncIterator[ApiPlane]:
    """Start a plane for API tests over a migrated database, with the document that it serves."""
    async with plane_at(database, vault, passwords, **settings) as running:
        plane = ApiPlane(running.app, running.settings)
        try:
            where = f"{running.settings.root_path}/docs/openapi.json"
            plane.document = Document((await plane.client().get(where)).json())
            yield plane
        finally:
            await plane.close()


@asynccontextmanager
async def fresh_plane_at(
    database: URL, vault: VaultSettings, passwords: Passwords | None = None, **settings: Any
) -> AsyncIterator[ApiPlane]:
    """The same over an empty database."""
    await migrations.upgrade(database)
    async with api_plane_at(database, vault, passwords, **settings) as plane:
        yield plane


def problem(answer: httpx.Response, slug: str | None = None, *fields: str) -> Json:
    """The body of a problem, whole and in shape; of this type and about these fields, where they are given."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: Json = answer.json()
    kind = body["type"].removeprefix("/problems/")
    assert body.keys() - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert body["status"] == answer.status_code == STATUSES[kind], body
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    for error in body.get("errors", ()):
        assert error.keys() == {"field", "message"}
        assert error["message"]
    assert "errors" not in body or body["errors"]
    if slug is not None:
        assert kind == slug, body
    if fields:
        assert sorted(error["field"] for error in body.get("errors", ())) == sorted(fields), body
    return body


def same_but_for_the_request_id(one: httpx.Response, other: httpx.Response) -> bool:
    """Whether two answers are the same bytes, headers included, apart from the request's id."""

    def essence(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
        request_id = answer.headers["x-request-id"]
        headers = sorted((name, value) for name, value in answer.headers.multi_items() if value != request_id)
        return answer.status_code, headers, answer.content.replace(request_id.encode(), b"")

    return essence(one) == essence(other)


@contextmanager
def statements() -> Iterator[list[str]]:
    """What keyman sends to its database while the block runs, transactions included, by their first words."""
    asked: list[str] = []

    def listening(name: str, word: str | None) -> Any:
        call = getattr(driver, name)

        async def listen(connection: Any, *arguments: Any) -> Any:
            asked.append(word or " ".join(arguments[0].text.split()[:3]))
            return await call(connection, *arguments)

        return mock.patch.object(driver, name, listen)

    words = {"fetch": None, "execute": None, "begin": "BEGIN", "commit": "COMMIT"}
    with ExitStack() as stack:
        for name, word in words.items():
            stack.enter_context(listening(name, word))
        yield asked


def state_of(plane: Plane) -> Any:
    """What the parts of a plane share; for tests that look behind its answers."""
    return application_of(plane).state


def application_of(plane: Plane) -> Any:
    """The Litestar application behind the layers of a plane."""
    layer: Any = plane.app
    while not hasattr(layer, "state"):
        layer = layer._app
    return layer


def cookie_of(client: httpx.AsyncClient) -> str:
    """The session cookie that a client holds."""
    return str(client.cookies["keyman_session"])


def set_cookie(answer: httpx.Response) -> tuple[str, dict[str, str]]:
    """The value of the session cookie that an answer sets, and its attributes in lower case."""
    header, *_ = answer.headers.get_list("set-cookie")
    pair, *attributes = (part.strip() for part in header.split(";"))
    name, _, value = pair.partition("=")
    assert name in ("keyman_session", "__Host-keyman_session")
    return value, {k.lower(): v for k, _, v in (attribute.partition("=") for attribute in attributes)}


async def store(client: httpx.AsyncClient, **fields: Any) -> Json:
    """A new key of a caller, as the answer shows it."""
    answer = await client.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY, **fields})
    assert answer.status_code == 201, answer.text
    created: Json = answer.json()
    return created


async def log_in(plane: ApiPlane, email: str, password: str = PASSWORD) -> httpx.AsyncClient:
    """A client with a new session of an account that exists."""
    client = plane.client()
    answer = await client.post("/api/auth/login", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    return client


async def email_of(client: httpx.AsyncClient) -> str:
    return str((await client.get("/api/auth/me")).json()["email"])


async def pages(client: httpx.AsyncClient, target: str) -> AsyncIterator[list[Json]]:
    """Every page of a listing, found only by the Link headers."""
    while True:
        answer = await client.get(target)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        following = next_link(answer)
        if following is None:
            return
        target = following


def next_link(answer: httpx.Response) -> str | None:
    """The target of `rel="next"` (RFC 8288)."""
    link = answer.headers.get("link")
    if link is None:
        return None
    match = re.fullmatch(r'<([^<>"\s]*)>; rel="next"', link)
    assert match, link
    return match[1]


def as_json(value: object) -> bytes:
    """JSON with surrogates and all, as a client that escapes everything writes it."""
    return json.dumps(value).encode()


def headers_of(client: httpx.AsyncClient, extra: Mapping[str, str] | None = None) -> list[tuple[bytes, bytes]]:
    """The headers that prove who a client is, and JSON's content type, for `wire`."""
    headers = [(b"content-type", b"application/json")]
    if "authorization" in client.headers:
        headers.append((b"authorization", client.headers["authorization"].encode()))
    if "keyman_session" in client.cookies:
        headers.append((b"cookie", f"keyman_session={cookie_of(client)}".encode()))
    return headers + [(name.lower().encode(), value.encode("latin-1")) for name, value in (extra or {}).items()]


def in_days(days: float) -> str:
    """A time from now on, as the API writes it."""
    return (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")
