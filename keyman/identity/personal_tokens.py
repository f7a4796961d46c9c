"""Personal access tokens: made, listed and revoked by their owner, or by an operator for them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import OPERATOR, Action, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, Forbidden, NotFound, Sentence
from keyman.identity.principals import Caller
from keyman.identity.tables import api_tokens, users
from keyman.identity.tokens import DEFAULT_SCOPES, Scope, ScopeName, Token, parse_scopes, scopes_text
from keyman.identity.users import id_by_email
from keyman.ids import MAX_ID
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow
from keyman.values import EmailAddress, FutureTime, RequiredLabel

MAX_TOKENS = 200
"""Per account: more than anybody has use for, and a listing that needs no pages."""


class NewToken(msgspec.Struct):
    """What a new token is to be."""

    name: RequiredLabel
    scopes: Annotated[list[ScopeName], msgspec.Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET
    expires_at: FutureTime | None = None

    def wanted_scopes(self) -> frozenset[Scope]:
        return DEFAULT_SCOPES if self.scopes is msgspec.UNSET else frozenset(Scope(name) for name in self.scopes)


class TokenInfo(msgspec.Struct):
    """A token as a list shows it."""

    id: int
    name: str
    scopes: list[str]
    hint: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class CreatedToken(TokenInfo):
    """A token at its making: the one time that it is shown."""

    token: str


class OwnedToken(TokenInfo):
    """A token as an operator's list shows it."""

    email: str


async def create(db: Database, caller: Caller, new: NewToken) -> CreatedToken:
    """Make a token for the caller. A token makes none that may do more, or lives longer, than itself.

    Raises Forbidden for that, Conflict at MAX_TOKENS.
    """
    scopes = new.wanted_scopes()
    if not scopes <= caller.scopes:
        raise Forbidden("An access token cannot create a token with scopes that it does not have.")
    expires_at: datetime | None = new.expires_at
    if caller.token_expires_at is not None:
        if expires_at is not None and expires_at > caller.token_expires_at:
            raise Forbidden("An access token cannot create a token that expires later than itself.")
        expires_at = expires_at or caller.token_expires_at
    async with db.write() as connection:
        return await _insert(connection, caller.origin, caller.user_id, str(new.name), scopes, expires_at)


async def create_for(
    db: Database, email: EmailAddress, name: RequiredLabel, scopes: frozenset[Scope], expires_at: datetime | None = None
) -> CreatedToken:
    """Make a token for an account as an operator. Raises NotFound, Conflict at MAX_TOKENS."""
    async with db.write() as connection:
        user_id = await id_by_email(connection, email)
        return await _insert(connection, OPERATOR, user_id, str(name), scopes, expires_at)


async def list_own(db: Database, caller: Caller) -> list[TokenInfo]:
    """The caller's tokens, newest first."""
    async with db.read() as connection:
        rows = await connection.execute(
            select(*_SHOWN).where(api_tokens.c.user_id == caller.user_id).order_by(api_tokens.c.id.desc())
        )
        return [TokenInfo(*_shown(row)) for row in rows]


async def list_all(db: Database, email: EmailAddress | None) -> list[OwnedToken]:
    """Everybody's tokens, or one account's, newest first. Raises NotFound."""
    statement = select(*_SHOWN, users.c.email).join_from(api_tokens, users).order_by(api_tokens.c.id.desc())
    async with db.read() as connection:
        if email is not None:
            statement = statement.where(users.c.id == await id_by_email(connection, email))
        return [OwnedToken(*_shown(row), row.email) for row in await connection.execute(statement)]


async def revoke(db: Database, caller: Caller, token_id: int) -> None:
    """Delete one of the caller's tokens. Raises NotFound for any other."""
    await _delete(db, caller.origin, token_id, api_tokens.c.user_id == caller.user_id)


async def revoke_any(db: Database, token_id: int) -> None:
    """Delete anybody's token, as an operator. Raises NotFound."""
    await _delete(db, OPERATOR, token_id)


_SHOWN = (
    api_tokens.c.id,
    api_tokens.c.name,
    api_tokens.c.scopes,
    api_tokens.c.hint,
    api_tokens.c.created_at,
    api_tokens.c.expires_at,
    api_tokens.c.last_used_at,
)


def _shown(row: AnyRow) -> tuple[int, str, list[str], str, datetime, datetime | None, datetime | None]:
    scopes = parse_scopes(row.scopes)
    in_order = [scope.value for scope in Scope if scope in scopes]
    return (row.id, row.name, in_order, row.hint, row.created_at, row.expires_at, row.last_used_at)


async def _insert(
    connection: AsyncConnection,
    origin: Origin,
    user_id: int,
    name: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
) -> CreatedToken:
    # Locked, so that requests at once are counted one after the other. Not so strongly that the foreign key of an audit
    # entry waits for it: that writer holds the end of a chain, for which this transaction may wait.
    await connection.execute(select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True))
    held = select(func.count()).select_from(api_tokens).where(api_tokens.c.user_id == user_id)
    if (await connection.execute(held)).scalar_one() >= MAX_TOKENS:
        raise Conflict(
            Sentence(
                "An account can have at most {count} access tokens. Revoke one that you no longer use.",
                count=MAX_TOKENS,
            )
        )
    token = Token.generate()
    values = {
        "name": name,
        "scopes": scopes_text(scopes),
        "hint": token.hint(),
        "created_at": now(),
        "expires_at": expires_at,
    }
    statement = insert(api_tokens).values(user_id=user_id, token_hash=token.digest(), **values).returning(*_SHOWN)
    row = (await connection.execute(statement)).one()
    await record(connection, Entry(Action.TOKEN_CREATE, origin, user_id, token_id=row.id))
    return CreatedToken(*_shown(row), token.reveal())


async def _delete(db: Database, origin: Origin, token_id: int, *conditions: ColumnElement[bool]) -> None:
    if not 0 < token_id <= MAX_ID:
        raise NotFound("There is nothing with this id.")
    async with db.write() as connection:
        statement = delete(api_tokens).where(api_tokens.c.id == token_id, *conditions).returning(api_tokens.c.user_id)
        user_id = (await connection.execute(statement)).scalar_one_or_none()
        if user_id is None:
            raise NotFound("There is nothing with this id.")
        await record(connection, Entry(Action.TOKEN_REVOKE, origin, user_id, token_id=token_id))
