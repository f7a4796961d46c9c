"""`keyman.keys.erasure`: what a deletion leaves behind, table by table and byte by byte.

The route and the page are tested in tests/planes/management, and requests under way in
tests/planes/resolver/test_interleavings.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import Table, insert, select
from sqlalchemy.engine import URL

from keyman import migrations
from keyman.audit import verification
from keyman.audit.entries import NO_VALUE, Action
from keyman.audit.tables import audit_log
from keyman.errors import Conflict, NotFound
from keyman.identity import identities, limits, personal_tokens, users
from keyman.identity.identities import Identity
from keyman.identity.passwords import Passwords
from keyman.identity.tables import application_identities
from keyman.identity.tables import identities as identities_table
from keyman.identity.tables import users as users_table
from keyman.identity.tokens import DEFAULT_SCOPES
from keyman.ids import UserId
from keyman.keys import erasure
from keyman.keys.deployment import Deployment
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, NewPassword, RequiredLabel, RowNumber, Subject
from tests.support import rows
from tests.support.database import PostgresServer
from tests.support.rows import AnyRow

pytestmark = pytest.mark.anyio

OF_NOBODY = {
    "application_tokens": "of an application",
    "applications": "of an operator",
    "audit_chains": "the ends of the chains",
    "audit_log": "numbers, client addresses and purposes: they stay until they are pruned",
    "deployment": "of the database",
    "logout_tokens": "hashes of what a provider sent, without a user",
    "owners": "the number only, so that it is not given again",
    "probes": "of a plane",
    "user_audiences": "of an operator",
}
"""The tables from which a deletion erases nothing, and whose they are. Think about it before you add one."""

OF_USER = ("user_id", "owner_id")


async def filled(db: Database) -> UserId:
    """A user with a row in every table that can have one."""
    made: dict[str, int | None] = {}
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await rows.add(connection, "users")
        assert user_id is not None
        made["applications"] = await rows.add(connection, "applications")
        for table in migrations.tables().sorted_tables:
            if table.name in (*OF_NOBODY, "users", "throttle"):
                continue
            values: dict[str, Any] = {name: user_id for name in OF_USER if name in table.c}
            if "application_id" in table.c:
                values["application_id"] = made["applications"]
            for name in ("session_id", "identity_id"):
                if name in table.c:
                    values[name] = made[f"{name.removesuffix('_id')}s".replace("identitys", "identities")]
            made[table.name] = await rows.add(connection, table.name, **values)
        found = (await connection.execute(select(users_table.c.email_key).where(users_table.c.id == user_id))).scalar()
        buckets = [*limits.login_buckets(str(found), None), *limits.password_buckets(UserId(user_id), None)]
        for bucket in (*(one.digest for one in buckets), b"failed sign-ins of user:" + user_id.to_bytes(8, "big")):
            await rows.add(connection, "throttle", bucket=bucket)
    return UserId(user_id)


async def everything(db: Database, table: Table) -> Sequence[AnyRow]:
    async with db.read() as connection:
        return (await connection.execute(select(table).order_by(*table.primary_key.columns))).all()


async def test_a_deletion_leaves_no_row_of_a_person_in_any_table(db: Database) -> None:
    erased, other = await filled(db), await filled(db)
    tables = migrations.tables().sorted_tables
    before = {table.name: await everything(db, table) for table in tables}
    await erasure.delete_any(db, RowNumber(erased))
    for table in tables:
        after = await everything(db, table)
        if table.name in OF_NOBODY or table.name == "users":
            continue
        assert len(before[table.name]) == 2 * len(after) > 0, table.name
        assert all(row in before[table.name] for row in after), table.name
        names = [name for name in OF_USER if name in table.c]
        assert {getattr(row, name) for row in after for name in names} <= {other}, table.name


def test_tables_that_are_kept_refer_to_no_user() -> None:
    tables = migrations.tables().tables
    for name in OF_NOBODY.keys() - {"audit_log"}:
        assert not [key for key in tables[name].foreign_keys if key.column.table is users_table], name


async def test_the_row_of_the_user_keeps_its_number_and_times_only(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await rows.add(connection, "users", shown_email="ada@example.org", shown_name="Ada", has_blocks=True)
    assert user_id is not None
    await erasure.delete_any(db, RowNumber(user_id))
    (row,) = await everything(db, users_table)
    kept = {name: value for name, value in row._asdict().items() if value is not None}
    assert [kept.pop(name) for name in ("has_password", "has_blocks")] == [False, False]
    assert kept.keys() == {"id", "created_at", "disabled_at", "erased_at"}
    assert kept["disabled_at"] == kept["erased_at"] > kept["created_at"]


async def test_the_audit_log_says_that_each_key_and_the_account_are_deleted_and_still_verifies(db: Database) -> None:
    user_id = await filled(db)
    keys = [row.id for row in await everything(db, api_keys)]
    await erasure.delete_any(db, RowNumber(user_id))
    entries = [row for row in await everything(db, audit_log) if row.user_id == user_id]
    assert [(row.action, row.key_id, row.value_uuid) for row in entries] == [
        *((Action.KEY_DELETE, key, NO_VALUE) for key in keys),
        (Action.ACCOUNT_DELETE, None, None),
    ]
    assert {row.actor for row in entries} == {"operator"}
    assert not (await verification.verify(db, (await Deployment.load(db)).uuid)).breaks


async def test_a_number_is_never_given_again(db: Database, quick_passwords: PasswordHasher) -> None:
    first = await users.add(db, Passwords(quick_passwords), EmailAddress("ada@example.com"), NewPassword("x" * 10))
    await erasure.delete_any(db, RowNumber(first.id))
    restarted = Database(db._url)
    try:
        again = await users.add(
            restarted, Passwords(quick_passwords), EmailAddress("ada@example.com"), NewPassword("x" * 10)
        )
    finally:
        await restarted.close()
    assert again.id > first.id


@pytest.mark.parametrize("table", [identities_table, application_identities], ids=["outside", "application"])
async def test_a_later_sign_in_of_the_same_identity_makes_a_new_empty_user(db: Database, table: Table) -> None:
    identity = Identity("https://id.example.com", Subject("user-42"))
    if table is application_identities:
        identity = Identity("keyman:app:shop", Subject("user-42"))

    async def come() -> identities.Known:
        async with db.write(Unchecked.SIGN_IN) as connection:
            return await identities.find_or_create(connection, identity, table)

    before = await come()
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(
            insert(api_keys).values(rows.row("api_keys", user_id=before.user_id, owner_id=before.user_id))
        )
    assert await erasure.delete_any(db, identity) == before.user_id
    after = await come()
    assert after.is_new
    assert after.user_id > before.user_id
    assert await everything(db, api_keys) == []


async def test_a_disabled_account_is_deleted_only_with_its_ban(db: Database) -> None:
    user_id = RowNumber(await filled(db))
    await users.disable(db, user_id)
    before = {table.name: await everything(db, table) for table in migrations.tables().sorted_tables}
    with pytest.raises(Conflict, match="--forget-ban"):
        await erasure.delete_any(db, user_id)
    assert {table.name: await everything(db, table) for table in migrations.tables().sorted_tables} == before
    await erasure.delete_any(db, user_id, forget_ban=True)
    assert await everything(db, api_keys) == []


async def test_a_deleted_account_is_not_there_for_an_operator(db: Database) -> None:
    user_id = RowNumber(await filled(db))
    await erasure.delete_any(db, user_id)
    for refused in (users.enable(db, user_id), users.disable(db, user_id), erasure.delete_any(db, user_id)):
        with pytest.raises(NotFound):
            await refused
    assert await users.list_all(db) == []
    (row,) = await everything(db, users_table)
    assert row.disabled_at is not None


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("Ada@example.com", "ada@Example.com", "grace@example.com"),
        ("Änne@Müller.example", "äNNE@mÜLLER.EXAMPLE", "anne@müller.example"),
        ("änne@example.com", "A\N{COMBINING DIAERESIS}nne@example.com", "a@example.com"),
        ("Straße@example.com", "STRASSE@example.com", "strase@example.com"),
        ("ΣΟΦΟΣ@example.com", "σοφος@example.com", "σοφια@example.com"),
    ],
)
async def test_a_choice_between_this_account_and_a_new_one_is_erased(
    db: Database, address: str, same: str, other: str
) -> None:
    parsed = EmailAddress.parse(address)
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await rows.add(connection, "users", email=str(parsed), email_key=parsed.key)
        for email in (same, other, None):
            await rows.add(connection, "provider_visits", email=email, subject="s")
    assert user_id is not None
    await erasure.delete_any(db, RowNumber(user_id))
    left = await everything(db, rows.table("provider_visits"))
    assert {row.email for row in left} == {other, None}


async def test_unknown_accounts_are_not_found(db: Database) -> None:
    for whom in (
        EmailAddress("nobody@example.com"),
        RowNumber(2**63 - 1),
        Identity("https://id.example.com", Subject("nobody")),
    ):
        with pytest.raises(NotFound):
            await erasure.delete_any(db, whom)


async def test_a_dump_holds_neither_the_address_nor_a_ciphertext(
    db: Database, quick_passwords: PasswordHasher, request: pytest.FixtureRequest
) -> None:
    """The keys of both users lie in the same pages, so that erased rows have neighbours that stay."""
    secret = "wXyZsecretciphertext"
    made = [
        (await users.add(db, Passwords(quick_passwords), EmailAddress(f"{name}@example.com"), NewPassword("x" * 10))).id
        for name in ("erased-person", "kept-person")
    ]
    await personal_tokens.create_for(
        db, EmailAddress("erased-person@example.com"), RequiredLabel("tok"), DEFAULT_SCOPES
    )
    async with db.write(Unchecked.OPERATOR) as connection:
        for n in range(300):
            whose = made[n % 2]
            sealed = f"vault:v1:{secret if n % 2 == 0 else 'kept'}{n}{'A' * (n % 7) * 300}"
            await rows.add(
                connection,
                "api_keys",
                user_id=whose,
                owner_id=whose,
                encrypted_key=sealed,
                name=f"label-{whose}",
                name_folded=f"label-{whose}",
            )
        await rows.add(connection, "identities", user_id=made[0], subject="erased-subject")
        await rows.add(connection, "idempotency", user_id=made[0], response=f"answer-of-{made[0]}")
    wanted = [secret, "erased-person", "erased-subject", f"answer-of-{made[0]}", f"label-{made[0]}"]
    before = dump_of(db, request)
    assert [text for text in wanted if text in before] == wanted
    await erasure.delete_any(db, RowNumber(made[0]))
    rows_left = repr([await everything(db, table) for table in migrations.tables().sorted_tables])
    for found in (rows_left, dump_of(db, request)):
        assert "kept-person" in found
        assert not [text for text in wanted if text in found]
    assert not db.is_sqlite or wal_of(Path(str(db._url.database))).stat().st_size == 0


def dump_of(db: Database, request: pytest.FixtureRequest) -> str:
    """The bytes of a SQLite database and its `-wal` file, or what the real `pg_dump` writes."""
    name = str(db._url.database)
    if db.is_sqlite:
        return (Path(name).read_bytes() + wal_of(Path(name)).read_bytes()).decode("latin-1")
    server: PostgresServer = request.getfixturevalue("postgres")
    if not server.can_dump:
        pytest.skip("PostgreSQL is there without pg_dump")
    return server.dump(name)


def wal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def content_of(file: Path) -> bytes:
    """The bytes of a SQLite database, whose `-wal` file must be empty."""
    assert wal_of(file).stat().st_size == 0
    return file.read_bytes()


async def test_a_reader_in_the_way_only_delays_the_truncation(sqlite: URL, quick_passwords: PasswordHasher) -> None:
    db, reader = Database(sqlite), Database(sqlite)
    try:
        account = await users.add(
            db, Passwords(quick_passwords), EmailAddress("erased-person@example.com"), NewPassword("x" * 10)
        )
        file = Path(str(sqlite.database))
        async with reader.read() as connection:
            await connection.exec_driver_sql("BEGIN")
            await connection.exec_driver_sql("SELECT count(*) FROM users")
            await erasure.delete_any(db, RowNumber(account.id))
            with pytest.raises(AssertionError):
                content_of(file)
            await connection.exec_driver_sql("COMMIT")
        await db.truncate_log()
        assert b"erased-person" not in content_of(file)
    finally:
        await reader.close()
        await db.close()
