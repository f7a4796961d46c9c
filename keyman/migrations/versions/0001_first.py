"""The first schema: accounts, sessions, tokens, keys and the tables around them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Copies of the types at this revision, so that a later change of keyman's own types does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("uuid", sa.Uuid(), nullable=False),
        sa.Column("sentinel", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_deployment_one_row")),
        sa.PrimaryKeyConstraint("id", name="pk_deployment"),
    )
    op.create_table(
        "throttle",
        sa.Column("bucket", sa.LargeBinary(length=32), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_throttle_attempts_not_negative")),
        sa.PrimaryKeyConstraint("bucket", name="pk_throttle"),
    )
    op.create_index("ix_throttle_ends_at", "throttle", ["ends_at"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", ID, nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("email_key", sa.String(length=762), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("disabled_at", TIME, nullable=True),
        sa.CheckConstraint("length(email) > 2", name=op.f("ck_users_email_present")),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email_key", name="uq_users_email_key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("service", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("name_folded", sa.String(length=400), nullable=True),
        sa.Column("encrypted_key", sa.Text(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("value_uuid", sa.Uuid(), nullable=False),
        sa.Column("last_4_chars", sa.String(length=64), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("undecryptable", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("last_used_by", sa.String(length=100), nullable=True),
        sa.CheckConstraint("encrypted_key LIKE 'vault:v%'", name=op.f("ck_api_keys_encrypted_key_is_sealed")),
        sa.CheckConstraint("key_version > 0", name=op.f("ck_api_keys_key_version_positive")),
        sa.CheckConstraint("length(service) > 0", name=op.f("ck_api_keys_service_present")),
        sa.CheckConstraint("updated_at >= created_at", name=op.f("ck_api_keys_updated_after_created")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_api_keys_user_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("value_uuid", name="uq_api_keys_value_uuid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_api_keys_owner", "api_keys", ["user_id", "id"], unique=False)
    op.create_index("ix_api_keys_owner_service", "api_keys", ["user_id", "service", "id"], unique=False)
    op.create_table(
        "api_tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", sa.String(length=200), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.CheckConstraint("length(scopes) > 0", name=op.f("ck_api_tokens_scopes_present")),
        sa.CheckConstraint("length(token_hash) = 32", name=op.f("ck_api_tokens_token_hash_is_sha256")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_api_tokens_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_api_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_api_tokens_token_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_api_tokens_user_id", "api_tokens", ["user_id"], unique=False)
    op.create_table(
        "audit_log",
        sa.Column("id", ID, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user_id", ID, nullable=True),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("actor_id", ID, nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("token_id", ID, nullable=True),
        sa.Column("key_id", ID, nullable=True),
        sa.Column("service", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.CheckConstraint(
            "actor IN ('session', 'token', 'operator', 'anonymous')", name=op.f("ck_audit_log_actor_known")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_audit_log_user_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_owner", "audit_log", ["user_id", "id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("user_id", ID, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_idempotency_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "key_hash", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("id_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint("length(id_hash) = 32", name=op.f("ck_sessions_id_hash_is_sha256")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.UniqueConstraint("id_hash", name="uq_sessions_id_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_last_seen_at", "sessions", ["last_seen_at"], unique=False)
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"], unique=False)
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"], unique=False)

    deployment = sa.table("deployment", sa.column("id"), sa.column("uuid", sa.Uuid), sa.column("created_at", TIME))
    op.execute(sa.insert(deployment).values(id=1, uuid=uuid4(), created_at=datetime.now(UTC)))
