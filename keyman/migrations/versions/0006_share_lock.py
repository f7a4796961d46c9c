"""A column that is never written. The right to UPDATE it is the right to lock a row, and to change nothing in it."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for table in ("users", "applications"):
        # In SQL, because Alembic cannot add a column with a constraint to a table of SQLite without copying it.
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN share_lock SMALLINT"
            f" CONSTRAINT ck_{table}_share_lock_unused CHECK (share_lock IS NULL)"
        )
