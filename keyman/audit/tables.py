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
    # The user in whose audit log it appears; null for an action without account, such as a sign-in to an unknown one.
    Column("user_id", Id, ForeignKey("users.id")),
    Column("actor", String(16), nullable=False),
    Column("actor_id", Id),
    Column("action", String(32), nullable=False),
    # No foreign keys, because an entry stays when the token or key that it names is deleted.
    Column("token_id", Id),
    Column("key_id", Id),
    Column("service", String(64)),
    Column("request_id", String(64)),
    Column("address", String(64)),
    Column("application", String(64)),  # that asked for a key, was registered, or opened the session
    Column("purpose", String(200)),  # given by the application
    Column("reason", String(32)),  # why no key was given out
    Column("value_uuid", Uuid),  # the current value of the key from this entry on
    Column("as_of", Id),  # if there is a `value_uuid`: the entry's own id, or that of the pruned entry that it repeats
    Column("vault_request_id", String(64)),  # Vault's id of the request for this, if any; Vault's audit log has it, too
    Column("detail", String(200)),  # what a command did
    Column("chain", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),  # counts from 1 in each chain, without a gap
    Column("hash", LargeBinary(32), nullable=False),
    Column("settings_hash", String(64)),  # if there is a `value_uuid`: SHA-256 of the key's settings, in hex
    CheckConstraint(f"actor IN ({', '.join(repr(a.value) for a in Actor)})", name="actor_known"),
    CheckConstraint("length(hash) = 32", name="hash_is_sha256"),
    Index("ix_audit_log_owner", "user_id", "id"),
    Index("ix_audit_log_owner_action", "user_id", "action", "id"),
    Index("ix_audit_log_at", "at"),  # for a filter by time: see listing.py
    Index("ix_audit_log_uses", "key_id", "action", "application", "at"),  # for the uses of a key: see keys/uses.py
    # Verification reads in this order. Because the index is unique, no chain can fork.
    Index("ix_audit_log_chain", "chain", "sequence", unique=True),
    sqlite_autoincrement=True,
)

# For the current value of a key: the entry with the highest `as_of` names it.
Index(
    "ix_audit_log_value",
    audit_log.c.key_id,
    audit_log.c.as_of,
    postgresql_where=audit_log.c.value_uuid.is_not(None),
    sqlite_where=audit_log.c.value_uuid.is_not(None),
)

# The beginning and the end of each chain. The migration creates one chain on SQLite and 32 on PostgreSQL.
audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),  # of the newest entry; 0 before the first
    Column("hash", LargeBinary(32), nullable=False),  # of the newest entry; the genesis hash before the first
    Column("base_sequence", BigInteger, nullable=False),  # of the last entry that was pruned; 0 if none was
    Column("base_hash", LargeBinary(32), nullable=False),  # of the same entry; the genesis hash if none was pruned
    CheckConstraint("base_sequence >= 0 AND sequence >= base_sequence", name="ends_in_order"),
    CheckConstraint("length(hash) = 32 AND length(base_hash) = 32", name="hashes_are_sha256"),
    postgresql_with={"fillfactor": 10},  # each commit updates a row in place, as long as its page has room
)


class AuditRow(NamedTuple):
    """A row of `audit_log` with all columns, in the table's order."""

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
    settings_hash: str | None
