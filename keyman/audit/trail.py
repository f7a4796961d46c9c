"""The trail: one entry for each change to an account, a token, a key or an application, in the transaction of the
change itself; and one for each time that an application asks for a key, committed before it gets one.

An entry names who, what, when and from where; never a value, a ciphertext, a mask or a token.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, String, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.db import Id, UtcTime, metadata, now


class Action(StrEnum):
    SIGNUP = "account.signup"
    LOGIN = "account.login"
    LOGIN_FAILED = "account.login-failed"
    LOGOUT = "account.logout"
    SESSION_END = "account.session-end"
    PASSWORD = "account.password"  # noqa: S105  # the name of an action
    PASSWORD_FAILED = "account.password-failed"  # noqa: S105  # the name of an action
    DISABLE = "account.disable"
    ENABLE = "account.enable"
    TOKEN_CREATE = "token.create"  # noqa: S105  # the name of an action
    TOKEN_REVOKE = "token.revoke"  # noqa: S105  # the name of an action
    KEY_CREATE = "key.create"
    KEY_REPLACE = "key.replace"
    KEY_CHANGE = "key.change"
    KEY_PAUSE = "key.pause"
    KEY_RESUME = "key.resume"
    KEY_DELETE = "key.delete"
    KEY_RESOLVE = "key.resolve"
    KEY_RESOLVE_REFUSED = "key.resolve-refused"
    KEY_RESOLVE_FAILED = "key.resolve-failed"
    APPLICATION_CREATE = "application.create"
    APPLICATION_ROTATE = "application.rotate"
    APPLICATION_REVOKE = "application.revoke"


class Actor(StrEnum):
    """What acted: a signed-in person, a personal token, an application, an operator at the command line, or nobody."""

    SESSION = "session"
    TOKEN = "token"  # noqa: S105  # the name of a kind
    APPLICATION = "application"
    OPERATOR = "operator"
    ANONYMOUS = "anonymous"


class Origin(NamedTuple):
    """Where a call came from. `actor_id` is a token's id, personal or an application's; address and device are the
    client's, as far as known.

    The device is for the session that a sign-in opens; the trail does not keep it.
    """

    actor: Actor
    actor_id: int | None = None
    request_id: str | None = None
    address: str | None = None
    device: str | None = None


OPERATOR = Origin(Actor.OPERATOR)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("user_id", Id, ForeignKey("users.id")),  # whose trail it is; null for a sign-in to no account
    Column("actor", String(16), nullable=False),
    Column("actor_id", Id),
    Column("action", String(32), nullable=False),
    # No foreign keys here: the trail outlives what it tells of.
    Column("token_id", Id),
    Column("key_id", Id),
    Column("service", String(64)),
    Column("request_id", String(64)),
    Column("address", String(64)),
    Column("application", String(64)),  # its name: who asked for a key, or what an operator registered
    Column("purpose", String(200)),  # in the application's own words
    Column("reason", String(32)),  # why no key was given out
    CheckConstraint(f"actor IN ({', '.join(repr(a.value) for a in Actor)})", name="actor_known"),
    Index("ix_audit_log_owner", "user_id", "id"),
    sqlite_autoincrement=True,
)


async def record(
    connection: AsyncConnection,
    origin: Origin,
    user_id: int | None,
    action: Action,
    *,
    token_id: int | None = None,
    key_id: int | None = None,
    service: str | None = None,
    application: str | None = None,
    purpose: str | None = None,
    reason: str | None = None,
) -> None:
    """Write one entry in the caller's transaction: both are committed, or neither."""
    await connection.execute(
        insert(audit_log).values(
            at=now(),
            user_id=user_id,
            actor=origin.actor,
            actor_id=origin.actor_id,
            action=action,
            token_id=token_id,
            key_id=key_id,
            service=service,
            request_id=origin.request_id,
            address=origin.address,
            application=application,
            purpose=purpose,
            reason=reason,
        )
    )
