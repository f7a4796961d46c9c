"""On PostgreSQL, half of each new page of keys stays free, so that a row is changed within its page.

A change within the page writes to none of the indexes of the table. Every key is changed: it is used, checked and
rewrapped. A rewrap changes all rows of a page at once, so each row needs its size again. Without the room, the first
rewrap makes the table as large, and each index, too. Pages that exist stay as they are.
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE api_keys SET (fillfactor = 50)")
