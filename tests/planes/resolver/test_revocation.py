"""Nothing that is committed after a revocation was done by the revoked caller, however long its request was open."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Action, Entry
from keyman.audit.log import record
from keyman.audit.tables import audit_log
from keyman.errors import Unauthenticated
from keyman.identity import applications, users
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.principals import Credentials
from keyman.keys import release
from keyman.storage import driver
from keyman.storage.transactions import Database
from keyman.values import ApplicationName, EmailAddress
from tests.planes.management.api.harness import OPENAI_KEY, cookie_of, problem
from tests.planes.management.api.served import served
from tests.planes.resolver.held import Held, Point, has_to_wait
from tests.planes.resolver.pair import App, Pair
from tests.support.needs import quick_on
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def ask(pair: Pair, app: App, body: bytes, *, point: Point = Point.BODY) -> Held:
    """A resolve of this application."""
    headers = JSON | {"authorization": f"Bearer {app.token}"}
    return Held(pair.resolver, "POST", "/v1/resolve", headers, body, point=point)


async def entries(db: Database, action: Action) -> int:
    async with db.read() as connection:
        counted = select(func.count()).select_from(audit_log).where(audit_log.c.action == action)
        return int((await connection.execute(counted)).scalar_one())


async def test_an_account_that_is_disabled_while_its_key_is_looked_up_ends_after_the_entry(
    shared_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry about a release is committed before the account is disabled, or there is none."""
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    email = EmailAddress.parse((await owner.client.get("/api/auth/me")).json()["email"])
    is_found, goes_on = asyncio.Event(), asyncio.Event()
    commit, recorded = driver.commit, list[Entry]()

    async def note(connection: AsyncConnection, *given: Entry) -> None:
        recorded.extend(given)
        await record(connection, *given)

    async def commit_later(connection: AsyncConnection) -> None:
        if recorded and not is_found.is_set():  # not in `note`: on SQLite a work can wait only for its statements
            is_found.set()
            await goes_on.wait()
        await commit(connection)

    monkeypatch.setattr(release, "record", note)
    monkeypatch.setattr(driver, "commit", commit_later)
    asking = asyncio.create_task(app.ask(key_id=key_id))
    await is_found.wait()
    db = shared_pair.management.database
    disabling = asyncio.create_task(users.disable(db, email))
    await has_to_wait(db, disabling)
    goes_on.set()
    assert (await asking).status_code == 200
    await disabling
    problem(await app.ask(key_id=key_id), "not-found")


@pytest.mark.parametrize("end", ["revoke", "rotate", "disable"])
async def test_no_open_resolve_gets_a_key_after_a_revocation(shared_pair: Pair, end: str) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await owner.key()
    email = (await owner.client.get("/api/auth/me")).json()["email"]
    bodies = (b'{"key_id": %d}' % key_id, b'{"user_id": %d, "service": "OPENAI"}' % owner.id)
    held = [ask(shared_pair, app, bodies[n % 2]) for n in range(50)]
    await asyncio.gather(*(one.begin() for one in held))
    assert not any(one.has_ended for one in held)
    db = shared_pair.management.database
    if end == "revoke":
        await applications.revoke(db, ApplicationName(app.name))
    elif end == "rotate":
        await applications.rotate(db, ApplicationName(app.name), timedelta())
    else:
        await users.disable(db, EmailAddress.parse(email))
    before = await entries(db, Action.KEY_RESOLVE)
    for answer in await asyncio.gather(*(one.finish() for one in held)):
        problem(answer, "not-found" if end == "disable" else "unauthenticated")
        assert OPENAI_KEY not in answer.text
    assert await entries(db, Action.KEY_RESOLVE) == before


async def test_a_stolen_session_makes_no_token_after_the_password_was_changed(shared_pair: Pair) -> None:
    owner = await shared_pair.owner()
    email = (await owner.client.get("/api/auth/me")).json()["email"]
    thief = shared_pair.management.client()
    await thief.post("/api/auth/login", json={"email": email, "password": PASSWORD})
    headers = JSON | {"cookie": f"keyman_session={cookie_of(thief)}"}
    body = b'{"name": "x", "scopes": ["keys:read", "keys:write", "tokens:manage", "audit:read"]}'
    held = [Held(shared_pair.management, "POST", "/api/tokens", headers, body) for _ in range(20)]
    await asyncio.gather(*(one.begin() for one in held))
    change = {"current_password": PASSWORD, "new_password": "a new one that nobody knows"}
    assert (await owner.client.put("/api/auth/password", json=change)).status_code == 204
    for answer in await asyncio.gather(*(one.finish() for one in held)):
        problem(answer, "unauthenticated")
    assert (await owner.client.get("/api/tokens")).json() == []


async def test_an_idempotent_answer_is_not_repeated_to_a_revoked_token(shared_pair: Pair) -> None:
    owner = await shared_pair.owner()
    made = (await owner.client.post("/api/tokens", json={"name": "x"})).json()
    headers = JSON | {"authorization": f"Bearer {made['token']}", "idempotency-key": "once"}
    body = b'{"service": "OPENAI", "api_key": "%s"}' % OPENAI_KEY.encode()
    first, again = (Held(shared_pair.management, "POST", "/api/keys", headers, body) for _ in range(2))
    await first.begin()
    assert (await first.finish()).status_code == 201
    await again.begin()
    assert (await owner.client.delete(f"/api/tokens/{made['id']}")).status_code == 204
    problem(await again.finish(), "unauthenticated")
    assert len((await owner.client.get("/api/keys")).json()) == 1


@quick_on("postgresql")
async def test_a_body_that_comes_slowly_through_the_real_server_ends_with_the_token(
    database: URL, provisioned: Vault, tmp_path: Path
) -> None:
    with served(database, provisioned.settings, tmp_path / "log") as url:
        async with httpx.AsyncClient(base_url=url) as owner:
            await owner.post("/api/auth/signup", json={"email": "ada@example.com", "password": PASSWORD})
            made = (await owner.post("/api/tokens", json={"name": "x"})).json()
            body = b'{"service": "OPENAI", "api_key": "%s"}' % OPENAI_KEY.encode()
            head = (
                f"POST /api/keys HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer {made['token']}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(head.encode() + body[:10])
            await writer.drain()
            await _becomes_used(owner)
            assert (await owner.delete(f"/api/tokens/{made['id']}")).status_code == 204
            writer.write(body[10:])
            async with asyncio.timeout(PATIENCE):
                assert b" 401 " in await reader.readline()
            writer.close()
            assert (await owner.get("/api/keys")).json() == []


async def _becomes_used(owner: httpx.AsyncClient) -> None:
    """Wait until the request with the token was authenticated, which notes its use."""
    async with asyncio.timeout(PATIENCE):
        while not (await owner.get("/api/tokens")).json()[0]["last_used_at"]:
            await asyncio.sleep(0.05)


async def test_a_flood_of_an_applications_requests_does_not_keep_its_revocation_waiting(
    postgresql_pair: Pair,
) -> None:
    """PostgreSQL's row locks have no queue: without the advisory lock, this waits for as long as the flood lasts."""
    owner, app = await postgresql_pair.owner(), await postgresql_pair.app()
    key_id = await owner.key()
    assert await app.gets(key_id=key_id) == OPENAI_KEY
    databases = [Database(postgresql_pair.management.settings.database_url) for _ in range(3)]
    caller = await ApplicationProof().verify(databases[0], app.token, Credentials(app.token, None, "-", None))

    async def flood(db: Database, n: int) -> None:
        with suppress(Unauthenticated):
            while True:
                async with db.write(caller):
                    await asyncio.sleep(0.01 + 0.001 * n)

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        for n in range(30):
            group.create_task(flood(databases[n % 3], n))
        await asyncio.sleep(0.3)
        await applications.revoke(postgresql_pair.management.database, ApplicationName(app.name))
    for db in databases:
        await db.close()
    problem(await app.ask(key_id=key_id), "unauthenticated")
