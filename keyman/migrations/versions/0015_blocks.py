"""Owners can block an application for their keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

# Copies of the types at this revision, so that a later change of keyman's own types does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "application_blocks",
        sa.Column("user_id", ID, nullable=False),
        sa.Column("application_id", ID, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name="fk_application_blocks_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["application_id"], ["applications.id"], name="fk_application_blocks_application_id_applications"
        ),
        sa.PrimaryKeyConstraint("user_id", "application_id", name="pk_application_blocks"),
    )
    op.add_column("users", sa.Column("has_blocks", sa.Boolean(), nullable=False, server_default=sa.false()))
