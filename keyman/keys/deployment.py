"""The row that identifies the deployment of this database and contains the sentinel.

The uuid is part of every context, so that a ciphertext of one deployment does not open in another one with the same
Transit key. The sentinel is a ciphertext of a known word: as long as Vault rewraps it, Vault's key is the one that
sealed this database.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Column,
    Integer,
    String,
    Table,
    Text,
    Uuid,
    bindparam,
    column,
    inspect,
    select,
    table,
    update,
)
from sqlalchemy.engine import Connection

from keyman.errors import ConfigurationError
from keyman.keys.tables import api_keys
from keyman.storage.statements import Command, optional, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.storage.types import UtcTime, metadata

SCHEMA_REVISION = "0021"
"""The migration that this code needs. A test compares it with the newest file in `migrations/`."""

deployment = Table(
    "deployment",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("uuid", Uuid, nullable=False),
    Column("sentinel", Text),
    Column("created_at", UtcTime, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)


_UUID = scalar(select(deployment.c.uuid), UUID)
_SENTINEL = optional(select(deployment.c.sentinel), str)
_KEEP = Command(
    update(deployment)
    .where(deployment.c.sentinel.is_(None), ~select(api_keys.c.id).exists())
    .values(sentinel=bindparam("ciphertext"))
)
_REPLACE = Command(
    update(deployment).where(deployment.c.sentinel == bindparam("before")).values(sentinel=bindparam("ciphertext"))
)


class Deployment:
    """The uuid of the deployment, and the storage of its sentinel."""

    def __init__(self, db: Database, uuid: UUID) -> None:
        self.uuid = uuid
        self._db = db
        self._sentinel: str | None = None

    @classmethod
    async def load(cls, db: Database) -> Deployment:
        """Load the deployment.

        Raises ConfigurationError, with the command to run, if the database does not have the schema of this code.
        """
        if not db.exists:
            raise ConfigurationError("The database does not exist yet. Run: keyman db upgrade")
        async with db.read() as connection:
            revision = await connection.run_sync(_stored_revision)
            if revision is None:
                raise ConfigurationError("The database is empty. Run: keyman db upgrade")
            if revision != SCHEMA_REVISION:
                raise ConfigurationError(
                    f"The database has schema {revision}, but this version of keyman needs {SCHEMA_REVISION}. Run: "
                    "keyman db upgrade (or, if a newer version has upgraded the database, start that version)"
                )
            uuid = await _UUID.one(connection)
        return cls(db, uuid)

    async def sentinel(self, *, refresh: bool = False) -> str | None:
        """Return the stored sentinel, or None. It is read only once, unless `refresh` is set."""
        if self._sentinel is None or refresh:
            async with self._db.read() as connection:
                self._sentinel = await _SENTINEL.one(connection)
        return self._sentinel

    async def store_sentinel(self, ciphertext: str) -> str | None:
        """Store the sentinel unless there is one, and return the stored one.

        A database with keys and without a sentinel was tampered with or restored in part. Then this stores nothing and
        returns None, because Vault's current key may not be the one that sealed the keys.
        """
        async with self._db.write(Unchecked.KEYMAN) as connection:
            await _KEEP.execute(connection, ciphertext=ciphertext)
        return await self.sentinel()

    async def replace_sentinel(self, before: str, ciphertext: str) -> None:
        """Store the rewrapped sentinel, unless another process has already replaced `before`."""
        async with self._db.write(Unchecked.KEYMAN) as connection:
            await _REPLACE.execute(connection, before=before, ciphertext=ciphertext)


def _stored_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version = table("alembic_version", column("version_num", String))
    return connection.execute(select(version.c.version_num)).scalar_one_or_none()
