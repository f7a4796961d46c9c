"""The one row of a deployment: a start with another schema, and the stored sentinel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError

from keyman.errors import ConfigurationError, DatabaseUnavailable
from keyman.keys.deployment import SCHEMA_REVISION, Deployment, deployment
from keyman.keys.tables import api_keys
from keyman.storage.engine import create_private_file
from keyman.storage.transactions import Database, Unchecked
from tests.support.database import PostgresServer
from tests.support.exceptions import stands_alone
from tests.support.rows import add, add_owner, row

pytestmark = pytest.mark.anyio

COMMAND = "Run: keyman db upgrade"


async def refusal(db: Database) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await Deployment.load(db)
    assert stands_alone(caught.value)
    await db.close()
    return str(caught.value)


async def stored(db: Database) -> str | None:
    async with db.read() as connection:
        found: str | None = (await connection.execute(select(deployment.c.sentinel))).scalar_one()
        return found


async def test_a_database_that_does_not_exist_names_the_command(tmp_path: Path) -> None:
    said = await refusal(Database(make_url(f"sqlite+aiosqlite:///{tmp_path}/absent.db")))
    assert "does not exist yet" in said
    assert COMMAND in said


async def test_an_empty_database_names_the_command(empty_database: URL) -> None:
    create_private_file(empty_database)
    said = await refusal(Database(empty_database))
    assert "is empty" in said
    assert COMMAND in said


async def test_a_database_whose_migration_was_never_noted_names_the_command(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
    assert COMMAND in await refusal(db)


@pytest.mark.parametrize("revision", ["0000", "9999"], ids=["older", "newer"])
async def test_another_schema_names_both_revisions_and_what_to_do(db: Database, revision: str) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :given"), {"given": revision})
    said = await refusal(db)
    assert revision in said
    assert SCHEMA_REVISION in said
    assert COMMAND in said
    assert "if a newer version has upgraded the database, start that version" in said


async def test_a_server_that_is_away_is_no_fault_of_the_schema(postgres: PostgresServer) -> None:
    db = Database(make_url(postgres.create_database("away")).set(port=1))
    with pytest.raises(DatabaseUnavailable):
        await Deployment.load(db)
    await db.close()
    postgres.drop_database("away")


async def test_every_start_finds_the_same_deployment(database: URL, db: Database) -> None:
    other = Database(database)
    assert (await Deployment.load(db)).uuid == (await Deployment.load(other)).uuid
    await other.close()


@pytest.mark.parametrize("number", [1, 2])
async def test_there_is_no_second_deployment(db: Database, number: int) -> None:
    async def add_another() -> None:
        async with db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(deployment).values(row("deployment", id=number)))

    with pytest.raises(IntegrityError):
        await add_another()


async def test_of_many_sentinels_at_once_one_is_kept_and_every_caller_gets_it(database: URL) -> None:
    processes = [Database(database) for _ in range(5)]
    starts = [await Deployment.load(db) for db in processes for _ in range(10)]
    assert [await start.sentinel() for start in starts] == [None] * 50
    told = await asyncio.gather(*(start.store_sentinel(f"vault:v1:{n}") for n, start in enumerate(starts)))
    kept = await stored(processes[0])
    assert kept in {f"vault:v1:{n}" for n in range(50)}
    assert set(told) == {kept}
    assert await (await Deployment.load(processes[0])).store_sentinel("vault:v1:late") == kept
    assert await stored(processes[0]) == kept
    for db in processes:
        await db.close()


async def test_a_database_with_keys_and_no_sentinel_gets_none(db: Database) -> None:
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        key = await add(connection, "api_keys")
    start = await Deployment.load(db)
    assert await start.store_sentinel("vault:v1:AAAA") is None
    assert await stored(db) is None
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(api_keys).where(api_keys.c.id == key))
    assert await start.store_sentinel("vault:v1:AAAA") == "vault:v1:AAAA"


async def test_keys_do_not_hide_the_sentinel_that_is_there(db: Database) -> None:
    start = await Deployment.load(db)
    await start.store_sentinel("vault:v1:AAAA")
    await add_owner(db)
    async with db.write(Unchecked.OPERATOR) as connection:
        await add(connection, "api_keys")
    again = await Deployment.load(db)
    assert await again.sentinel() == await again.store_sentinel("vault:v1:BBBB") == "vault:v1:AAAA"


async def test_a_known_sentinel_is_not_read_again(db: Database) -> None:
    start = await Deployment.load(db)
    await start.store_sentinel("vault:v1:AAAA")
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(deployment).values(sentinel="vault:v1:BBBB"))
    assert await start.sentinel() == "vault:v1:AAAA"
    assert await (await Deployment.load(db)).sentinel() == "vault:v1:BBBB"
