"""The oldest key with the same value is found by one row of an index, however many keys have that value."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.drop_index("ix_api_keys_fingerprint", "api_keys")
    op.create_index(
        "ix_api_keys_fingerprint",
        "api_keys",
        ["owner_id", "fingerprint", "id"],
        sqlite_where=sa.text("fingerprint IS NOT NULL"),
        postgresql_where=sa.text("fingerprint IS NOT NULL"),
    )
