"""Audit entries are chained by hashes, and name the current value of each key.

Existing entries are chained in their order, all in the first chain.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC
from uuid import UUID

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# A copy of keyman.audit.chain at this revision.
FIELDS = (
    *("id", "at", "user_id", "actor", "actor_id", "action", "token_id", "key_id", "service"),
    *("request_id", "address", "application", "purpose", "reason"),
)

BATCH = 1000
"""The number of entries that are read, and written, at a time."""


def upgrade() -> None:
    connection = op.get_bind()
    op.create_table(
        "audit_chains",
        sa.Column("chain", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("base_sequence", sa.BigInteger(), nullable=False),
        sa.Column("base_hash", sa.LargeBinary(length=32), nullable=False),
        sa.CheckConstraint(
            "base_sequence >= 0 AND sequence >= base_sequence", name=op.f("ck_audit_chains_ends_in_order")
        ),
        sa.CheckConstraint(
            "length(hash) = 32 AND length(base_hash) = 32", name=op.f("ck_audit_chains_hashes_are_sha256")
        ),
        sa.PrimaryKeyConstraint("chain", name="pk_audit_chains"),
        postgresql_with={"fillfactor": 10},
    )
    for column in (
        sa.Column("value_uuid", sa.Uuid(), nullable=True),
        sa.Column("as_of", ID, nullable=True),
        sa.Column("vault_request_id", sa.String(length=64), nullable=True),
        sa.Column("detail", sa.String(length=200), nullable=True),
        sa.Column("chain", sa.Integer(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=True),
    ):
        op.add_column("audit_log", column)

    deployment = connection.execute(sa.text("SELECT uuid FROM deployment")).scalar_one()
    beginnings = [_genesis(UUID(str(deployment)), n) for n in range(1 if connection.dialect.name == "sqlite" else 32)]
    _name_current_values(connection)
    count, last = _chain(connection, beginnings[0])
    chains = sa.table(
        "audit_chains",
        *(sa.column(name) for name in ("chain", "sequence", "hash", "base_sequence", "base_hash")),
    )
    connection.execute(
        sa.insert(chains),
        [
            {
                "chain": n,
                "sequence": count if n == 0 else 0,
                "hash": last if n == 0 else beginning,
                "base_sequence": 0,
                "base_hash": beginning,
            }
            for n, beginning in enumerate(beginnings)
        ],
    )

    # SQLite changes a column by copying the table.
    with op.batch_alter_table("audit_log", table_kwargs={"sqlite_autoincrement": True}) as trail:
        for name, kind in (
            ("chain", sa.Integer()),
            ("sequence", sa.BigInteger()),
            ("hash", sa.LargeBinary(length=32)),
        ):
            trail.alter_column(name, existing_type=kind, nullable=False)
        trail.create_check_constraint(op.f("ck_audit_log_hash_is_sha256"), "length(hash) = 32")
    op.create_index("ix_audit_log_owner_action", "audit_log", ["user_id", "action", "id"], unique=False)
    op.create_index("ix_audit_log_at", "audit_log", ["at"], unique=False)
    op.create_index("ix_audit_log_uses", "audit_log", ["key_id", "action", "application", "at"], unique=False)
    op.create_index("ix_audit_log_chain", "audit_log", ["chain", "sequence"], unique=True)
    op.create_index(
        "ix_audit_log_value",
        "audit_log",
        ["key_id", "as_of"],
        postgresql_where=sa.text("value_uuid IS NOT NULL"),
        sqlite_where=sa.text("value_uuid IS NOT NULL"),
    )


def _genesis(deployment: UUID, chain: int) -> bytes:
    return hashlib.sha256(f"keyman audit|v1|{deployment}|{chain}".encode()).digest()


LOG = sa.table(
    "audit_log",
    sa.column("at", sa.DateTime(timezone=True)),
    *(sa.column(name) for name in FIELDS if name != "at"),
    sa.column("value_uuid", sa.Uuid()),
    sa.column("as_of"),
    sa.column("chain"),
    sa.column("sequence"),
    sa.column("hash", sa.LargeBinary()),
)


def _name_current_values(connection: sa.Connection) -> None:
    """Add the key's current value to the newest entry of each key that stored a value.

    If somebody has removed that entry of a key, no entry names its current value, so the key must be stored again.
    """
    connection.execute(
        sa.text(
            "UPDATE audit_log SET value_uuid = (SELECT value_uuid FROM api_keys WHERE api_keys.id = audit_log.key_id) "
            "WHERE id IN (SELECT max(id) FROM audit_log WHERE action IN ('key.create', 'key.replace') GROUP BY key_id)"
        )
    )
    connection.execute(sa.update(LOG).where(LOG.c.action == "key.delete").values(value_uuid=UUID(int=0)))
    connection.execute(sa.update(LOG).where(LOG.c.value_uuid.is_not(None)).values(as_of=LOG.c.id))


def _chain(connection: sa.Connection, previous: bytes) -> tuple[int, bytes]:
    """Chain every entry, the first to the hash `previous`. Return the number of entries, and the hash of the last."""
    sequence, last_id = 0, 0
    while True:
        rows = connection.execute(sa.select(LOG).where(LOG.c.id > last_id).order_by(LOG.c.id).limit(BATCH)).mappings()
        changed = []
        for row in rows:
            sequence, last_id = sequence + 1, row["id"]
            previous = hashlib.sha256(_line(previous, row, sequence)).digest()
            changed.append({"of": last_id, "to": sequence, "by": previous})
        if not changed:
            return sequence, previous
        connection.execute(
            sa.update(LOG)
            .where(LOG.c.id == sa.bindparam("of"))
            .values(chain=0, sequence=sa.bindparam("to"), hash=sa.bindparam("by")),
            changed,
        )


def _line(previous: bytes, row: sa.RowMapping, sequence: int) -> bytes:
    told = {name: row[name] for name in (*FIELDS, "value_uuid", "as_of")}
    # SQLite stores the time without a zone.
    at = told["at"].replace(tzinfo=UTC) if told["at"].tzinfo is None else told["at"].astimezone(UTC)
    told |= {"at": at.isoformat().replace("+00:00", "Z"), "chain": 0, "sequence": sequence, "previous": previous.hex()}
    if told["value_uuid"] is not None:
        told["value_uuid"] = str(told["value_uuid"])
    shown = {name: value for name, value in told.items() if value is not None}
    return json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
