"""The tables of users, their identities, applications and credentials. Credentials are stored only as hashes."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    TableClause,
    Text,
    UniqueConstraint,
    column,
    false,
    table,
)

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
    # The sign-in name of an account with a password. Null for a user who comes with an identity only.
    Column("email", String(254)),  # as the user wrote it
    Column("email_key", String(762), unique=True),  # case-folded: one account per address
    Column("password_hash", String(255)),  # Argon2id, PHC string
    Column("created_at", UtcTime, nullable=False),
    Column("disabled_at", UtcTime),
    share_lock(),
    # What an identity provider or a portal link says about the user. It is for display only.
    Column("shown_email", String(254)),
    Column("shown_name", String(255)),
    # Of a deleted account. The row has nothing else then, and stays so that its number is never given again.
    Column("erased_at", UtcTime),
    # So that the resolver, which cannot read the hash, knows that there is one.
    Column("has_password", Boolean, Computed("password_hash IS NOT NULL", persisted=True)),
    # From the first application on that the user blocks. Otherwise a release need not look into application_blocks.
    Column("has_blocks", Boolean, nullable=False, server_default=false()),
    CheckConstraint("length(email) > 2", name="email_present"),
    CheckConstraint("share_lock IS NULL", name="share_lock_unused"),
)


def _identities(name: str, *more: Column[str] | CheckConstraint) -> Table:
    """Return a table of identities: an issuer and a subject, which belong to one user."""
    return Table(
        name,
        metadata,
        Column("id", Id, primary_key=True),
        Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
        Column("issuer", String(500), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("created_at", UtcTime, nullable=False),
        *more,
        CheckConstraint("length(subject) > 0", name="subject_present"),
        UniqueConstraint("issuer", "subject"),
        sqlite_autoincrement=True,
    )


# Identities that somebody proved with a JWT or with a sign-in at the issuer. The management plane stores them.
identities = _identities(
    "identities",
    Column("email", String(254)),  # only if the issuer says that it is verified
    Column("name", String(255)),
    CheckConstraint("issuer NOT LIKE 'keyman:%'", name="issuer_is_outside"),
)

# Identities that an application named in a portal link. The resolver stores them, and the management plane cannot: a
# taken-over management plane must not map a subject of an application to another user.
application_identities = _identities("application_identities")

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
    # Of a sign-in at an identity provider: the identity, and the provider's own id of the session (`sid`).
    Column("identity_id", Id, ForeignKey("identities.id"), index=True),
    Column("provider_session", String(255)),
    # Of a portal session: the application that sent the browser, whom it named, where "Back to …" leads.
    Column("application_id", Id, ForeignKey("applications.id"), index=True),
    Column("person", String(255)),
    Column("return_url", String(2048)),
    Column("services", Text),  # those that the application may use, separated by a space
    # When the user signed in again at the provider, to prove their presence: see presence.py. It counts once.
    Column("present_at", UtcTime),
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

# What a token was called that was revoked, for its entries of the audit log. It goes with the account.
token_labels = Table(
    "token_labels",
    metadata,
    Column("token_id", Id, primary_key=True, autoincrement=False),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("label", String(100), nullable=False),
    Column("hint", String(16), nullable=False),
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
    Column("portal", Boolean, nullable=False, server_default=false()),  # may ask for portal links
    # Whose users it serves, separated by a space, the default first. Null: it is not bound to issuers.
    Column("issuers", Text),
    Column("return_urls", Text),  # separated by a space, the default first
    # The JWT with which the application logs in, if it has no token of keyman's.
    Column("jwt_issuer", String(500)),
    Column("jwt_subject", String(255)),
    Column("jwt_audience", String(255)),
    Column("jwt_jwks_url", String(2048)),
    Column("jwt_jwks", Text),  # the set of keys itself, where it was given as a file
    Column("checks", Boolean, nullable=False, server_default=false()),  # asks the gateway for live checks, and no more
    CheckConstraint("length(name) > 0", name="name_present"),
    CheckConstraint("length(services) > 0", name="services_present"),
    CheckConstraint("share_lock IS NULL", name="share_lock_unused"),
    Index("ix_applications_jwt", "jwt_issuer", "jwt_subject", "jwt_audience", unique=True),
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

# Views, which the migrations define. Of an application, the management plane reads these and its id, name and
# `disabled_at`. The first has a row for each application and each user whose keys it may use: it is not revoked, and
# serves this user. The second has the audiences of the JWTs of applications that are not revoked.
permitted_applications = table(
    "permitted_applications", column("user_id", Id), column("application_id", Id), column("services", Text)
)
application_audiences = table("application_audiences", column("audience", Text))

VIEWS: tuple[TableClause, ...] = (permitted_applications, application_audiences)

# The audiences of the JWTs of users that a management plane has ever accepted. The planes of applications refuse a JWT
# that has one of them. No plane can remove one, so a taken-over management plane cannot either.
user_audiences = Table("user_audiences", metadata, Column("audience", String(255), primary_key=True))

# The applications that a user has blocked: they get no key of this user.
application_blocks = Table(
    "application_blocks",
    metadata,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("application_id", Id, ForeignKey("applications.id"), primary_key=True),
    Column("created_at", UtcTime, nullable=False),
)

# Links that lead a user of an application to the pages, each to be used once. The resolver inserts them, and the
# management plane deletes the one that is used.
portal_links = Table(
    "portal_links",
    metadata,
    Column("id", Id, primary_key=True),
    Column("code_hash", LargeBinary(32), nullable=False, unique=True),  # SHA-256 of the code
    Column("application_id", Id, ForeignKey("applications.id"), nullable=False),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("subject", String(255), nullable=False),
    Column("email", String(254)),
    Column("name", String(255)),
    Column("return_url", String(2048), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False, index=True),
    # Those that the application may use, separated by a space: the management plane cannot look them up.
    Column("services", Text),
    CheckConstraint("length(code_hash) = 32", name="code_hash_is_sha256"),
    sqlite_autoincrement=True,
)

# Sign-ins that are under way at the identity provider: what keyman sent with the browser, and checks when it returns.
provider_visits = Table(
    "provider_visits",
    metadata,
    Column("state_hash", LargeBinary(32), primary_key=True),  # SHA-256 of the state
    Column("browser_hash", LargeBinary(32), nullable=False),  # SHA-256 of the value of the visit's cookie
    Column("nonce", String(64), nullable=False),
    Column("verifier", String(128), nullable=False),  # of PKCE
    Column("purpose", String(16), nullable=False),
    # The session that asked, for a purpose other than to sign in.
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), index=True),
    Column("next", String(2048)),  # the page to show afterwards
    Column("expires_at", UtcTime, nullable=False, index=True),
    # Of a visit that is back, while the person chooses between an account with the same address and a new one.
    Column("subject", String(255)),
    Column("email", String(254)),
    Column("name", String(255)),
    Column("provider_session", String(255)),
    CheckConstraint("length(state_hash) = 32 AND length(browser_hash) = 32", name="hashes_are_sha256"),
)

# The logout tokens of the identity provider that were used, until they expire.
logout_tokens = Table(
    "logout_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),  # SHA-256 of issuer and `jti`
    Column("expires_at", UtcTime, nullable=False, index=True),
    CheckConstraint("length(token_hash) = 32", name="token_hash_is_sha256"),
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
