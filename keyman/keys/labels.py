"""The names by which users knew their keys and tokens at the time of an audit entry, for the page Activity.

The audit log holds numbers only: its entries stay when an account is deleted, and a label is a text of a person. What a
key is called now is in its row. When it is renamed, gets another value or is deleted, its label and mask until then are
stored here, and so are name and hint of a token that is revoked. A deletion of the account erases all of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.listing import AuditEntry
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.principals import Principal
from keyman.identity.standing import listed_in_array, listed_in_json
from keyman.identity.tables import api_tokens, token_labels
from keyman.ids import KeyId, UserId
from keyman.keys.rows import Shown
from keyman.keys.tables import api_keys, key_labels
from keyman.storage.arrays import as_list
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database


class KeyName(NamedTuple):
    """What a key was called. `exists` is False for one that was deleted since."""

    label: str | None
    mask: str
    exists: bool


class TokenName(NamedTuple):
    """What an access token was called. `exists` is False for one that was revoked since."""

    name: str
    exists: bool


class Names(NamedTuple):
    """The names for a page of entries: of keys by the id of the entry, and of tokens by their own id."""

    keys: dict[int, KeyName]
    tokens: dict[int, TokenName]


async def keep(connection: AsyncConnection, user_id: UserId, before: Shown) -> None:
    """Store what a key was called until now. The entry about the change is written after it."""
    await _KEEP.execute(
        connection, key_id=before.id, user_id=user_id, until=now(), label=before.name, mask=before.last_4_chars
    )


async def names_of(db: Database, caller: Principal, entries: Collection[AuditEntry]) -> Names:
    """Return the names of the keys and tokens of the caller's own entries, as far as they are known."""
    key_ids = {entry.key_id for entry in entries if entry.key_id is not None}
    token_ids = {entry.token_id for entry in entries} | {
        entry.actor_token_id for entry in entries if entry.actor == "token"
    }
    user_id = caller.user_id
    async with db.read() as connection:
        current = {row.id: row for row in await _of(connection, _CURRENT, user_id, key_ids)}
        past = {row.id: row for row in await _of(connection, _AT_THE_TIME, user_id, [entry.id for entry in entries])}
        last = {row.id: row for row in await _of(connection, _LAST, user_id, key_ids - current.keys())}
        valid = await _of(connection, _VALID, user_id, token_ids - {None})
        revoked = await _of(connection, _REVOKED, user_id, token_ids - {None, *(row.id for row in valid)})
    keys = {}
    for entry in entries:
        found = past.get(entry.id) or current.get(entry.key_id or 0) or last.get(entry.key_id or 0)
        if found is not None:
            keys[entry.id] = KeyName(found.label, found.mask, entry.key_id in current)
    tokens = {
        row.id: TokenName(row.label or row.mask, exists)
        for rows, exists in ((valid, True), (revoked, False))
        for row in rows
    }
    return Names(keys, tokens)


async def of_deleted(db: Database, caller: Principal, key_id: KeyId) -> str | None:
    """Return the label of a deleted key of the caller, or else its mask. None if there was no such key."""
    async with db.read() as connection:
        found = await _of(connection, _LAST, caller.user_id, [key_id])
    return found[0].label or found[0].mask if found else None


class _Named(NamedTuple):
    id: int
    label: str | None
    mask: str


async def _of(
    connection: AsyncConnection, queries: dict[str, Query[_Named]], user_id: UserId, ids: Iterable[int | None]
) -> list[_Named]:
    wanted = sorted(each for each in ids if each is not None)
    if not wanted:
        return []
    dialect = connection.dialect.name
    return await queries[dialect].all(connection, of_user=user_id, ids=as_list(wanted, dialect))


def _queries(found: Select[*tuple[object, ...]], of_id: ColumnElement[int]) -> dict[str, Query[_Named]]:
    """Return, for each dialect, the query for several ids of a column."""
    return {
        "sqlite": Query(found.where(listed_in_json()(of_id)), _Named),
        "postgresql": Query(found.where(listed_in_array(of_id)), _Named),
    }


_USER: BindParameter[int] = bindparam("of_user")
_CURRENT = _queries(
    select(api_keys.c.id, api_keys.c.name.label("label"), api_keys.c.last_4_chars.label("mask")).where(
        api_keys.c.owner_id == _USER
    ),
    api_keys.c.id,
)

# The first change after an entry says what the key was called when the entry was written.
_later = key_labels.alias()
_FIRST_LATER = (
    select(_later.c.id)
    .where(_later.c.key_id == audit_log.c.key_id, _later.c.until > audit_log.c.at)
    .order_by(_later.c.until, _later.c.id)
    .limit(1)
    .scalar_subquery()
)
_AT_THE_TIME = _queries(
    select(audit_log.c.id, key_labels.c.label, key_labels.c.mask)
    .join_from(audit_log, key_labels, key_labels.c.id == _FIRST_LATER)
    .where(audit_log.c.user_id == _USER, key_labels.c.user_id == _USER),
    audit_log.c.id,
)

_other = key_labels.alias()
_NEWEST = (
    select(_other.c.id)
    .where(_other.c.key_id == key_labels.c.key_id)
    .order_by(_other.c.until.desc(), _other.c.id.desc())
    .limit(1)
    .scalar_subquery()
)
_LAST = _queries(
    select(key_labels.c.key_id.label("id"), key_labels.c.label, key_labels.c.mask).where(
        key_labels.c.user_id == _USER, key_labels.c.id == _NEWEST
    ),
    key_labels.c.key_id,
)


_VALID = _queries(
    select(api_tokens.c.id, api_tokens.c.name.label("label"), api_tokens.c.hint.label("mask")).where(
        api_tokens.c.user_id == _USER
    ),
    api_tokens.c.id,
)
_REVOKED = _queries(
    select(token_labels.c.token_id.label("id"), token_labels.c.label, token_labels.c.hint.label("mask")).where(
        token_labels.c.user_id == _USER
    ),
    token_labels.c.token_id,
)
_KEEP = Command(insert(key_labels))
