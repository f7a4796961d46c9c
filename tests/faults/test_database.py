"""The database away, busy or full: 503 with nothing stored, and recovery without a restart."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.storage import engine
from tests.faults.conftest import checks, counts, plane_of, unavailable
from tests.support.cli import children, serve, variables
from tests.support.database import PostgresServer
from tests.support.http import sign_up
from tests.support.needs import quick
from tests.support.planes import Vault
from tests.support.waiting import becomes, freeze, until

pytestmark = pytest.mark.anyio

impatient = pytest.mark.usefixtures("impatient")

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
BODY = {"service": "OPENAI", "api_key": VALUE}
REASON = "The database cannot be used at the moment."


async def post(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/api/keys", json=BODY)


async def is_whole(client: httpx.AsyncClient, database: URL, keys: int) -> None:
    """All is well: ready, `keys` keys there, another one stored; many requests at once find no connection lost."""

    async def ready() -> bool:
        return await checks(client) == {"database": "ok", "vault": "ok"}

    await becomes(ready, "readiness")
    assert len((await client.get("/api/keys")).json()) == keys

    async def all_are_served() -> bool:
        answers = await asyncio.gather(*(client.get("/api/keys") for _ in range(30)))
        return {answer.status_code for answer in answers} == {200}

    await becomes(all_are_served, "a whole pool")
    assert (await post(client)).status_code == 201
    found = await counts(database)
    assert (found.keys, found.entries) == (keys + 1, keys + 1)
    assert await _in_use(client) == 0


async def _in_use(client: httpx.AsyncClient) -> float:
    name = "keyman_database_connections_in_use "
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


# --- SQLite


@contextmanager
def _locked(file: str) -> Iterator[None]:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@impatient
async def test_a_locked_file_stops_only_writes(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(sqlite, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        key = (await post(ada)).json()
        with _locked(str(sqlite.database)):
            path = f"/api/keys/{key['id']}"
            changes = (post(ada), ada.put(path, json={"api_key": VALUE}), ada.patch(path, json={"name": "x"}))
            for answer in await asyncio.gather(*changes, ada.delete(path)):
                unavailable(answer, "database", REASON)
            assert (await ada.get("/api/keys")).json() == [key]
            assert await checks(ada) == {"database": "unreachable", "vault": "ok"}  # no key could be stored
        await is_whole(ada, sqlite, 1)


async def test_a_token_is_good_for_reading_while_its_use_cannot_be_noted(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(sqlite, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        scripts = [await plane.token(ada) for _ in range(5)]
        with _locked(str(sqlite.database)):
            await _reads_at_once(scripts)
        await becomes(lambda: _is_noted(scripts[0], ada), "a last use")


async def test_a_token_is_good_for_reading_while_its_row_is_held(
    disposable_postgresql: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        scripts = [await plane.token(ada) for _ in range(5)]
        owner = await _connect(disposable_postgresql)
        async with owner.transaction():
            await owner.execute("SELECT 1 FROM api_tokens FOR UPDATE")
            await _reads_at_once(scripts)
        await owner.close()
        await becomes(lambda: _is_noted(scripts[0], ada), "a last use")


async def _reads_at_once(scripts: list[httpx.AsyncClient]) -> None:
    """One after the other and all together, in less than it takes if each of the first waits for a lock."""
    async with asyncio.timeout(engine.BUSY_TIMEOUT * (len(scripts) - 1)):
        for script in scripts:
            assert (await script.get("/api/keys")).json() == []
        answers = await asyncio.gather(*(script.get("/api/keys") for script in scripts * 4))
    assert {answer.status_code for answer in answers} == {200}


async def _is_noted(script: httpx.AsyncClient, owner: httpx.AsyncClient) -> bool:
    await script.get("/api/keys")
    return any(token["last_used_at"] for token in (await owner.get("/api/tokens")).json())


@impatient
async def test_many_writers_that_wait_for_a_lock_all_get_an_answer(
    sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(sqlite, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        with _locked(str(sqlite.database)):
            writers = [asyncio.create_task(post(ada)) for _ in range(40)]

            async def is_read() -> bool:
                return (await ada.get("/api/keys")).status_code == 200

            await becomes(is_read, "a reader among writers")
            for answer in await asyncio.gather(*writers):
                unavailable(answer, "database", REASON)
        await is_whole(ada, sqlite, 0)


Harm = Callable[[Path], None]


def _nothing(_file: Path) -> None:
    pass


def _copy(file: Path) -> None:
    shutil.copy(file.with_suffix(".aside"), file)


def _empty(file: Path) -> None:
    file.touch()


def _directory(file: Path) -> None:
    file.mkdir()


def _look(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


@contextmanager
def _in_place_of(file: Path, harm: Harm) -> Iterator[None]:
    """Put something else there; afterwards it is as it was made, and goes."""
    file.rename(file.with_suffix(".aside"))
    harm(file)
    before = _look(file)
    yield
    assert _look(file) == before
    if file.is_dir():
        file.rmdir()
    file.with_suffix(".aside").rename(file)


@pytest.mark.parametrize("harm", [_nothing, _copy, _empty, _directory])
async def test_a_file_that_is_not_the_one_takes_nothing_and_nothing_is_made_there(
    harm: Harm, sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    """An open connection goes on writing to a removed file, and says that all is well: what it says must not count."""
    async with plane_of(sqlite, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        with _in_place_of(Path(str(sqlite.database)), harm):
            for _ in range(3):
                unavailable(await post(ada), "database", REASON)
                unavailable(await ada.get("/api/keys"), "database", REASON)
            assert (await checks(ada))["database"] == "unreachable"
        await is_whole(ada, sqlite, 1)


def test_a_full_disk_stores_nothing_and_is_over_when_there_is_room(
    sqlite: URL, provisioned: Vault, tmp_path: Path
) -> None:
    """A worker that may write no file any further is what a full disk is to SQLite."""
    with serve(variables(provisioned.settings, sqlite), tmp_path) as service:
        ada = sign_up(service.url, "ada@example.com")
        key = ada.post("/api/keys", json=BODY).json()
        (worker,) = service.workers
        free = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        room = Path(f"{sqlite.database}-wal").stat().st_size
        assert room > len(service.live.err)  # its log has to go on
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (room, free[1]))
        for _ in range(3):
            refused = ada.post("/api/keys", json=BODY)
            assert (refused.status_code, refused.json()["type"]) == (503, "/problems/database-unavailable")
            assert int(refused.headers["retry-after"]) > 0
            assert ada.get("/api/keys").json() == [key]
        resource.prlimit(worker, resource.RLIMIT_FSIZE, free)
        assert ada.post("/api/keys", json=BODY).status_code == 201
        assert len(ada.get("/api/keys").json()) == 2
        assert service.workers == [worker]
        assert service.live.end().code == 0
    assert asyncio.run(counts(sqlite)).keys == 2


# --- PostgreSQL


@pytest.mark.slow
def test_a_plane_outlives_workers_that_start_while_the_database_is_away(
    disposable_postgres: PostgresServer, disposable_postgresql: URL, provisioned: Vault, tmp_path: Path
) -> None:
    """The server ends for good when a worker ends within seconds of its start."""
    with serve(variables(provisioned.settings, disposable_postgresql), tmp_path, "--workers", "2") as service:
        ada = sign_up(service.url, "ada@example.com")
        disposable_postgres.stop(crash=True)
        before = service.workers
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        until(lambda: len(set(service.workers) - set(before)) == 2, "new workers")
        until(lambda: service.readiness() is not None, "an answer")
        refused = ada.post("/api/keys", json=BODY)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/database-unavailable")
        disposable_postgres.start()
        until(lambda: all(service.is_ready() for _ in range(8)), "readiness of both workers")
        assert ada.post("/api/keys", json=BODY).status_code == 201
        assert service.live.end().code == 0


Fault = Callable[[PostgresServer], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _stopped(server: PostgresServer) -> AsyncIterator[None]:
    server.stop()
    yield
    server.start()


@asynccontextmanager
async def _crashed(server: PostgresServer) -> AsyncIterator[None]:
    server.stop(crash=True)
    yield
    server.start()


@asynccontextmanager
async def _frozen(server: PostgresServer) -> AsyncIterator[None]:
    """The server and every session of it."""
    frozen = [server.pid, *children(server.pid)]
    for pid in frozen:
        freeze(pid)
    try:
        yield
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


@impatient
@pytest.mark.parametrize("fault", quick([_stopped], [_crashed, _frozen]))
async def test_a_server_that_is_away_is_said_and_found_again(
    fault: Fault,
    disposable_postgresql: URL,
    disposable_postgres: PostgresServer,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        async with fault(disposable_postgres):
            answers = await asyncio.gather(*(post(ada) for _ in range(20)), *(ada.get("/api/keys") for _ in range(20)))
            for answer in answers:
                unavailable(answer, "database", REASON)
            assert await checks(ada) == {"database": "unreachable", "vault": "ok"}
            assert (await ada.get("/livez")).status_code == 200
            email = {"email": "user0@example.com", "password": "correct horse battery staple"}
            unavailable(await ada.post("/api/auth/login", json=email), "database", REASON)
        await is_whole(ada, disposable_postgresql, 1)


async def test_sessions_that_the_server_ended_are_replaced_without_anybody_noticing(
    disposable_postgresql: URL, disposable_postgres: PostgresServer, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        for _ in range(3):
            await asyncio.gather(*(ada.get("/api/keys") for _ in range(20)))  # the pool is full
            of_it = f"datname = '{disposable_postgresql.database}'"
            disposable_postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {of_it}")  # noqa: S608  # the test's own name
            answers = await asyncio.gather(*(ada.get("/api/keys") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
        await is_whole(ada, disposable_postgresql, 1)


async def test_a_session_ended_in_the_middle_of_a_write_stores_nothing(
    disposable_postgresql: URL, disposable_postgres: PostgresServer, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        owner = await _connect(disposable_postgresql)
        for _ in range(3):
            transaction = owner.transaction()
            await transaction.start()
            await owner.execute("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE")
            waiting = asyncio.create_task(post(ada))
            own = await owner.fetchval("SELECT pg_backend_pid()")
            ended = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = "  # noqa: S608
                f"'{disposable_postgresql.database}' AND pid <> {own} AND wait_event_type = 'Lock'"
            )

            async def is_ended(statement: str = ended) -> bool:
                return disposable_postgres.execute(statement) == "1"

            await becomes(is_ended, "a write that waits")
            unavailable(await waiting, "database", REASON)
            await transaction.rollback()
        await owner.close()
        await is_whole(ada, disposable_postgresql, 1)


async def _connect(url: URL) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, database=url.database
    )


@pytest.mark.slow
async def test_a_server_without_a_free_connection_is_said_and_found_again(
    disposable_postgresql: URL, disposable_postgres: PostgresServer, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    disposable_postgres.execute("ALTER SYSTEM SET max_connections = 15")
    disposable_postgres.stop()
    disposable_postgres.start()
    taken: list[asyncpg.Connection] = []
    try:
        async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
            ada = await plane.user()
            await post(ada)
            await _take_all(disposable_postgresql, taken)
            # One connection is keyman's own: a single request is answered, of many reads at once some are not.
            assert (await ada.get("/api/keys")).status_code == 200
            reads = await asyncio.gather(*(ada.get("/api/keys") for _ in range(20)))
            not_read = [answer for answer in reads if answer.status_code != 200]
            assert not_read
            # Writes that share a transaction share its connection.
            answers = await asyncio.gather(*(post(ada) for _ in range(20)))
            refused = [answer for answer in answers if answer.status_code != 201]
            for answer in not_read + refused:
                unavailable(answer, "database", REASON)
            stored = 1 + len(answers) - len(refused)
            disposable_postgres.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'keyman'"
            )  # waiting for each to end: what one still holds nobody could take
            await _take_all(disposable_postgresql, taken)
            unavailable(await post(ada), "database", REASON)
            assert (await checks(ada))["database"] == "unreachable"
            for connection in taken:
                await connection.close()
            await is_whole(ada, disposable_postgresql, stored)
    finally:
        disposable_postgres.execute("ALTER SYSTEM RESET max_connections")
        disposable_postgres.stop()
        disposable_postgres.start()


async def _take_all(url: URL, taken: list[asyncpg.Connection]) -> None:
    """Take every connection that the server has left for those who are not its superuser."""
    for _ in range(50):
        try:
            taken.append(await _connect(url))
        except asyncpg.TooManyConnectionsError:
            return
        except asyncpg.PostgresError as fault:
            assert "remaining connection slots" in str(fault)  # noqa: PT017  # the same, in other words
            return
    raise AssertionError("the server has connections without end")


@asynccontextmanager
async def _held(url: URL) -> AsyncIterator[None]:
    """Inside the block nobody else can read or write a key."""
    owner = await _connect(url)
    async with owner.transaction():
        await owner.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        yield
    await owner.close()


@impatient
async def test_many_slow_requests_exhaust_the_pool_and_nothing_hangs(
    disposable_postgresql: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        async with _held(disposable_postgresql):
            answers = await asyncio.gather(*(ada.get("/api/keys") for _ in range(60)), *(post(ada) for _ in range(20)))
            for answer in answers:
                unavailable(answer, "database", REASON)
        await is_whole(ada, disposable_postgresql, 1)


async def test_clients_that_leave_take_no_connection_with_them(
    disposable_postgresql: URL, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with plane_of(disposable_postgresql, provisioned.settings, quick_passwords) as plane:
        ada = await plane.user()
        await post(ada)
        for _ in range(3):
            async with _held(disposable_postgresql):
                waiting = [asyncio.create_task(_either(ada, number)) for number in range(20)]

                async def some_wait() -> bool:
                    return await _in_use(ada) > 5

                await becomes(some_wait, "requests that wait")
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
        await is_whole(ada, disposable_postgresql, 1)


async def _either(client: httpx.AsyncClient, number: int) -> httpx.Response:
    return await (post(client) if number % 2 else client.get("/api/keys"))
