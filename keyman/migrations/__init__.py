"""Migrations of the schema.

`tables()` names every table in one place, for Alembic and for anyone who wants to see the whole schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import MetaData, inspect, text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from keyman.audit.tables import audit_chains, audit_log
from keyman.errors import ConfigurationError, DatabaseUnavailable, raise_alone
from keyman.identity import tables as accounts_tables
from keyman.keys import tables as keys_tables
from keyman.keys.deployment import deployment
from keyman.keys.probe import probes
from keyman.migrations.rights import Planes, grant
from keyman.storage.connecting import PoolerFound, is_pooled
from keyman.storage.engine import STATEMENT_TIMEOUT, create_engine, create_private_file, transactional
from keyman.storage.faults import INSUFFICIENT_PRIVILEGE, DriverFault, is_outage, kind
from keyman.storage.transactions import Database
from keyman.storage.types import metadata

ADVISORY_LOCK = 0x6B65796D616E
"""The number of PostgreSQL's lock for migrations ("keyman" in ASCII), so that only one of two replicas migrates."""


SCHEMA_REFUSALS = (INSUFFICIENT_PRIVILEGE, "(3F000)")
"""SQLSTATEs of a user without rights to a schema, as they appear in the result of `kind`. 3F000: it can use none."""

DIRECT = (
    "Migrations need a direct connection to PostgreSQL, and this one goes through a pooler such as PgBouncer. Set "
    "KEYMAN_DATABASE_URL to the address of the server itself for this command."
)

PATIENCE = 600.0
"""Seconds that an upgrade waits for another one, on either database. Upgrading a large table takes long."""


def tables() -> MetaData:
    """Return the metadata of every table."""
    _ = (accounts_tables, keys_tables, audit_log, audit_chains, deployment, probes)
    return metadata


async def upgrade(url: URL, planes: Planes | None = None) -> tuple[str | None, str]:
    """Upgrade a database to the newest schema, in one transaction. Return the revisions before and after.

    With `planes`, the users of the planes get exactly their rights to the tables. Without it, rights do not change.

    Raises ConfigurationError or DatabaseUnavailable. The database is then unchanged.
    """
    create_private_file(url)
    if is_pooled(url):
        raise ConfigurationError(DIRECT)
    # SQLite ignores a change of `foreign_keys` within a transaction, so it is set when the connection is opened.
    bare = create_engine(url, statement_timeout=None, busy_timeout=PATIENCE, foreign_keys=False, poolclass=NullPool)
    engine = transactional(bare)
    with _report_faults("could not be upgraded"):
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(_upgrade, planes)
        finally:
            await engine.dispose()


async def differences(url: URL) -> list[str]:
    """Return the differences between a database and the schema of this code, one line for each.

    Raises DatabaseUnavailable.
    """
    if not Database(url).exists:
        return ["the database does not exist"]
    with _report_faults("could not be read"):
        try:
            return await _compare(url, pooled=is_pooled(url) is True)
        except PoolerFound:
            return await _compare(url, pooled=True)


async def _compare(url: URL, *, pooled: bool) -> list[str]:
    engine = create_engine(url, statement_timeout=STATEMENT_TIMEOUT, read_only=True, pooled=pooled, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_differences)
    finally:
        await engine.dispose()


@contextmanager
def _report_faults(what: str) -> Iterator[None]:
    try:
        yield
    except PoolerFound:
        raise_alone(ConfigurationError(DIRECT))
    except CommandError:
        # Alembic does not know the revision of the database.
        raise_alone(
            ConfigurationError(
                "A newer version of keyman has upgraded this database. Run that version, or restore an older backup."
            )
        )
    except ValueError:  # its text contains the stored value
        raise_alone(
            ConfigurationError(
                f"The database {what}: it contains a value that does not fit its column, so it was changed by hand. "
                "Restore a backup."
            )
        )
    except (SQLAlchemyError, DriverFault, OSError, TimeoutError) as fault:
        raise_alone(DatabaseUnavailable(f"The database {what}. {_cause(fault)} ({kind(fault)})"))


def _cause(fault: SQLAlchemyError | DriverFault | OSError) -> str:
    if isinstance(fault, IntegrityError):
        return "A stored row breaks a constraint of the new schema. Correct the row, or restore a backup."
    return "It cannot be reached, or is busy." if is_outage(fault) else "It refused a statement."


def newest_revision() -> str:
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # Alembic interpolates "%" in options, so it is escaped.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, planes: Planes | None) -> tuple[str | None, str]:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = {int(PATIENCE * 1000)}"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
    before = MigrationContext.configure(connection).get_current_revision()
    if connection.dialect.name == "sqlite":
        given = _sequences(connection)
        command.upgrade(_config(connection), "head")
        _keep_sequences(connection, given)
        _check_foreign_keys(connection)
    else:
        with _schema_rights_explained(connection):
            command.upgrade(_config(connection), "head")
    if planes is not None:
        grant(connection, planes)
    return before, newest_revision()


@contextmanager
def _schema_rights_explained(connection: Connection) -> Iterator[None]:
    """Raise ConfigurationError, with the GRANT, if the user cannot create tables in its schema on PostgreSQL.

    Since PostgreSQL 15, nobody but the owner of a database can create tables in its schema `public`.
    """
    row = connection.execute(
        text("SELECT current_schema(), current_user, has_schema_privilege(current_schema(), 'CREATE')")
    ).one()
    schema, user, may_create = row
    try:
        yield
    except SQLAlchemyError as fault:
        if may_create or not any(state in kind(fault) for state in SCHEMA_REFUSALS):
            raise
        quote = connection.dialect.identifier_preparer.quote
        raise_alone(
            ConfigurationError(
                "The database user cannot create tables in the schema. Since PostgreSQL 15, only the owner of a "
                "database can create them in the schema public. As this owner or as a superuser, run in this database: "
                f"GRANT USAGE, CREATE ON SCHEMA {quote(schema or 'public')} TO {quote(user)};"
            )
        )


def _sequences(connection: Connection) -> dict[str, int]:
    """Return the highest id that each table of SQLite has ever given to a row, by the table's name."""
    if not inspect(connection).has_table("sqlite_sequence"):
        return {}
    rows = connection.execute(text("SELECT name, seq FROM sqlite_sequence"))
    return {str(name): int(number) for name, number in rows}


def _keep_sequences(connection: Connection, given: Mapping[str, int]) -> None:
    """Restore the highest ids of SQLite's tables, so that no id is used a second time.

    A copied table continues after the highest id that it contains. Without this, a new row could get the id of a
    deleted one.
    """
    statement = text("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'")
    numbered = set(connection.execute(statement).scalars())
    now = _sequences(connection)
    for name in numbered & given.keys():
        if now.get(name, 0) < given[name]:
            connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": name})
            connection.execute(
                text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"),
                {"name": name, "seq": given[name]},
            )


def _check_foreign_keys(connection: Connection) -> None:
    """Check the foreign keys, which SQLite did not enforce during the upgrade. Raises ConfigurationError."""
    tables = sorted({str(row[0]) for row in connection.execute(text("PRAGMA foreign_key_check"))})
    if tables:
        raise ConfigurationError(
            f"The database could not be upgraded: {', '.join(tables)} would refer to rows that do not exist. Rows were "
            "deleted by hand. Restore a backup."
        )


def _differences(connection: Connection) -> list[str]:
    if not inspect(connection).get_table_names():
        return ["the database is empty"]
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    current, newest = context.get_current_revision(), newest_revision()
    if current != newest:
        return [f"the schema is at revision {current}, the newest is {newest}"]
    missing = {view.name for view in accounts_tables.VIEWS}.difference(inspect(connection).get_view_names())
    return [
        *(str(difference) for difference in compare_metadata(context, tables())),
        *(f"the view {name} is missing" for name in sorted(missing)),
    ]
