"""Applications that get keys, their tokens, and their columns in the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Copies of the types at this revision, so that a later change of keyman's own types does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)

ACTORS = "actor IN ('session', 'token', 'application', 'operator', 'anonymous')"


def upgrade() -> None:
    op.create_table(
        "applications",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("services", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("disabled_at", TIME, nullable=True),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_applications_name_present")),
        sa.CheckConstraint("length(services) > 0", name=op.f("ck_applications_services_present")),
        sa.PrimaryKeyConstraint("id", name="pk_applications"),
        sa.UniqueConstraint("name", name="uq_applications_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "application_tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("application_id", ID, nullable=False),
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.CheckConstraint("length(token_hash) = 32", name=op.f("ck_application_tokens_token_hash_is_sha256")),
        sa.ForeignKeyConstraint(
            ["application_id"],
            ["applications.id"],
            name="fk_application_tokens_application_id_applications",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_application_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_application_tokens_token_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_application_tokens_application_id", "application_tokens", ["application_id"], unique=False)

    # SQLite changes a constraint by copying the table.
    with op.batch_alter_table("audit_log", table_kwargs={"sqlite_autoincrement": True}) as trail:
        trail.add_column(sa.Column("application", sa.String(length=64), nullable=True))
        trail.add_column(sa.Column("purpose", sa.String(length=200), nullable=True))
        trail.add_column(sa.Column("reason", sa.String(length=32), nullable=True))
        trail.drop_constraint(op.f("ck_audit_log_actor_known"), type_="check")
        trail.create_check_constraint(op.f("ck_audit_log_actor_known"), ACTORS)
