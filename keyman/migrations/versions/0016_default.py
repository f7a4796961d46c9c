"""A key can be the default of its owner for its service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("is_default", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(
        "uq_api_keys_default",
        "api_keys",
        ["owner_id", "service"],
        unique=True,
        sqlite_where=sa.text("is_default = 1"),
        postgresql_where=sa.text("is_default"),
    )
