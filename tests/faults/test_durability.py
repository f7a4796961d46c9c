"""An acknowledged operation is stored and opens, however the process ends. Any other is stored whole or not at all.

Each client keeps a ledger of its answers. It waits for one answer at a time, so at most one operation of each ledger is
open when everything ends at once.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from uuid import uuid4

import httpx
import msgspec
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from keyman import migrations
from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.identity import personal_tokens as personal
from keyman.identity import users
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.keys.schemas import KeyInfo
from keyman.keys.tables import idempotency
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, NewPassword, RequiredLabel
from tests.support import needs
from tests.support.cli import Service, serve, variables
from tests.support.database import PostgresServer, stored_keys
from tests.support.http import NO_TLS
from tests.support.needs import quick_on
from tests.support.planes import PASSWORD, Vault
from tests.support.vault import RootClient
from tests.support.waiting import PATIENCE, becomes

pytestmark = pytest.mark.anyio

CLIENTS = 12
MANY = 256
"""Clients whose writes share transactions."""
OPERATIONS = 400
"""The most that one client does in a round. The kill usually comes first."""

ROUNDS = 3 if needs.are_slow_wanted() else 1
"""How often everything is killed. Each round ends at another moment of the load."""


@dataclass(frozen=True)
class Store:
    value: str
    retry: str


@dataclass(frozen=True)
class Replace:
    id: int
    value: str


@dataclass(frozen=True)
class Remove:
    id: int


Operation = Store | Replace | Remove


@dataclass
class Ledger:
    """The answers that one client got. `open` is the operation that has no answer, or an uncertain one."""

    user_id: int
    token: str
    keys: dict[int, str] = field(default_factory=dict)
    acknowledged: list[tuple[Action, int]] = field(default_factory=list)
    open: Operation | None = None

    async def keep(self, url: str, chance: random.Random, count: Count) -> None:
        """Do one operation after the other until the service is gone, or its database after the load has ended."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE, verify=NO_TLS) as client:
            for _ in range(OPERATIONS):
                operation = self.open = self._choose(chance)
                try:
                    answer = await _send(client, operation)
                except httpx.TransportError:
                    return
                if answer.status_code == 503:
                    detail = answer.json()["detail"]
                    if "may or may not" not in detail:
                        assert detail.endswith("Nothing was stored.")
                        self.open = None  # `settle` checks that this is true
                        if not count.is_over:  # on a busy machine a bound can run out before anything is harmed
                            await asyncio.sleep(0.05)
                            continue
                    return
                assert answer.is_success, answer.text
                self.note(operation, answer)
                self.open = None
                count.add()

    def note(self, operation: Operation, answer: httpx.Response) -> None:
        if isinstance(operation, Remove):
            del self.keys[operation.id]
            self.acknowledged.append((Action.KEY_DELETE, operation.id))
            return
        key = answer.json()["id"]
        assert answer.json()["last_4_chars"] == _mask(operation.value)
        self.keys[key] = operation.value
        self.acknowledged.append((Action.KEY_CREATE if isinstance(operation, Store) else Action.KEY_REPLACE, key))

    def settle(self, found: dict[int, str | None]) -> None:
        """Compare with the database, and add the open operation if it was stored."""
        open_, self.open = self.open, None
        if isinstance(open_, Store):
            new = found.keys() - self.keys.keys()
            assert len(new) <= 1
            for key in new:
                self.keys[key] = open_.value
                self.acknowledged.append((Action.KEY_CREATE, key))
        elif isinstance(open_, Replace) and found.get(open_.id) == open_.value:
            self.keys[open_.id] = open_.value
            self.acknowledged.append((Action.KEY_REPLACE, open_.id))
        elif isinstance(open_, Remove) and open_.id not in found:
            del self.keys[open_.id]
            self.acknowledged.append((Action.KEY_DELETE, open_.id))
        assert found == self.keys

    def _choose(self, chance: random.Random) -> Operation:
        value = f"sk-{chance.getrandbits(160):040x}"
        kind = chance.random()
        if not self.keys or kind < 0.5:
            return Store(value, f"{chance.getrandbits(128):032x}")
        key = chance.choice(list(self.keys))
        return Replace(key, value) if kind < 0.8 else Remove(key)


async def _send(client: httpx.AsyncClient, operation: Operation) -> httpx.Response:
    match operation:
        case Store(value, retry):
            body = {"service": "OPENAI", "api_key": value}
            return await client.post("/api/keys", json=body, headers={"Idempotency-Key": retry})
        case Replace(key, value):
            return await client.put(f"/api/keys/{key}", json={"api_key": value})
        case Remove(key):
            return await client.delete(f"/api/keys/{key}")


def _mask(value: str) -> str:
    return f"sk-...{value[-4:]}"


async def _ledgers(url: URL, quick: PasswordHasher, clients: int = CLIENTS) -> list[Ledger]:
    """Ledgers for clients, each with an account and a token."""
    db = Database(url)
    passwords = Passwords(quick)
    made = []
    for number in range(clients):
        email = EmailAddress(f"client{number}@example.com")
        account = await users.add(db, passwords, email, NewPassword(PASSWORD))
        token = await personal.create_for(db, email, RequiredLabel("ledger"), DEFAULT_SCOPES)
        made.append(Ledger(account.id, token.token))
    passwords.close()
    await db.close()
    return made


async def _settle(url: URL, root: RootClient, ledgers: list[Ledger]) -> None:
    """Check that every ledger agrees with the database: keys, their values and masks, audit log, stored answers."""
    rows = await stored_keys(url)
    opened = root.opens_all(rows.values())
    engine = create_async_engine(url, poolclass=NullPool)
    entry = (audit_log.c.user_id, audit_log.c.action, audit_log.c.key_id)
    async with engine.connect() as connection:
        entries = (await connection.execute(select(*entry).where(audit_log.c.key_id.is_not(None)))).all()
        kept = (await connection.execute(select(idempotency.c.user_id, idempotency.c.response))).all()
        if url.get_backend_name() == "sqlite":
            assert (await connection.execute(text("PRAGMA integrity_check"))).scalars().all() == ["ok"]
            assert (await connection.execute(text("PRAGMA foreign_key_check"))).all() == []
    await engine.dispose()
    for ledger in ledgers:
        own = {id_: row for id_, row in rows.items() if row.user_id == ledger.user_id}
        ledger.settle({id_: opened[id_] for id_ in own})
        assert {id_: row.mask for id_, row in own.items()} == {k: _mask(v) for k, v in ledger.keys.items()}
        logged = sorted((Action(e.action), e.key_id) for e in entries if e.user_id == ledger.user_id)
        assert logged == sorted(ledger.acknowledged)
        answers = [msgspec.json.decode(k.response, type=KeyInfo).id for k in kept if k.user_id == ledger.user_id]
        assert sorted(answers) == sorted(key for action, key in ledger.acknowledged if action is Action.KEY_CREATE)
    assert {row.user_id for row in rows.values()} <= {ledger.user_id for ledger in ledgers}


class Count:
    """How many operations were acknowledged, to all clients together."""

    def __init__(self) -> None:
        self.is_over = False
        self._count = 0
        self._waiters: list[tuple[int, asyncio.Event]] = []

    def add(self) -> None:
        self._count += 1
        for count, event in self._waiters:
            if self._count >= count:
                event.set()

    async def at_least(self, count: int) -> None:
        event = asyncio.Event()
        self._waiters.append((count, event))
        async with asyncio.timeout(PATIENCE):
            await event.wait()


@asynccontextmanager
async def _load(service: Service, ledgers: list[Ledger], chance: random.Random) -> AsyncIterator[Count]:
    """All clients at work. When the block ends, wait until each has ended."""
    count = Count()
    work = [asyncio.create_task(ledger.keep(service.url, chance, count)) for ledger in ledgers]
    try:
        yield count
    finally:
        count.is_over = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*work)


async def _no_sessions(url: URL, server: PostgresServer) -> None:
    """Wait until the server has ended the sessions of the killed process."""

    async def over() -> bool:
        count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.database}'"  # noqa: S608  # a test's own
        return await asyncio.to_thread(server.execute, count) == "0"

    await becomes(over, "the end of the sessions")


async def _retried(service: Service, ledger: Ledger, operation: Operation | None) -> None:
    """Send a POST without an answer again: there is one key in the end, stored by the first or by the second."""
    if not isinstance(operation, Store):
        return
    was_stored = operation.value in ledger.keys.values()
    async with httpx.AsyncClient(
        base_url=service.url, headers={"Authorization": f"Bearer {ledger.token}"}, timeout=PATIENCE, verify=NO_TLS
    ) as client:
        answer = await _send(client, operation)
    assert answer.status_code == 201, answer.text
    assert ("idempotent-replayed" in answer.headers) is was_stored
    if not was_stored:
        ledger.note(operation, answer)


@quick_on("sqlite")
@pytest.mark.parametrize("clients", [CLIENTS, pytest.param(MANY, marks=pytest.mark.slow)])
async def test_nothing_acknowledged_is_lost_when_everything_is_killed_under_load(
    database: URL,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    clients: int,
) -> None:
    chance = random.Random()  # noqa: S311  # moments and values of a test
    root = RootClient(provisioned.server.address, provisioned.server.root_token.reveal())
    ledgers = await _ledgers(database, quick_passwords, clients)
    env = variables(provisioned.settings, database)
    for _ in range(ROUNDS):
        with serve(env, tmp_path) as service:
            async with _load(service, ledgers, chance) as count:
                await count.at_least(
                    chance.randint(1, 100) if clients == CLIENTS else chance.randint(clients, 4 * clients)
                )
                await asyncio.sleep(chance.uniform(0, 0.05))
                service.live.send_group(SIGKILL)
            service.live.wait()
        if database.get_backend_name() == "postgresql":
            await _no_sessions(database, request.getfixturevalue("postgres"))
        open_ = [ledger.open for ledger in ledgers]
        assert any(open_)  # no client had done all its operations before
        await _settle(database, root, ledgers)
        if clients == MANY and database.get_backend_name() == "postgresql":
            assert await _transactions(database) < len(await stored_keys(database)) / 4
    with serve(env, tmp_path) as service:
        for ledger, operation in zip(ledgers, open_, strict=True):
            await _retried(service, ledger, operation)
        assert service.live.end().code == 0
    await _settle(database, root, ledgers)


async def _transactions(url: URL) -> int:
    """The number of transactions that wrote the keys as they are now."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT count(DISTINCT xmin::text) FROM api_keys"))
        number = int(found.scalar_one())
    await engine.dispose()
    return number


@contextmanager
def _sqlite_locked(url: URL) -> Iterator[None]:
    connection = sqlite3.connect(str(url.database), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def _encrypted(service: Service) -> int:
    """The number of calls to encrypt that Vault has answered."""
    lines = (await asyncio.to_thread(service.metrics)).splitlines()
    name = 'keyman_vault_operation_seconds_count{operation="encrypt"} '
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


@pytest.mark.slow
async def test_what_was_sealed_and_not_committed_leaves_nothing(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chance = random.Random()  # noqa: S311  # moments and values of a test
    root = RootClient(provisioned.server.address, provisioned.server.root_token.reveal())
    ledger, *_ = ledgers = await _ledgers(database, quick_passwords)
    with serve(variables(provisioned.settings, database), tmp_path) as service:
        headers = {"Authorization": f"Bearer {ledger.token}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=PATIENCE, verify=NO_TLS) as client:
            first = Store("sk-0123456789abcdef", uuid4().hex)
            ledger.note(first, await _send(client, first))
            async with _writes_held(database, request):
                before = await _encrypted(service)
                sealed = Store(f"sk-{chance.getrandbits(160):040x}", uuid4().hex)
                replaced = Replace(next(iter(ledger.keys)), f"sk-{chance.getrandbits(160):040x}")
                tasks: list[asyncio.Task[httpx.Response]] = []
                for operation in (sealed, replaced):  # one after the other, or both may share one call to Vault
                    tasks.append(asyncio.create_task(_send(client, operation)))

                    async def is_sealed(expected: int = before + len(tasks)) -> bool:
                        return await _encrypted(service) >= expected

                    await becomes(is_sealed, f"encrypt {len(tasks)}")
                service.live.send_group(SIGKILL)
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(end, httpx.TransportError) for end in ended)
    if database.get_backend_name() == "postgresql":
        await _no_sessions(database, request.getfixturevalue("postgres"))
    await _settle(database, root, ledgers)  # no ledger has an open operation, so the sealed values must be absent


@asynccontextmanager
async def _writes_held(url: URL, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Lock the keys, so that only this connection can write one."""
    if url.get_backend_name() == "sqlite":
        with _sqlite_locked(url):
            yield
        return
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE"))
        yield
    await engine.dispose()


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_when_postgresql_crashes_under_load(
    disposable_postgres: PostgresServer, provisioned: Vault, quick_passwords: PasswordHasher, tmp_path: Path
) -> None:
    chance = random.Random()  # noqa: S311  # moments and values of a test
    name = f"crash_{uuid4().hex}"
    url = make_url(disposable_postgres.create_database(name))
    await migrations.upgrade(url)
    root = RootClient(provisioned.server.address, provisioned.server.root_token.reveal())
    ledgers = await _ledgers(url, quick_passwords)
    try:
        with serve(variables(provisioned.settings, url), tmp_path) as service:
            for _ in range(ROUNDS):
                async with _load(service, ledgers, chance) as count:
                    await count.at_least(chance.randint(1, 100))
                    await asyncio.to_thread(disposable_postgres.stop, crash=True)
                await asyncio.to_thread(disposable_postgres.start)

                async def ready() -> bool:
                    return await asyncio.to_thread(service.is_ready)

                await becomes(ready, "readiness")
                assert service.live.process.poll() is None
                await _settle(url, root, ledgers)
            assert service.live.end().code == 0
    finally:
        if not disposable_postgres.is_running:
            disposable_postgres.stop()
            disposable_postgres.start()
        disposable_postgres.drop_database(name)
