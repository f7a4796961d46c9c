"""Canaries: a unique word in every place where a client can put one, and a search of every place where it could appear.

A secret (a key, a password, a token, a cookie, an idempotency key) is only in the one answer that hands it out. What
was refused is nowhere. A name or an address is only in its owner's answers and in the database.

Searched are: every answer with its headers, the log at DEBUG with what libraries write, standard output and error,
the metrics, all of the database (SQLite: the bytes of file and WAL; PostgreSQL: every row of every table, the files of
the database, its write-ahead log and its server's log). That server logs no statements, as production would: its log
may hold names of a row that broke a constraint (PostgreSQL prints it), so only secrets are looked for there.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from io import StringIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from argon2 import PasswordHasher
from sqlalchemy import text, update
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.identity import applications
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import Token
from keyman.keys.tables import api_keys
from keyman.migrations import tables
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName
from tests.planes.management.api.bodies import BODIES, LATER, Body
from tests.planes.management.api.harness import ApiPlane, api_plane_at, as_json, cookie_of, headers_of
from tests.planes.resolver.pair import resolver_at
from tests.support.database import PostgresServer, copied, postgres_absence, postgres_server
from tests.support.needs import quick_on, require
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio

NOWHERE: frozenset[str] = frozenset()
OWN_ANSWER = frozenset({"answers"})
OWN_DATA = frozenset({"answers", "database", "database files", "server log"})
"""Where a name or an e-mail address may be. The server's log is PostgreSQL's own, of rows that broke a constraint."""


@dataclass
class Canaries:
    """Words that were sent, and where each may be found."""

    allowed: dict[str, frozenset[str]] = field(default_factory=dict)

    def new(self, allowed: frozenset[str] = NOWHERE, form: str = "{}") -> str:
        """A word of only letters and digits: no encoding of a URL or of JSON hides it."""
        word = f"kNrY{secrets.token_hex(10)}"
        self.allowed[word] = allowed
        return form.format(word)

    def spoken(self, word: str, allowed: frozenset[str] = NOWHERE) -> None:
        """What keyman made and handed out."""
        self.allowed[word] = allowed

    def found(self, haystacks: dict[str, bytes]) -> list[tuple[str, str]]:
        """Every word where it must not be, also in part, in base64 and in hexadecimal, with what is around it."""
        windows = {form[n : n + SEEN]: word for word in self.allowed for form in _forms(word) for n in _offsets(form)}
        places = []
        for name, haystack in haystacks.items():
            hits: dict[str, int] = {}
            # Only where letters and digits stand in a row can a window be.
            for run in RUN.finditer(haystack):
                for at in range(run.start(), run.end() - SEEN + 1):
                    word = windows.get(haystack[at : at + SEEN])
                    if word is not None and name not in self.allowed[word]:
                        hits.setdefault(word, at)
            places += [(name, haystack[max(0, at - 150) : at + 100].decode(errors="replace")) for at in hits.values()]
        return places


SEEN = 12
"""Characters of a word in a row that count as found: a mask shows four."""

RUN = re.compile(rb"[0-9A-Za-z+/_-]{%d,}" % SEEN)


def _forms(word: str) -> list[bytes]:
    raw = word.encode()
    return [raw, *(base64.b64encode(b"\0" * n + raw)[4:-4] for n in range(3)), raw.hex().encode()]


def _offsets(form: bytes) -> range:
    return range(0, len(form) - SEEN + 1, 4)


@pytest.fixture(scope="module")
def quiet_postgres() -> Iterator[PostgresServer]:
    require("postgres", postgres_absence())
    with postgres_server(log_statements=False) as server:
        yield server


@dataclass
class Cage:
    """A plane, the words that were put into it, and all the places where to look for them."""

    plane: ApiPlane
    canaries: Canaries
    log: StringIO
    capture: pytest.CaptureFixture[str]
    server: PostgresServer | None
    addresses: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_sqlite(self) -> bool:
        return self.server is None

    async def haystacks(self) -> dict[str, bytes]:
        answers = self.plane.answers or []
        whole = [repr((answer.status_code, answer.headers.raw)).encode() + answer.content for answer in answers]
        metrics = (await self.plane.client().get("/metrics")).content
        printed = self.capture.readouterr()
        found = {
            "answers": b"\n".join(whole),
            "metrics": metrics,
            "log": self.log.getvalue().encode(),
            "standard output and error": (printed.out + printed.err).encode(),
        }
        assert len(found["answers"]) > 1000
        assert len(found["log"]) > 1000
        name = str(self.plane.settings.database_url.database)
        if self.server is None:
            # Read by another one while it is open: the WAL is still there, with all that was ever written to it.
            files = [Path(name + suffix) for suffix in ("", "-wal", "-shm")]
            return {**found, "database": b"".join(path.read_bytes() for path in files if path.exists())}
        self.server.execute("CHECKPOINT")
        dumps = (f'SELECT t::text FROM "{table}" t' for table in tables().tables)  # noqa: S608  # our own names
        rows = self.server.execute(" UNION ALL ".join(dumps), name)
        directory = self.server.log.parent / "data"
        oid = self.server.execute("SELECT oid FROM pg_database WHERE datname = current_database()", name)
        files = [*(directory / "base" / oid).iterdir(), *(directory / "pg_wal").glob("0*")]
        return {
            **found,
            "database": rows.encode(),
            "database files": b"".join(path.read_bytes() for path in files if path.is_file()),
            "server log": self.server.log.read_bytes(),
        }

    def address(self) -> str:
        """A new one each time, so that nothing is throttled."""
        number = next(self.addresses)
        return f"10.77.{number >> 8}.{number & 255}"

    async def send(
        self, method: str, target: str, headers: dict[str, str] | None = None, content: bytes = b"", **options: Any
    ) -> httpx.Response:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        return await self.plane.wire(method, target.encode(), sent, content, address=self.address(), **options)


@pytest.fixture(params=["sqlite", "postgresql"])
def caged_database(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[URL, PostgresServer | None]:
    if request.param == "sqlite":
        return copied(request.getfixturevalue("migrated_sqlite"), tmp_path / "keyman.db"), None
    server: PostgresServer = request.getfixturevalue("quiet_postgres")
    template: str = request.getfixturevalue("quiet_template")
    return make_url(server.create_database(f"canary_{secrets.token_hex(8)}", template)), server


@pytest.fixture(scope="module")
def quiet_template(quiet_postgres: PostgresServer) -> str:
    """A migrated database, whose copies the tests have."""
    asyncio.run(migrations.upgrade(make_url(quiet_postgres.create_database("migrated"))))
    return "migrated"


@pytest.fixture
async def cage(
    caged_database: tuple[URL, PostgresServer | None],
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    logged: StringIO,
    capfd: pytest.CaptureFixture[str],
) -> AsyncIterator[Cage]:
    url, server = caged_database
    # Headers that only a proxy may send are read from these addresses.
    trusted = (ip_network("10.0.0.0/8"),)
    passwords = Passwords(quick_passwords)
    async with api_plane_at(url, provisioned.settings, passwords, trusted_proxies=trusted) as plane:
        plane.answers = []
        yield Cage(plane, Canaries(), logged, capfd, server)


async def everybody(cage: Cage) -> tuple[httpx.AsyncClient, httpx.AsyncClient, dict[str, Any]]:
    """An account, a token and a key of which every word is a canary: session, script, and the key."""
    new, plane = cage.canaries.new, cage.plane
    password, email = new(), new(OWN_DATA, "{}@example.com")
    ada = plane.client()
    for path, status in (("/api/auth/signup", 201), ("/api/auth/login", 200)):
        assert (await ada.post(path, json={"email": email, "password": password})).status_code == status
        cage.canaries.spoken(cookie_of(ada), OWN_ANSWER)
    changed = {"current_password": password, "new_password": new()}
    assert (await ada.put("/api/auth/password", json=changed)).status_code == 204
    scopes = ["keys:read", "keys:write", "tokens:manage", "audit:read"]
    made = await ada.post("/api/tokens", json={"name": new(OWN_DATA), "scopes": scopes})
    cage.canaries.spoken(made.json()["token"][3:-4], OWN_ANSWER)
    body = {"service": "OPENAI", "api_key": new(form="sk-{}"), "name": new(OWN_DATA), "expires_at": LATER}
    created = await ada.post("/api/keys", json=body, headers={"Idempotency-Key": new()})
    assert created.status_code == 201
    return ada, plane.bearer(made.json()["token"]), created.json()


async def test_what_was_accepted_is_found_only_where_it_belongs(cage: Cage) -> None:
    new = cage.canaries.new
    ada, script, key = await everybody(cage)
    path = f"/api/keys/{key['id']}"
    for client in (ada, script):
        retry = {"Idempotency-Key": new()}
        body = {"service": "COHERE", "api_key": new()}
        for _ in range(2):
            assert (await client.post("/api/keys", json=body, headers=retry)).status_code == 201
        assert (await client.post("/api/keys", json={**body, "name": "x"}, headers=retry)).status_code == 422
        assert (await client.put(path, json={"api_key": new(form="sk-{}"), "name": new(OWN_DATA)})).status_code == 200
        assert (await client.patch(path, json={"name": new(OWN_DATA)})).status_code == 200
        assert (await client.patch(path, json={"name": "x"}, headers={"If-Match": new(form='"{}"')})).status_code == 412
        for target in ("/api/keys", path, "/api/services", "/api/audit", "/api/tokens", "/api/auth/me"):
            assert (await client.get(target)).status_code == 200
        # The one text of a query that comes back, in the Link to the next page; of another user's, nothing does.
        q = new(OWN_ANSWER)
        for name in (f"{q[:-2]} a", f"{q} a", f"{q} b"):
            cage.canaries.allowed[q] = OWN_DATA
            await client.post("/api/keys", json={"service": "COHERE", "api_key": new(), "name": name})
        linked = await client.get("/api/keys", params={"q": q, "limit": 1})
        assert q in linked.headers["link"]
        extra = await client.post("/api/tokens", json={"name": new(OWN_DATA), "scopes": ["keys:read"]})
        cage.canaries.spoken(extra.json()["token"][3:-4], OWN_ANSWER)
        assert (await client.delete(f"/api/tokens/{extra.json()['id']}")).status_code == 204
    assert (await ada.delete(path)).status_code == 204
    assert (await ada.post("/api/auth/logout")).status_code == 204
    haystacks = await cage.haystacks()
    assert cage.canaries.found(haystacks) == []
    # The answers that hand a secret out do so once.
    for word, allowed in cage.canaries.allowed.items():
        if allowed == OWN_ANSWER and word in haystacks["answers"].decode():
            assert haystacks["answers"].count(word.encode()) == 1


def wrongs(body: Body, new: Any) -> Iterator[dict[str, Any]]:
    """Bodies in which one field, or one that is unknown, holds a canary that cannot stay."""
    for name in body.valid:
        for value in (
            new() + "\0",
            new() + "\u202e",
            new() + "é" * 600,
            f" {new()} {new()} ",
            [new()],
            {new(): new()},
            [[{"x": new()}]],
        ):
            yield {**body.valid, name: value}
    yield {**body.valid, new(): new()}
    yield {new(): {new(): [new()]}}


async def test_what_was_refused_is_found_nowhere(cage: Cage) -> None:
    new = cage.canaries.new
    ada, script, key = await everybody(cage)
    proof = {name.decode(): value.decode() for name, value in headers_of(script)}
    for body in BODIES.values():
        if body.operation in ("signUp", "logIn"):
            sent = {"content-type": "application/json"}
        elif body.operation in ("changePassword", "deleteAccount"):
            sent = {name.decode(): value.decode() for name, value in headers_of(ada)}
        else:
            sent = proof
        target = body.target(key["id"])
        for wrong in wrongs(body, new):
            wrong |= {"unknown": 1}  # whatever else it may be, it is refused
            assert (await cage.send(body.method, target, sent, as_json(wrong))).status_code == 400
        for content in (
            new().encode(),
            as_json(new()),
            b'{"name": "' + new().encode(),
            b'{"name": "\\ud800' + new().encode() + b'"}',
            new().encode() + b"\xff",
            as_json([new()]),
            b"[" * 3000 + new().encode(),
        ):
            assert (await cage.send(body.method, target, sent, content)).status_code == 400
        too_long = as_json({"name": new() * (body.most // 20)})
        assert (await cage.send(body.method, target, sent, too_long)).status_code == 413
        for header in ("content-type", "content-encoding"):
            answer = await cage.send(body.method, target, {**sent, header: new()}, as_json({new(): new()}))
            assert answer.status_code == 415
    refused = [
        {"service": new().upper(), "api_key": new()},
        {"service": "OPENAI", "api_key": f"sk-ant-{new()}"},
        {"service": "COHERE", "api_key": f"sk-proj-{new()}"},
        {"service": "OPENAI", "api_key": new(), "expires_at": new()},
        {"service": "OPENAI", "api_key": new(), "name": new(), "expires_at": "2001-01-01T00:00:00Z"},
    ]
    for wrong in refused:
        assert (await cage.send("POST", "/api/keys", proof, as_json(wrong))).status_code == 400
    entries: list[object] = [*refused, new(), [new()], {new(): new()}]
    answer = await cage.send("POST", "/api/keys/batch", proof, as_json({"keys": entries}))
    assert {entry["status"] for entry in answer.json()} == {400}
    for wrong in ({"name": "x", "scopes": [new()]}, {"name": new(), "scopes": []}):
        assert (await cage.send("POST", "/api/tokens", proof, as_json(wrong))).status_code == 400
    login = {"email": new(form="{}@example.com"), "password": new()}
    no_proof = {"content-type": "application/json"}
    assert (await cage.send("POST", "/api/auth/login", no_proof, as_json(login))).status_code == 401
    known = (await ada.get("/api/auth/me")).json()["email"]
    wrong = {"email": known, "password": new()}
    assert (await cage.send("POST", "/api/auth/login", no_proof, as_json(wrong))).status_code == 401
    taken = {"email": known, "password": new()}
    assert (await cage.send("POST", "/api/auth/signup", no_proof, as_json(taken))).status_code == 409
    for body in BODIES.values():
        content = as_json({name: new() for name in body.valid})
        foreign = {"sec-fetch-site": new()}
        answer = await cage.send(body.method, body.target(key["id"]), foreign | no_proof, content)
        assert answer.status_code == 403
        answer = await cage.send(body.method, body.target(key["id"]), foreign | proof, content)
        assert 400 <= answer.status_code < 500
    assert cage.canaries.found(await cage.haystacks()) == []


HEADERS = (
    "accept", "accept-encoding", "accept-language", "cookie", "expect", "forwarded", "from", "idempotency-key",
    "if-match", "if-none-match", "if-modified-since", "origin", "range", "referer", "te", "traceparent", "tracestate",
    "upgrade", "user-agent", "via", "x-correlation-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
    "x-real-ip", "x-request-id", "x-unknown",
)  # fmt: skip


@quick_on("sqlite", "caged_database")
async def test_what_came_in_a_path_a_query_or_a_header_is_found_nowhere(cage: Cage) -> None:
    new = cage.canaries.new
    ada, script, key = await everybody(cage)
    proofs: tuple[dict[str, str], ...] = (
        {},
        {name.decode(): value.decode() for name, value in headers_of(script)},
        {name.decode(): value.decode() for name, value in headers_of(ada)},
    )
    for proof in proofs:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", new().upper()):
            for form in (
                "/{}",
                "/api/{}",
                "/api/keys/{}",
                "/api/tokens/{}",
                "/problems/{}",
                "/static/{}",
                "/docs/{}",
                "/{}/{}",
            ):
                target = "/".join(new() if part == "{}" else part for part in form.split("/"))
                await cage.send(method, f"{target}?{new()}={new()}#{new()}", proof, b"{}")
        for path in ("/api/keys", "/api/audit"):
            for name in ("limit", "cursor", "service", "unknown", new()):
                await cage.send("GET", f"{path}?{name}={new()}", proof)
        await cage.send("GET", f"/api/keys?q={new() * 6}", proof)
        await cage.send("GET", f"/api/keys?q={new()}", proof)  # without a next page it comes back nowhere
        for header in HEADERS:
            value = f"keyman_session={new()}; {new()}=1" if header == "cookie" else new()
            for request in (
                ("GET", f"/api/keys/{key['id']}"),
                ("GET", "/api/keys"),
                ("GET", f"/api/keys/{new()}"),
                ("GET", "/livez"),
                ("PATCH", f"/api/keys/{key['id']}"),
                ("POST", "/api/keys"),
            ):
                body = {"PATCH": b"{}", "POST": as_json({"service": "COHERE", "api_key": new()})}.get(request[0], b"")
                sent = {"content-type": "application/json", **proof, header: value}
                if header == "cookie" and "cookie" in proof:
                    sent["cookie"] = f"{proof['cookie']}; {new()}={new()}"
                await cage.send(*request, sent, body)
        for value in ("{}", "Bearer {}", "Bearer km_{}", "Basic {}", "{} x", "Bearer {} {}"):
            await cage.send("GET", "/api/keys", {"authorization": value.format(new(), new())})
        unknown = Token.generate().reveal()
        cage.canaries.spoken(unknown[3:-6])
        await cage.send("GET", "/api/keys", {"authorization": f"Bearer {unknown}"})
        await cage.send("GET", "/api/keys", {"host": new(), **proof}, documented=False)
    statuses = {answer.status_code for answer in cage.plane.answers or []}
    assert statuses >= {200, 201, 204, 400, 401, 403, 404, 405, 412}
    assert max(statuses) < 500
    # The names of hosts and the addresses of proxies are nobody's business either.
    assert cage.canaries.found(await cage.haystacks()) == []


BREAKAGES = (
    ("ALTER TABLE api_keys DROP COLUMN last_used_by", "/api/keys"),
    ("ALTER TABLE idempotency DROP COLUMN fingerprint", "/api/keys"),
    ("ALTER TABLE audit_log DROP COLUMN address", "/api/tokens"),
    ("ALTER TABLE users DROP COLUMN disabled_at", "/api/auth/login"),
)


@pytest.mark.parametrize(("breakage", "path"), BREAKAGES, ids=[path + str(n) for n, (_, path) in enumerate(BREAKAGES)])
@quick_on("sqlite", "caged_database")
async def test_a_fault_of_our_own_tells_the_request_id_and_nothing_else(cage: Cage, breakage: str, path: str) -> None:
    """A real one: the schema is damaged under the running plane."""
    new = cage.canaries.new
    ada, script, key = await everybody(cage)
    async with cage.plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text(breakage))
    one = f"/api/keys/{key['id']}"
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/keys", {"service": "OPENAI", "api_key": new(form="sk-{}"), "name": new(OWN_DATA)}),
        ("PUT", one, {"api_key": new(form="sk-{}"), "name": new(OWN_DATA)}),
        ("PATCH", one, {"name": new(OWN_DATA)}),
        ("POST", "/api/tokens", {"name": new(OWN_DATA), "scopes": ["keys:read"]}),
        ("POST", "/api/auth/login", {"email": new(form="{}@example.com"), "password": new()}),
        ("POST", "/api/auth/signup", {"email": new(OWN_DATA, "{}@example.com"), "password": new()}),
        ("GET", f"/api/keys?q={new()}", {}),
        ("PUT", "/api/auth/password", {"current_password": new(), "new_password": new()}),
        ("DELETE", "/api/auth/me", {"current_password": new()}),
    ]
    broken = 0
    for client in (ada, script):
        for method, target, body in requests:
            headers = {"Idempotency-Key": new(), "User-Agent": new(), "X-Request-ID": new()}
            answer = await client.request(method, target, json=body or None, headers=headers)
            request_id = answer.headers["x-request-id"]
            if answer.status_code == 500:
                broken += 1
                assert answer.json()["detail"] == f"Give the operator of keyman this request id: {request_id}"
                assert f'"request_id":"{request_id}"' in cage.log.getvalue()
                assert not cage.canaries.found({"a fault": answer.content})
            elif target == "/api/tokens" and answer.status_code == 201:
                cage.canaries.spoken(answer.json()["token"][3:-4], OWN_ANSWER)
            elif answer.headers.get("set-cookie") is not None:
                cage.canaries.spoken(cookie_of(client), OWN_ANSWER)
    assert broken >= 2, path
    assert "unhandled exception" in cage.log.getvalue()
    assert cage.canaries.found(await cage.haystacks()) == []


async def test_a_row_that_breaks_a_constraint_shows_no_secret(cage: Cage) -> None:
    new = cage.canaries.new
    ada, script, key = await everybody(cage)
    if cage.is_sqlite:
        damage = "CREATE TRIGGER no BEFORE INSERT ON api_keys BEGIN SELECT RAISE(ABORT, 'no'); END"
    else:
        damage = "ALTER TABLE api_keys ADD CONSTRAINT no CHECK (length(encrypted_key) < 3) NOT VALID"
    async with cage.plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text(damage))
    named = frozenset({"server log", "database files"})
    for client in (ada, script):
        body = {"service": "OPENAI", "api_key": new(form="sk-{}"), "name": new(named)}
        for headers in ({}, {"Idempotency-Key": new()}):
            assert (await client.post("/api/keys", json=body, headers=headers)).status_code == 500
    assert len((await ada.get("/api/keys")).json()) == 1
    assert key["id"] == (await ada.get("/api/keys")).json()[0]["id"]
    assert cage.canaries.found(await cage.haystacks()) == []


@quick_on("postgresql", "caged_database")
async def test_the_canaries_are_found_where_they_are(cage: Cage) -> None:
    """The test of the test: what is there is seen, in every place that is looked through."""
    new = cage.canaries.new
    ada, _, _ = await everybody(cage)
    await ada.post("/api/keys", json={"service": "COHERE", "api_key": "abcdefghijkl", "name": new()})
    structlog.get_logger("keyman").info(new())
    logging.getLogger("some.library").debug(base64.b64encode(new().encode()).decode())
    print(new())  # noqa: T201  # what a library might do
    places = [name for name, _ in cage.canaries.found(await cage.haystacks())]
    assert set(places) >= {"answers", "log", "standard output and error", "database"}
    assert places.count("log") == 2
    if not cage.is_sqlite:
        assert "database files" in places
    assert PASSWORD not in str(places)


async def test_what_the_resolver_gives_out_is_found_only_in_that_answer(cage: Cage, provisioned: Vault) -> None:
    """The value is only in the answer to the application. What an application sends is at most in the audit log."""
    new, plane = cage.canaries.new, cage.plane
    ada, *_ = await everybody(cage)
    url, database = plane.settings.database_url, plane.database
    in_answers = frozenset({"resolved"})
    values = {n: new(in_answers, f"sk-{n}-{{}}") for n in range(3)}
    keys = {}
    for n, value in values.items():
        stored = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": value})
        keys[n] = stored.json()["id"]
    spare = (await ada.post("/api/keys", json={"service": "OPENAI", "api_key": new(form="sk-{}")})).json()["id"]
    made = await applications.create(database, ApplicationName("chat"), ["OPENAI"])
    cage.canaries.spoken(made.token.reveal()[3:-4])
    rows = {row.id: row.encrypted_key for row in await plane.rows(api_keys)}
    ciphertexts = [text.rpartition(":")[2].rstrip("=")[:60] for text in rows.values()]
    async with resolver_at(url, provisioned.resolver) as resolver:
        resolver.answers = []
        client = resolver.bearer(made.token.reveal())
        for n, value in values.items():
            # In the audit log, for the owner of the key.
            body = {"key_id": keys[n], "purpose": new(OWN_DATA)}
            assert (await client.post("/v1/resolve", json=body)).json()["api_key"] == value
        refused = [
            ({"key_id": keys[0], "purpose": new() + "\0"}, 400),
            ({"key_id": new(), "user_id": [new()], "service": new()}, 400),
            ({"key_id": keys[0], new(): new()}, 400),
            ({"key_id": 4711, "purpose": new(OWN_DATA)}, 404),
        ]
        for wrong, status in refused:
            assert (await client.post("/v1/resolve", json=wrong)).status_code == status
        for token in (new(form="km_{}"), new(), Token.generate().reveal()):
            assert (await resolver.bearer(token).post("/v1/resolve", json={"key_id": keys[0]})).status_code == 401
        # A ciphertext that is another row's: neither the one nor the other's value.
        async with database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == spare).values(encrypted_key=rows[keys[0]]))
        assert (await client.post("/v1/resolve", json={"key_id": spare})).status_code == 409
        metrics = (await resolver.client().get("/metrics")).content
        whole = [
            repr((answer.status_code, answer.headers.raw)).encode() + answer.content for answer in resolver.answers
        ]
        haystacks = {**await cage.haystacks(), "resolved": b"\n".join(whole), "resolver metrics": metrics}
    assert cage.canaries.found(haystacks) == []
    for value in values.values():
        assert haystacks["resolved"].count(value.encode()) == 1
    for place in ("answers", "resolved", "log", "metrics", "resolver metrics", "standard output and error"):
        assert not [text for text in ciphertexts if text.encode() in haystacks[place]], place
