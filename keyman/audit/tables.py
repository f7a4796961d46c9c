"""The tables of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Uuid,
)

from keyman.audit.entries import Actor
from keyman.ids import KeyId, UserId
from keyman.storage.types import Id, UtcTime, metadata

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column(
        "user_id", Id, ForeignKey("users.id")
    ),  # the user whose audit log it is in; null for a sign-in to an unknown account
    Column("actor", String(16), nullable=False),
    Column("actor_id", Id),
    Column("action", String(32), nullable=False),
    # No foreign keys, because entries stay when what they record is deleted.
    Column("token_id", Id),
    Column("key_id", Id),
    Column("service", String(64)),
    Column("request_id", String(64)),
    Column("address", String(64)),
    Column("application", String(64)),  # its name: who asked for a key, or what an operator registered
    Column("purpose", String(200)),  # given by the application
    Column("reason", String(32)),  # why no key was given out
    Column("value_uuid", Uuid),  # the current value of the key from this entry on
    Column(
        "as_of", Id
    ),  # of an entry with a value: its own id; or that of the entry, pruned since, whose word it repeats
    Column("vault_request_id", String(64)),  # Vault's own, where it was asked before: its audit log has the same
    Column("detail", String(200)),  # what a command did
    Column("chain", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),  # from 1 in each chain, without a gap
    Column("hash", LargeBinary(32), nullable=False),
    CheckConstraint(f"actor IN ({', '.join(repr(a.value) for a in Actor)})", name="actor_known"),
    CheckConstraint("length(hash) = 32", name="hash_is_sha256"),
    Index("ix_audit_log_owner", "user_id", "id"),
    Index("ix_audit_log_owner_action", "user_id", "action", "id"),
    Index("ix_audit_log_at", "at"),  # for a filter by time: see listing.py
    Index("ix_audit_log_uses", "key_id", "action", "application", "at"),  # for the uses of a key: see keys/uses.py
    # The order of verification. As it is unique, no chain can fork.
    Index("ix_audit_log_chain", "chain", "sequence", unique=True),
    sqlite_autoincrement=True,
)

# Which value of a key is the current one: the entry with the highest `as_of`.
Index(
    "ix_audit_log_value",
    audit_log.c.key_id,
    audit_log.c.as_of,
    postgresql_where=audit_log.c.value_uuid.is_not(None),
    sqlite_where=audit_log.c.value_uuid.is_not(None),
)

# The two ends of each chain. The migration creates one on SQLite and 32 on PostgreSQL.
audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),  # of the newest entry; 0 before the first
    Column("hash", LargeBinary(32), nullable=False),  # of the newest entry; the genesis before the first
    Column("base_sequence", BigInteger, nullable=False),  # of the newest one that was pruned; 0 when none was
    Column("base_hash", LargeBinary(32), nullable=False),  # of that; the genesis when none was
    CheckConstraint("base_sequence >= 0 AND sequence >= base_sequence", name="ends_in_order"),
    CheckConstraint("length(hash) = 32 AND length(base_hash) = 32", name="hashes_are_sha256"),
    postgresql_with={"fillfactor": 10},  # each commit updates a row in place, as long as its page has room
)


class AuditRow(NamedTuple):
    """A whole row of `audit_log`, its columns in the table's order."""

    id: int
    at: datetime
    user_id: UserId | None
    actor: str
    actor_id: int | None
    action: str
    token_id: int | None
    key_id: KeyId | None
    service: str | None
    request_id: str | None
    address: str | None
    application: str | None
    purpose: str | None
    reason: str | None
    value_uuid: UUID | None
    as_of: int | None
    vault_request_id: str | None
    detail: str | None
    chain: int
    sequence: int
    hash: bytes
