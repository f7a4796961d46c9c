"""Personal access tokens: created, listed and revoked by their user or by an operator."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from keyman.audit.entries import OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Conflict, Forbidden, NotFound, Sentence, Unauthenticated
from keyman.identity.lookups import Lookup
from keyman.identity.principals import FOUND_USER, USER_WITHOUT_ADDRESS, Credentials, FoundUser, Principal
from keyman.identity.selection import find_chosen, lock_chosen
from keyman.identity.standing import Grounds, HolderLock, Standing, lock_accounts
from keyman.identity.tables import api_tokens, token_labels, users
from keyman.identity.tokens import DEFAULT_SCOPES, Scope, ScopeName, Token, parse_scopes, scopes_text
from keyman.ids import MAX_ID, TokenId, UserId
from keyman.storage import last_use
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress, FutureTime, RequiredLabel

MAX_TOKENS = 200
"""The maximum number of tokens per account: more than anybody needs, and few enough for a list without pages."""


_ENDED = (
    "This is not the access token of a user, or it has expired or been revoked. "
    "The token of an application counts only at the resolver and the gateway."
)
_STANDING = Standing(api_tokens, users, ended=_ENDED)


class NewToken(msgspec.Struct):
    """The request for a new token."""

    name: RequiredLabel
    scopes: Annotated[list[ScopeName], msgspec.Meta(min_length=1)] | msgspec.UnsetType = msgspec.UNSET
    expires_at: FutureTime | None = None

    def wanted_scopes(self) -> frozenset[Scope]:
        return DEFAULT_SCOPES if self.scopes is msgspec.UNSET else frozenset(Scope(name) for name in self.scopes)


class TokenInfo(msgspec.Struct):
    """A token in a list."""

    id: int
    name: str
    scopes: list[str]
    hint: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class CreatedToken(TokenInfo):
    """A new token. It is shown only once."""

    token: str


class OwnedToken(TokenInfo):
    """A token in an operator's list."""

    email: str | None


class TokenProof:
    """A Proof that identifies a user by a personal access token. `with_address` is False on a plane that may not read
    the addresses of users.
    """

    def __init__(self, *, with_address: bool = True) -> None:
        self._by_hash = _BY_HASH if with_address else _WITHOUT_ADDRESS

    def find(self, credentials: Credentials) -> str | None:
        return credentials.bearer

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        """Return the user with the token's scopes. Raises Unauthenticated, also for an application's token."""
        token = Token.parse(credential)
        moment = now()
        row = await self._by_hash.find(db, token.digest())
        if row is None or (row.expires_at is not None and row.expires_at <= moment):
            raise Unauthenticated(_ENDED)
        if last_use.is_due(row.last_used_at, moment):
            lock = HolderLock(users, row.user_id)
            await db.note(lock, _NOTE_USE, token_id=row.id, moment=moment, **last_use.bounds(moment))
        return Principal(
            origin=Origin(Actor.TOKEN, row.id, credentials.request_id, credentials.address),
            scopes=parse_scopes(row.scopes),
            user=row.user(),
            expires_at=row.expires_at,
            grounds=Grounds(_STANDING, row.id, row.user_id),
            token_name=row.name,
        )


class _Found(FoundUser, frozen=True):
    id: TokenId
    name: str
    scopes: str
    expires_at: datetime | None
    last_used_at: datetime | None
    token_hash: bytes


def _by_hash(user: Sequence[ColumnElement[Any]]) -> Lookup[bytes, _Found]:
    found = select(
        *user,
        api_tokens.c.id,
        api_tokens.c.name,
        api_tokens.c.scopes,
        api_tokens.c.expires_at,
        api_tokens.c.last_used_at,
        api_tokens.c.token_hash,
    )
    found = found.join_from(api_tokens, users).where(users.c.disabled_at.is_(None))
    return Lookup(found, api_tokens.c.token_hash, _Found, lambda row: row.token_hash)


_BY_HASH = _by_hash(FOUND_USER)
_WITHOUT_ADDRESS = _by_hash(USER_WITHOUT_ADDRESS)
_NOTE_USE = Command(
    update(api_tokens)
    .where(api_tokens.c.id == bindparam("token_id"), last_use.is_stale(api_tokens.c.last_used_at))
    .values(last_used_at=bindparam("moment"))
)


async def create(db: Database, caller: Principal, new: NewToken) -> CreatedToken:
    """Create a token for the caller. A token cannot create one with more scopes or a later expiry than its own.

    Raises Forbidden for such a token, and Conflict if the caller already has MAX_TOKENS.
    """
    scopes = new.wanted_scopes()
    if not scopes <= caller.scopes:
        raise Forbidden("An access token cannot create a token with scopes that it does not have.")
    expires_at: datetime | None = new.expires_at
    if caller.expires_at is not None:
        if expires_at is not None and expires_at > caller.expires_at:
            raise Forbidden("An access token cannot create a token that expires later than itself.")
        expires_at = expires_at or caller.expires_at
    async with db.write(caller.exclusive()) as connection:
        return await _insert(connection, caller.origin, caller.user_id, str(new.name), scopes, expires_at)


async def create_for(
    db: Database, email: EmailAddress, name: RequiredLabel, scopes: frozenset[Scope], expires_at: datetime | None = None
) -> CreatedToken:
    """Create a token for an account, as an operator. Raises NotFound, and Conflict if it already has MAX_TOKENS."""
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await lock_chosen(connection, email)
        return await _insert(connection, OPERATOR, user_id, str(name), scopes, expires_at)


async def list_own(db: Database, caller: Principal) -> list[TokenInfo]:
    """Return the caller's tokens, newest first."""
    async with db.read() as connection:
        return [TokenInfo(*_fields_of(row)) for row in await _OWN.all(connection, user_id=caller.user_id)]


async def list_all(db: Database, email: EmailAddress | None) -> list[OwnedToken]:
    """Return all tokens, or those of one account, newest first. Raises NotFound for an unknown account."""
    async with db.read() as connection:
        if email is None:
            rows = await _EVERY.all(connection)
        else:
            rows = await _OF_ACCOUNT.all(connection, user_id=await find_chosen(connection, email))
    return [OwnedToken(*_fields_of(row), row.email) for row in rows]


async def revoke(db: Database, caller: Principal, token_id: TokenId) -> None:
    """Delete one of the caller's tokens. Raises NotFound for any other token."""
    _check_id(token_id)
    async with db.write(caller.exclusive()) as connection:
        deleted = await _DELETE_OWN.first(connection, token_id=token_id, user_id=caller.user_id)
        await _record_revocation(connection, caller.origin, token_id, deleted)


async def revoke_current(db: Database, caller: Principal) -> None:
    """Delete the token that the caller showed, whatever its scopes are. Raises Forbidden for a session and a JWT."""
    if caller.kind is not Actor.TOKEN or caller.origin.actor_id is None:
        raise Forbidden("Only an access token can be revoked here, and this request was not made with one.")
    await revoke(db, caller, TokenId(caller.origin.actor_id))


async def revoke_any(db: Database, token_id: TokenId) -> None:
    """Delete any token, as an operator. Raises NotFound."""
    _check_id(token_id)
    async with db.write(Unchecked.OPERATOR) as connection:
        await lock_accounts(connection, await _USER_OF.first(connection, token_id=token_id))
        deleted = await _DELETE_ANY.first(connection, token_id=token_id)
        await _record_revocation(connection, OPERATOR, token_id, deleted)


class _Shown(msgspec.Struct, frozen=True):
    id: TokenId
    name: str
    scopes: str
    hint: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class _Deleted(NamedTuple):
    user_id: UserId
    name: str
    hint: str


class _ShownWithEmail(_Shown, frozen=True):
    email: str | None


_SHOWN = tuple(api_tokens.c[name] for name in _Shown.__struct_fields__)
_OF_USER = api_tokens.c.user_id == bindparam("user_id")
_OWN = Query(select(*_SHOWN).where(_OF_USER).order_by(api_tokens.c.id.desc()), _Shown)
_WITH_EMAIL = (
    select(*_SHOWN, func.coalesce(users.c.email, users.c.shown_email).label("email"))
    .join_from(api_tokens, users)
    .order_by(api_tokens.c.id.desc())
)
_EVERY = Query(_WITH_EMAIL, _ShownWithEmail)
_OF_ACCOUNT = Query(_WITH_EMAIL.where(_OF_USER), _ShownWithEmail)

_COUNT = scalar(select(func.count()).select_from(api_tokens).where(_OF_USER), int)
_INSERT = Query(insert(api_tokens).returning(*_SHOWN), _Shown)
_DELETE = (
    delete(api_tokens)
    .where(api_tokens.c.id == bindparam("token_id"))
    .returning(api_tokens.c.user_id, api_tokens.c.name, api_tokens.c.hint)
)
_DELETE_ANY = Query(_DELETE, _Deleted)
_DELETE_OWN = Query(_DELETE.where(_OF_USER), _Deleted)
_KEEP_LABEL = Command(insert(token_labels))
_USER_OF = scalar(select(api_tokens.c.user_id).where(api_tokens.c.id == bindparam("token_id")), UserId)


def _fields_of(row: _Shown) -> tuple[int, str, list[str], str, datetime, datetime | None, datetime | None]:
    scopes = parse_scopes(row.scopes)
    in_order = [scope.value for scope in Scope if scope in scopes]
    return (row.id, row.name, in_order, row.hint, row.created_at, row.expires_at, row.last_used_at)


async def _insert(
    connection: AsyncConnection,
    origin: Origin,
    user_id: UserId,
    name: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
) -> CreatedToken:
    """Insert a token. The transaction has locked the account, so that requests are counted one after the other."""
    if await _COUNT.one(connection, user_id=user_id) >= MAX_TOKENS:
        raise Conflict(
            Sentence(
                "An account can have at most {count} access tokens. Revoke one that you no longer use.",
                count=MAX_TOKENS,
            )
        )
    token = Token.generate()
    row = await _INSERT.one(
        connection,
        user_id=user_id,
        token_hash=token.digest(),
        name=name,
        scopes=scopes_text(scopes),
        hint=token.hint(),
        created_at=now(),
        expires_at=expires_at,
    )
    await record(connection, Entry(Action.TOKEN_CREATE, origin, user_id, token_id=row.id))
    return CreatedToken(*_fields_of(row), token.reveal())


def _check_id(token_id: TokenId) -> None:
    if not 0 < token_id <= MAX_ID:
        raise NotFound("There is nothing with this id.")


async def _record_revocation(
    connection: AsyncConnection, origin: Origin, token_id: TokenId, deleted: _Deleted | None
) -> None:
    """Record that a token was deleted, and what it was called. Raises NotFound if none was."""
    if deleted is None:
        raise NotFound("There is nothing with this id.")
    await _KEEP_LABEL.execute(
        connection, token_id=token_id, user_id=deleted.user_id, label=deleted.name, hint=deleted.hint
    )
    await record(connection, Entry(Action.TOKEN_REVOKE, origin, deleted.user_id, token_id=token_id))
