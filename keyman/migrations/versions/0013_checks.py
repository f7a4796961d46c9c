"""A key has the verdict of its last live check, and an application can be the one that asks the gateway for checks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("check_verdict", sa.String(length=16)))
    op.add_column("api_keys", sa.Column("checked_at", sa.DateTime(timezone=True)))
    op.add_column("api_keys", sa.Column("check_detail", sa.String(length=200)))
    op.add_column("api_keys", sa.Column("checked_by", sa.String(length=64)))
    op.add_column("applications", sa.Column("checks", sa.Boolean(), nullable=False, server_default=sa.false()))
