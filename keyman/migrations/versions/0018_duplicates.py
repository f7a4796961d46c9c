"""A key has a fingerprint of its value, which shows that its owner has stored the same value before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("fingerprint", sa.LargeBinary(32)))
    op.create_index(
        "ix_api_keys_fingerprint",
        "api_keys",
        ["owner_id", "fingerprint"],
        sqlite_where=sa.text("fingerprint IS NOT NULL"),
        postgresql_where=sa.text("fingerprint IS NOT NULL"),
    )
