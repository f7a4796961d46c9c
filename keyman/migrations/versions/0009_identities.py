"""Users come with identities: from an identity provider, from a JWT, or from a portal link of an application.

Such a user has no e-mail address and no password, so these columns of `users` allow null from now on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

# Copies of the types at this revision, so that a later change of keyman's own types does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _change_users_on_sqlite()
    else:
        _change_users_on_postgresql()
    _create_identities(
        "identities",
        sa.Column("email", sa.String(254)),
        sa.Column("name", sa.String(255)),
        sa.CheckConstraint("issuer NOT LIKE 'keyman:%'", name=op.f("ck_identities_issuer_is_outside")),
    )
    _create_identities("application_identities")
    _change_applications()
    _change_sessions()
    _create_portal_links()
    _create_provider_visits()


def _change_users_on_sqlite() -> None:
    """Copy the table, because SQLite cannot drop NOT NULL. Foreign keys are off and checked after the upgrade."""
    op.execute("""\
CREATE TABLE users_copy (
    id INTEGER NOT NULL,
    email VARCHAR(254),
    email_key VARCHAR(762),
    password_hash VARCHAR(255),
    created_at DATETIME NOT NULL,
    disabled_at DATETIME,
    share_lock SMALLINT,
    shown_email VARCHAR(254),
    shown_name VARCHAR(255),
    erased_at DATETIME,
    has_password BOOLEAN GENERATED ALWAYS AS (password_hash IS NOT NULL) STORED,
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_email_key UNIQUE (email_key),
    CONSTRAINT fk_users_id_owners FOREIGN KEY (id) REFERENCES owners (id),
    CONSTRAINT ck_users_email_present CHECK (length(email) > 2),
    CONSTRAINT ck_users_share_lock_unused CHECK (share_lock IS NULL)
)""")
    kept = "id, email, email_key, password_hash, created_at, disabled_at"
    op.execute(f"INSERT INTO users_copy ({kept}) SELECT {kept} FROM users")  # noqa: S608  # a constant
    op.execute("DROP TABLE users")
    op.execute("ALTER TABLE users_copy RENAME TO users")


def _change_users_on_postgresql() -> None:
    for column in ("email", "email_key", "password_hash"):
        op.execute(f"ALTER TABLE users ALTER COLUMN {column} DROP NOT NULL")
    op.add_column("users", sa.Column("shown_email", sa.String(254)))
    op.add_column("users", sa.Column("shown_name", sa.String(255)))
    op.add_column("users", sa.Column("erased_at", TIME))
    op.add_column(
        "users", sa.Column("has_password", sa.Boolean(), sa.Computed("password_hash IS NOT NULL", persisted=True))
    )


def _create_identities(name: str, *more: sa.Column[str] | sa.CheckConstraint) -> None:
    op.create_table(
        name,
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        *more,
        sa.CheckConstraint("length(subject) > 0", name=op.f(f"ck_{name}_subject_present")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=f"fk_{name}_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=f"pk_{name}"),
        sa.UniqueConstraint("issuer", "subject", name=f"uq_{name}_issuer_subject"),
        sqlite_autoincrement=True,
    )
    op.create_index(f"ix_{name}_user_id", name, ["user_id"])


def _change_applications() -> None:
    op.add_column("applications", sa.Column("portal", sa.Boolean(), nullable=False, server_default=sa.false()))
    for column in (
        sa.Column("issuers", sa.Text()),
        sa.Column("return_urls", sa.Text()),
        sa.Column("jwt_issuer", sa.String(500)),
        sa.Column("jwt_subject", sa.String(255)),
        sa.Column("jwt_audience", sa.String(255)),
        sa.Column("jwt_jwks_url", sa.String(2048)),
        sa.Column("jwt_jwks", sa.Text()),
    ):
        op.add_column("applications", column)
    op.create_index("ix_applications_jwt", "applications", ["jwt_issuer", "jwt_subject", "jwt_audience"], unique=True)


def _change_sessions() -> None:
    # SQLite copies the table, because it cannot add a foreign key to one.
    with op.batch_alter_table("sessions", table_kwargs={"sqlite_autoincrement": True}) as sessions:
        sessions.add_column(sa.Column("identity_id", ID))
        sessions.add_column(sa.Column("provider_session", sa.String(255)))
        sessions.add_column(sa.Column("application_id", ID))
        sessions.add_column(sa.Column("person", sa.String(255)))
        sessions.add_column(sa.Column("return_url", sa.String(2048)))
        sessions.create_foreign_key("fk_sessions_identity_id_identities", "identities", ["identity_id"], ["id"])
        sessions.create_foreign_key(
            "fk_sessions_application_id_applications", "applications", ["application_id"], ["id"]
        )
        sessions.create_index("ix_sessions_identity_id", ["identity_id"])
        sessions.create_index("ix_sessions_application_id", ["application_id"])


def _create_portal_links() -> None:
    op.create_table(
        "portal_links",
        sa.Column("id", ID, nullable=False),
        sa.Column("code_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("application_id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("name", sa.String(255)),
        sa.Column("return_url", sa.String(2048), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint("length(code_hash) = 32", name=op.f("ck_portal_links_code_hash_is_sha256")),
        sa.ForeignKeyConstraint(
            ["application_id"], ["applications.id"], name="fk_portal_links_application_id_applications"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_portal_links_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_portal_links"),
        sa.UniqueConstraint("code_hash", name="uq_portal_links_code_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_portal_links_user_id", "portal_links", ["user_id"])
    op.create_index("ix_portal_links_expires_at", "portal_links", ["expires_at"])


def _create_provider_visits() -> None:
    op.create_table(
        "provider_visits",
        sa.Column("state_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("browser_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("verifier", sa.String(128), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("session_id", ID),
        sa.Column("next", sa.String(2048)),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint(
            "length(state_hash) = 32 AND length(browser_hash) = 32", name=op.f("ck_provider_visits_hashes_are_sha256")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_provider_visits_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("state_hash", name="pk_provider_visits"),
    )
    op.create_index("ix_provider_visits_session_id", "provider_visits", ["session_id"])
    op.create_index("ix_provider_visits_expires_at", "provider_visits", ["expires_at"])
    op.create_table(
        "logout_tokens",
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint("length(token_hash) = 32", name=op.f("ck_logout_tokens_token_hash_is_sha256")),
        sa.PrimaryKeyConstraint("token_hash", name="pk_logout_tokens"),
    )
    op.create_index("ix_logout_tokens_expires_at", "logout_tokens", ["expires_at"])
