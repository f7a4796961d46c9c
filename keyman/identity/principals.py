"""Who calls: a personal access token or a session, looked up in the database at each request.

Nothing is cached, so a revoked token, an ended session or a disabled account is dead at once on every replica.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Table, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity.tables import api_tokens, sessions, users
from keyman.identity.tokens import ALL_SCOPES, Scope, Token, parse_scopes
from keyman.secret import Secret
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow

SESSION_LIFETIME = timedelta(days=14)
"""A session ends then whatever happens: a stolen cookie does not work for ever."""

SESSION_IDLE = timedelta(days=3)
"""A session that was not used for so long ends: a weekend away does not."""

LAST_USE_PRECISION = timedelta(minutes=1)
"""How old a stored last use may be before it is written again: one write a minute, not one a request."""


@dataclass(frozen=True)
class Caller:
    """An authenticated caller. `session_id` is None for a token, `token_expires_at` for whatever does not end."""

    user_id: int
    email: str
    created_at: datetime
    scopes: frozenset[Scope]
    origin: Origin
    session_id: int | None = None
    token_expires_at: datetime | None = None

    def require(self, scope: Scope) -> None:
        if scope not in self.scopes:
            raise Forbidden(f"This access token lacks the scope {scope}.")

    def require_session(self) -> int:
        """The session's id. Raises Forbidden for a token: what concerns the account itself needs its owner."""
        if self.session_id is None:
            raise Forbidden("You cannot do this with an access token. Sign in with e-mail and password.")
        return self.session_id


async def by_token(db: Database, text: str, request_id: str, address: str | None) -> Caller:
    """The owner of a personal access token. Raises Unauthenticated."""
    token = Token.parse(text)
    moment = now()
    columns = (api_tokens.c.id, api_tokens.c.scopes, api_tokens.c.expires_at, api_tokens.c.last_used_at)
    row = await _find(db, api_tokens, columns, api_tokens.c.token_hash == token.digest())
    if row is None or (row.expires_at is not None and row.expires_at <= moment):
        raise Unauthenticated("The access token has expired or was revoked.")
    if row.last_used_at is None or moment - row.last_used_at >= LAST_USE_PRECISION:
        await note_use(db, api_tokens, "last_used_at", row.id, moment)
    return Caller(
        user_id=row.user_id,
        email=row.email,
        created_at=row.user_created_at,
        scopes=parse_scopes(row.scopes),
        origin=Origin(Actor.TOKEN, row.id, request_id, address),
        token_expires_at=row.expires_at,
    )


async def by_session(db: Database, cookie: str, request_id: str, address: str | None) -> Caller:
    """The owner of a session. Raises Unauthenticated."""
    moment = now()
    columns = (sessions.c.id, sessions.c.last_seen_at, sessions.c.expires_at)
    row = await _find(db, sessions, columns, sessions.c.id_hash == session_digest(cookie))
    if row is None or row.expires_at <= moment or moment - row.last_seen_at >= SESSION_IDLE:
        raise Unauthenticated("The session has ended. Sign in again.")
    if moment - row.last_seen_at >= LAST_USE_PRECISION:
        await note_use(db, sessions, "last_seen_at", row.id, moment)
    return Caller(
        user_id=row.user_id,
        email=row.email,
        created_at=row.user_created_at,
        scopes=ALL_SCOPES,
        origin=Origin(Actor.SESSION, None, request_id, address),
        session_id=row.id,
    )


async def open_session(connection: AsyncConnection, user_id: int, device: str | None = None) -> Secret:
    """A new session with an id of its own; returns the cookie, of which the database gets the hash alone."""
    cookie = Secret(secrets.token_urlsafe(32))
    moment = now()
    await connection.execute(
        insert(sessions).values(
            user_id=user_id,
            id_hash=session_digest(cookie.reveal()),
            created_at=moment,
            last_seen_at=moment,
            expires_at=moment + SESSION_LIFETIME,
            device=device,
        )
    )
    return cookie


def session_digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()


async def _find(
    db: Database, proofs: Table, columns: tuple[ColumnElement[object], ...], condition: ColumnElement[bool]
) -> AnyRow | None:
    """The proof that fits, with its owner, unless the account is disabled."""
    statement = (
        select(*columns, users.c.id.label("user_id"), users.c.email, users.c.created_at.label("user_created_at"))
        .join_from(proofs, users)
        .where(condition, users.c.disabled_at.is_(None))
    )
    async with db.read() as connection:
        return (await connection.execute(statement)).one_or_none()


async def note_use(db: Database, proofs: Table, column: str, proof_id: int, moment: datetime) -> None:
    """Write the last use, if that can be done at once: a database that cannot be written to holds up no read."""
    last = proofs.c[column]
    stale = or_(last.is_(None), last <= moment - LAST_USE_PRECISION)
    await db.note(update(proofs).where(and_(proofs.c.id == proof_id, stale)).values({column: moment}))
