"""What `keyman db upgrade` refuses to grant. tests/faults/test_compromise.py tests the granted rights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from secrets import token_hex

import pytest
from sqlalchemy.engine import URL, make_url

from keyman import migrations
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.doctor.database import examine
from keyman.doctor.findings import Finding, State
from keyman.errors import ConfigurationError
from keyman.identity.tables import VIEWS, applications
from keyman.keys.deployment import SCHEMA_REVISION
from keyman.migrations.rights import (
    GATEWAY,
    MANAGEMENT,
    NOBODYS,
    OF_OPERATORS,
    OTHERS,
    RESOLVER,
    Planes,
    excess,
    missing,
)
from keyman.storage.transactions import Database, Unchecked
from tests.cli.transcript import keyman
from tests.support.cli import environment
from tests.support.database import PostgresServer


def test_every_table_is_some_planes_and_no_plane_has_more_than_there_are() -> None:
    views = [view.name for view in VIEWS]
    assert {*MANAGEMENT, *RESOLVER, *GATEWAY} == {*migrations.tables().tables, *views, "alembic_version"}
    assert "application_tokens" not in MANAGEMENT
    assert MANAGEMENT["applications"] == "SELECT (id, name, disabled_at), UPDATE (share_lock)"
    assert {*applications.c.keys()} == {"id", "name", "disabled_at", "share_lock", *OF_OPERATORS}
    for rights in (MANAGEMENT, RESOLVER, GATEWAY):
        assert {rights.get(view, "SELECT") for view in views} == {"SELECT"}


@pytest.mark.anyio
async def test_what_cannot_be_granted_is_said_and_nothing_is_upgraded(empty_database: URL) -> None:
    owner = str(empty_database.username)
    is_sqlite = empty_database.get_backend_name() == "sqlite"
    for planes, said in (
        (Planes("keyman_a", "keyman_a"), "its own database user"),
        (Planes("keyman_a", owner), "neither may be the one that runs the upgrade"),
        (Planes("keyman_a", 'keyman"; DROP TABLE users; --'), "does not exist in the database"),
    ):
        with pytest.raises(ConfigurationError, match="SQLite has no users" if is_sqlite else said):
            await migrations.upgrade(empty_database, planes)
    assert await migrations.upgrade(empty_database) == (None, SCHEMA_REVISION)


@pytest.mark.anyio
async def test_what_a_planes_user_may_beyond_its_rights_is_named_however_it_was_granted(
    postgres: PostgresServer, migrated_postgresql: URL
) -> None:
    name = f"excess_{token_hex(6)}"
    owner = make_url(postgres.create_database(name, str(migrated_postgresql.database)))
    user, word = f"{name}_user", token_hex(16)
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{word}'")
    as_owner, as_user = Database(owner), Database(owner.set(username=user, password=word))
    try:
        for right in (None, *NOBODYS, *OTHERS["resolver"], ("UPDATE (detail)", "audit_log")):
            for whom in (user, "PUBLIC"):
                async with as_owner.write(Unchecked.OPERATOR) as connection:
                    if right is not None:
                        await connection.exec_driver_sql(f"GRANT {right[0]} ON {right[1]} TO {whom}")
                async with as_user.read() as connection:
                    found = await connection.run_sync(excess, "resolver")
                expected = [] if right is None else [" on ".join(right)]
                assert found == [one.replace(" (detail)", "") for one in expected]
                async with as_owner.write(Unchecked.OPERATOR) as connection:
                    if right is not None:
                        await connection.exec_driver_sql(f"REVOKE {right[0]} ON {right[1]} FROM {whom}")
    finally:
        await as_owner.close()
        await as_user.close()
        postgres.drop_database(name)
        postgres.execute(f"DROP ROLE {user}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("plane", "rights"), [("management", MANAGEMENT), ("resolver", RESOLVER), ("gateway", GATEWAY)]
)
async def test_doctor_names_each_right_that_a_planes_user_lacks_and_the_command_that_grants_it(
    postgres: PostgresServer, plane: str, rights: Mapping[str, str]
) -> None:
    name = f"missing_{token_hex(6)}"
    owner = make_url(postgres.create_database(name))
    users, word = Planes(f"{name}_m", f"{name}_r", f"{name}_g"), token_hex(16)
    for user in users.rights():
        postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{word}'")
    user = getattr(users, plane)
    as_owner, as_user = Database(owner), Database(owner.set(username=user, password=word))
    settings = Settings(owner.set(username=user, password=word), VaultSettings("http://127.0.0.1:1"))

    async def found() -> Finding:
        (finding,) = [one async for one in examine(settings, as_user, plane) if one.check == "database-rights"]
        return finding

    try:
        await migrations.upgrade(owner, users)
        assert (await found()).state is State.OK
        lost = [
            ("INSERT", "audit_log_id_seq"),
            *((right, table) for table in rights for right in single(rights[table])),
        ]
        for right, table in lost:
            kind, named = ("SEQUENCE", "USAGE") if table.endswith("_seq") else ("TABLE", right)
            async with as_owner.write(Unchecked.OPERATOR) as connection:
                await connection.exec_driver_sql(f"REVOKE {named} ON {kind} {table} FROM {user}")
            async with as_user.read() as connection:
                assert await connection.run_sync(missing, rights) == [f"{named} on {table}"]
            async with as_owner.write(Unchecked.OPERATOR) as connection:
                await connection.exec_driver_sql(f"GRANT {named} ON {kind} {table} TO {user}")
        async with as_owner.write(Unchecked.OPERATOR) as connection:
            await connection.exec_driver_sql(f"REVOKE ALL ON users FROM {user}")
        finding = await found()
        assert finding.state is State.FAILED
        assert " on users" in finding.found
        ends = " --gateway USER, " if plane == "gateway" else " (and --gateway USER if you have a gateway), "
        assert f"keyman db upgrade --management USER --resolver USER{ends}" in str(finding.remedy)
    finally:
        await as_owner.close()
        await as_user.close()
        postgres.drop_database(name)
        for user in users.rights():
            postgres.execute(f"DROP ROLE {user}")


def single(granted: str) -> list[str]:
    """Each right of a table, one column at a time: `SELECT, UPDATE (a, b)` has three."""
    return [
        f"{right} ({column})" if column else right
        for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", granted)
        for column in columns.split(", ")
    ]


def test_only_one_plane_is_wrong_usage(empty_database: URL) -> None:
    env = environment(KEYMAN_DATABASE_URL=empty_database.render_as_string(hide_password=False))
    for one in ("--management", "--resolver"):
        done = keyman("db", "upgrade", one, "somebody", env=env)
        assert done.code == 2
        assert "Give both --management and --resolver" in done.err
