"""The tables of users' data: sealed values with their metadata, and stored answers for idempotency keys."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    Uuid,
    false,
    text,
)

from keyman.storage.types import Id, UtcTime, metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),  # the user who stored it
    Column("service", String(64), nullable=False),  # never changes: the ciphertext is bound to it
    Column("name", String(100)),
    Column("name_folded", String(400)),  # the text that `?q=` searches, the same on both databases
    Column("encrypted_key", Text, nullable=False),  # Vault's ciphertext, `vault:v<version>:…`
    Column("key_version", Integer, nullable=False),  # of the Transit key, so that a rewrap finds old ciphertexts
    Column("value_uuid", Uuid, nullable=False, unique=True),  # part of the context; every value gets a new one
    Column("last_4_chars", String(64), nullable=False),  # the mask, computed once
    Column("disabled", Boolean, nullable=False),
    Column("undecryptable", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("last_used_by", String(100)),
    # It is part of the context, so it never changes. It equals `user_id` as long as only users own keys.
    Column("owner_id", Id, ForeignKey("owners.id"), nullable=False),
    # A JSON object of texts. Its hash is in the audit entry that names the current value: see settings.py.
    Column("settings", Text, nullable=False, server_default="{}"),
    # What the last live check, or the last use, says of the key. The verdict is null if nothing is known.
    Column("check_verdict", String(16)),
    Column("checked_at", UtcTime),
    Column("check_detail", String(200)),  # one of keyman's own sentences
    Column("checked_by", String(64)),  # `keyman`, `use`, or the application that reported it
    # Applications get this one of the owner's active keys for the service. At most one is: see the unique index.
    Column("is_default", Boolean, nullable=False, server_default=false()),
    # Shows that the owner has stored the same value before: see vault/duplicates.py. Null where Vault gave none.
    Column("fingerprint", LargeBinary(32)),
    CheckConstraint("length(service) > 0", name="service_present"),
    CheckConstraint("encrypted_key LIKE 'vault:v%'", name="encrypted_key_is_sealed"),
    CheckConstraint("key_version > 0", name="key_version_positive"),
    CheckConstraint("updated_at >= created_at", name="updated_after_created"),
    # For the two lists, newest first: all keys of an owner, and the keys of an owner for one service.
    Index("ix_api_keys_owner", "owner_id", "id"),
    Index("ix_api_keys_owner_service", "owner_id", "service", "id"),
    # Partial, so that no list is read from it.
    Index(
        "ix_api_keys_fingerprint",
        "owner_id",
        "fingerprint",
        "id",
        sqlite_where=text("fingerprint IS NOT NULL"),
        postgresql_where=text("fingerprint IS NOT NULL"),
    ),
    Index(
        "uq_api_keys_default",
        "owner_id",
        "service",
        unique=True,
        sqlite_where=text("is_default = 1"),
        postgresql_where=text("is_default"),
    ),
    sqlite_autoincrement=True,  # the id of a deleted key is never used again
    postgresql_with={"fillfactor": 50},  # a rewrap changes each row within its page, and so writes to no index
)

# What a key was called until it was renamed, replaced or deleted: see labels.py. There is no foreign key to the key,
# because the row stays when the key is deleted. It goes with the account.
key_labels = Table(
    "key_labels",
    metadata,
    Column("id", Id, primary_key=True),
    Column("key_id", Id, nullable=False),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("until", UtcTime, nullable=False),
    Column("label", String(100)),
    Column("mask", String(64), nullable=False),
    Index("ix_key_labels_key", "key_id", "until"),
    sqlite_autoincrement=True,
)

# The first answer for an Idempotency-Key: see idempotency.py.
idempotency = Table(
    "idempotency",
    metadata,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("key_hash", LargeBinary(32), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("response", Text, nullable=False),  # the key as the answer shows it: metadata and mask
    Column("created_at", UtcTime, nullable=False, index=True),
)
