"""What keys and tokens were called before they were renamed, replaced or deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

# Copies of the types at this revision, so that a later change of keyman's own types does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "key_labels",
        sa.Column("id", ID, nullable=False),
        sa.Column("key_id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("label", sa.String(100)),
        sa.Column("mask", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_key_labels_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_key_labels"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_key_labels_user_id", "key_labels", ["user_id"])
    op.create_index("ix_key_labels_key", "key_labels", ["key_id", "until"])
    op.create_table(
        "token_labels",
        sa.Column("token_id", ID, autoincrement=False, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_token_labels_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_id", name="pk_token_labels"),
    )
    op.create_index("ix_token_labels_user_id", "token_labels", ["user_id"])
