"""A key belongs to an owner. Every user is an owner with the same id. From now on `owners` generates these ids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# A copy of the type at this revision, so that a later change of keyman's own type does not change this migration.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "owners",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.CheckConstraint("length(kind) > 0", name=op.f("ck_owners_kind_present")),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO owners (id, kind) SELECT id, 'user' FROM users")
    if op.get_bind().dialect.name == "sqlite":
        _hand_numbers_over_on_sqlite()
    else:
        _hand_numbers_over_on_postgresql()

    op.add_column("api_keys", sa.Column("owner_id", ID, nullable=True))
    op.execute("UPDATE api_keys SET owner_id = user_id")
    # SQLite changes a column by copying the table, and its indexes with it.
    op.drop_index("ix_api_keys_owner", "api_keys")
    op.drop_index("ix_api_keys_owner_service", "api_keys")
    with op.batch_alter_table("api_keys", table_kwargs={"sqlite_autoincrement": True}) as keys:
        keys.alter_column("owner_id", existing_type=ID, nullable=False)
        keys.create_foreign_key("fk_api_keys_owner_id_owners", "owners", ["owner_id"], ["id"])
    op.create_index("ix_api_keys_owner", "api_keys", ["owner_id", "id"], unique=False)
    op.create_index("ix_api_keys_owner_service", "api_keys", ["owner_id", "service", "id"], unique=False)


def _hand_numbers_over_on_sqlite() -> None:
    """Let the ids of `owners` continue after the highest id that a user ever had, even a deleted one.

    An empty table has no sequence.
    """
    op.execute("DELETE FROM sqlite_sequence WHERE name = 'owners'")
    op.execute("INSERT INTO sqlite_sequence (name, seq) SELECT 'owners', seq FROM sqlite_sequence WHERE name = 'users'")
    # The copied table has no AUTOINCREMENT. The foreign key refuses a user whose id is not the id of an owner.
    with op.batch_alter_table("users", recreate="always") as users:
        users.create_foreign_key("fk_users_id_owners", "owners", ["id"], ["id"])


def _hand_numbers_over_on_postgresql() -> None:
    """Let the ids of `owners` continue after the highest id that a user ever had, even a deleted one."""
    op.execute("SELECT setval('owners_id_seq', last_value, is_called) FROM users_id_seq")
    op.execute("ALTER TABLE users ALTER COLUMN id DROP DEFAULT")
    op.execute("DROP SEQUENCE users_id_seq")
    op.create_foreign_key("fk_users_id_owners", "users", "owners", ["id"], ["id"])
