"""The tables of users, applications and their credentials. Credentials are stored only as hashes."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, LargeBinary, SmallInteger, String, Table, Text

from keyman.storage.types import Id, UtcTime, metadata


def share_lock() -> Column[int]:
    """Return a column that is never written, and whose only allowed value is null.

    PostgreSQL lets a user lock a row (SELECT … FOR SHARE) who may update one of its columns. A plane that must lock a
    row and may not change it has the right to update this column.
    """
    return Column("share_lock", SmallInteger)


# Keys belong to owners. Each user is an owner: an insert here creates the id, and the row of the user has the same one.
owners = Table(
    "owners",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),  # so far always `user`
    CheckConstraint("length(kind) > 0", name="kind_present"),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    Column("id", Id, ForeignKey("owners.id"), primary_key=True, autoincrement=False),
    Column("email", String(254), nullable=False),  # as the user wrote it
    Column("email_key", String(762), nullable=False, unique=True),  # case-folded: one account per address
    Column("password_hash", String(255), nullable=False),  # Argon2id, PHC string
    Column("created_at", UtcTime, nullable=False),
    Column("disabled_at", UtcTime),
    share_lock(),
    CheckConstraint("length(email) > 2", name="email_present"),
    CheckConstraint("share_lock IS NULL", name="share_lock_unused"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("id_hash", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the cookie
    Column("created_at", UtcTime, nullable=False),
    Column("last_seen_at", UtcTime, nullable=False, index=True),
    Column("expires_at", UtcTime, nullable=False, index=True),
    Column("device", String(100)),  # browser and system, so that the user can distinguish sessions
    CheckConstraint("length(id_hash) = 32", name="id_hash_is_sha256"),
    sqlite_autoincrement=True,
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the whole token
    Column("name", String(100), nullable=False),
    Column("scopes", String(200), nullable=False),  # separated by a space, in the order of `Scope`
    Column("hint", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    CheckConstraint("length(token_hash) = 32", name="token_hash_is_sha256"),
    CheckConstraint("length(scopes) > 0", name="scopes_present"),
    sqlite_autoincrement=True,
)

applications = Table(
    "applications",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("services", Text, nullable=False),  # separated by a space
    Column("created_at", UtcTime, nullable=False),
    Column("disabled_at", UtcTime),
    share_lock(),
    CheckConstraint("length(name) > 0", name="name_present"),
    CheckConstraint("length(services) > 0", name="services_present"),
    CheckConstraint("share_lock IS NULL", name="share_lock_unused"),
    sqlite_autoincrement=True,
)

application_tokens = Table(
    "application_tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("application_id", Id, ForeignKey("applications.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the whole token
    Column("hint", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),  # set when another token replaces it
    Column("last_used_at", UtcTime),
    CheckConstraint("length(token_hash) = 32", name="token_hash_is_sha256"),
    sqlite_autoincrement=True,
)

# Counts failed attempts in one time window, by a common property (an address, a network): see throttle.py.
throttle = Table(
    "throttle",
    metadata,
    Column("bucket", LargeBinary(32), primary_key=True),  # a hash, so that the table contains no addresses
    Column("attempts", Integer, nullable=False),
    Column("ends_at", UtcTime, nullable=False, index=True),
    CheckConstraint("attempts >= 0", name="attempts_not_negative"),
)
