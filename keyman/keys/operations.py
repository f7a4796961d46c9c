"""What can be done with keys. Every read starts from `_owned`, so that nobody sees another's.

A value is sealed before its transaction begins: no connection is held while Vault is asked, and what fails to be
sealed leaves nothing behind.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import NO_VALUE, Action, Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import FieldError, InvalidRequest, NotFound, PreconditionFailed
from keyman.identity.principals import Caller
from keyman.ids import MAX_ID
from keyman.keys import idempotency
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement, status_of
from keyman.keys.sealing import Sealer
from keyman.keys.tables import api_keys
from keyman.storage import paging
from keyman.storage.paging import Page, Slice
from keyman.storage.transactions import Database
from keyman.storage.types import AnyRow


class Created(NamedTuple):
    key: KeyInfo
    replayed: bool


class IfMatch(NamedTuple):
    """The ETags of an `If-Match` header; None for no condition, as with no header or `*`."""

    etags: frozenset[str] | None = None

    @classmethod
    def parse(cls, header: str | None) -> IfMatch:
        """A weak ETag never matches (RFC 9110, 13.1.1), and neither does what is not an ETag."""
        if header is None or header.strip() == "*":
            return cls()
        return cls(frozenset(part.strip() for part in header.split(",")))

    def check(self, key: KeyInfo) -> None:
        if self.etags is not None and key.etag not in self.etags:
            raise PreconditionFailed("The key has changed since you read it. Read it again before you change it.")


async def create(
    db: Database, sealer: Sealer, caller: Caller, new: NewKey, retry: IdempotencyKey | None = None
) -> Created:
    """Seal and store a key; with `retry`, once in 24 hours for the same request, for which `idempotency.find` was
    asked before.

    Raises InvalidRequest, IdempotencyMismatch, VaultUnavailable; nothing is stored then.
    """
    stored, vault_request_id = await sealer.seal(caller.user_id, new.service, new.api_key)
    moment = now()
    values = {
        "user_id": caller.user_id,
        "service": str(new.service),
        **_label(new.name),
        **stored._asdict(),
        "disabled": False,
        "undecryptable": False,
        "created_at": moment,
        "updated_at": moment,
        "expires_at": new.expires_at,
    }
    try:
        async with db.write() as connection:
            row = (await connection.execute(insert(api_keys).values(values).returning(*_SHOWN))).one()
            key = _shown(row, moment)
            if retry is not None:
                await idempotency.keep(connection, retry, key)
            await record(
                connection,
                Entry(
                    Action.KEY_CREATE,
                    caller.origin,
                    caller.user_id,
                    key_id=key.id,
                    service=key.service,
                    value_uuid=stored.value_uuid,
                    vault_request_id=vault_request_id,
                ),
            )
    except IntegrityError:
        # The same request, sent twice at once: the other one was first.
        first = await idempotency.find(db, retry) if retry is not None else None
        if first is None:
            raise
        return Created(first, replayed=True)
    return Created(key, replayed=False)


async def list_own(
    db: Database, caller: Caller, part: Slice, service: str | None = None, text: str | None = None
) -> Page[KeyInfo]:
    """The caller's keys, newest first; of one service, or with `text` in the label whatever its case."""
    statement = _owned(caller)
    if service is not None:
        statement = statement.where(api_keys.c.service == service)
    if text:  # a search for nothing: a key without a label fits it too
        statement = statement.where(api_keys.c.name_folded.contains(_folded(text), autoescape=True))
    async with db.read() as connection:
        page = await paging.fetch(connection, statement, api_keys.c.id, part)
    moment = now()
    return Page([_shown(row, moment) for row in page.items], page.cursor)


async def get(db: Database, caller: Caller, key_id: int) -> KeyInfo:
    """Raises NotFound for a key that is not the caller's, as for one that does not exist."""
    async with db.read() as connection:
        return _shown(await _one(connection, caller, key_id), now())


async def replace(
    db: Database, sealer: Sealer, caller: Caller, key_id: int, new: Replacement, condition: IfMatch
) -> KeyInfo:
    """Seal a new value into a stored key. Raises NotFound, PreconditionFailed, InvalidRequest, VaultUnavailable."""
    before = await get(db, caller, key_id)
    condition.check(before)
    if new.api_key.reveal() == before.last_4_chars:
        raise InvalidRequest.at(FieldError("api_key", "is the mask of the stored key, not a key"))
    stored, vault_request_id = await sealer.seal(caller.user_id, before.service, new.api_key)
    values = {**stored._asdict(), "undecryptable": False, **_surroundings(new)}
    return await _update(
        db,
        caller,
        key_id,
        values,
        condition,
        Action.KEY_REPLACE,
        value_uuid=stored.value_uuid,
        vault_request_id=vault_request_id,
    )


async def change(db: Database, caller: Caller, key_id: int, new: Change, condition: IfMatch) -> KeyInfo:
    """Change what surrounds a key's value. Raises NotFound, PreconditionFailed."""
    values = _surroundings(new)
    if new.disabled is not msgspec.UNSET:
        values["disabled"] = new.disabled
    if not values:
        key = await get(db, caller, key_id)
        condition.check(key)
        return key
    return await _update(db, caller, key_id, values, condition, Action.KEY_CHANGE)


async def remove(db: Database, caller: Caller, key_id: int, condition: IfMatch) -> None:
    """Delete a key with its ciphertext. Raises NotFound, PreconditionFailed."""
    async with db.write() as connection:
        key = _shown(await _one(connection, caller, key_id, lock=True), now())
        condition.check(key)
        await connection.execute(delete(api_keys).where(api_keys.c.id == key.id))
        await record(
            connection,
            Entry(
                Action.KEY_DELETE,
                caller.origin,
                caller.user_id,
                key_id=key.id,
                service=key.service,
                value_uuid=NO_VALUE,
            ),
        )


_SHOWN = (
    api_keys.c.id,
    api_keys.c.service,
    api_keys.c.name,
    api_keys.c.last_4_chars,
    api_keys.c.disabled,
    api_keys.c.undecryptable,
    api_keys.c.created_at,
    api_keys.c.updated_at,
    api_keys.c.expires_at,
    api_keys.c.last_used_at,
    api_keys.c.last_used_by,
)


def _owned(caller: Caller) -> Select[*tuple[Any, ...]]:
    return select(*_SHOWN).where(api_keys.c.user_id == caller.user_id)


async def _one(connection: AsyncConnection, caller: Caller, key_id: int, *, lock: bool = False) -> AnyRow:
    if not 0 < key_id <= MAX_ID:
        raise NotFound("There is nothing with this id.")
    statement = _owned(caller).where(api_keys.c.id == key_id)
    row = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
    if row is None:
        raise NotFound("There is nothing with this id.")
    return row


async def _update(
    db: Database,
    caller: Caller,
    key_id: int,
    values: dict[str, object],
    condition: IfMatch,
    action: Action,
    *,
    value_uuid: UUID | None = None,
    vault_request_id: str | None = None,
) -> KeyInfo:
    async with db.write() as connection:
        row = await _one(connection, caller, key_id, lock=True)
        before = _shown(row, now())
        condition.check(before)
        # Always later than before, whatever the clock does, so that the ETag is always a new one.
        moment = max(now(), before.updated_at + timedelta(microseconds=1))
        statement = update(api_keys).where(api_keys.c.id == key_id).values(**values, updated_at=moment)
        key = _shown((await connection.execute(statement.returning(*_SHOWN))).one(), moment)
        entries = [
            Entry(
                recorded,
                caller.origin,
                caller.user_id,
                key_id=key.id,
                service=key.service,
                value_uuid=value_uuid,
                vault_request_id=vault_request_id,
            )
            for recorded in _recorded_actions(row, values, action)
        ]
        await record(connection, *entries)
    return key


def _recorded_actions(before: AnyRow, values: dict[str, object], action: Action) -> Iterator[Action]:
    """What the audit log records of an update: `action`; pausing and resuming have their own."""
    is_switched = values.get("disabled", before.disabled) != before.disabled
    if not is_switched or values.keys() != {"disabled"}:
        yield action
    if is_switched:
        yield Action.KEY_RESUME if before.disabled else Action.KEY_PAUSE


def _shown(row: AnyRow, moment: datetime) -> KeyInfo:
    return KeyInfo(
        id=row.id,
        service=row.service,
        name=row.name,
        last_4_chars=row.last_4_chars,
        status=status_of(row, moment),
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        last_used_by=row.last_used_by,
    )


def _surroundings(new: Replacement | Change) -> dict[str, object]:
    values: dict[str, object] = {}
    if new.name is not msgspec.UNSET:
        values |= _label(new.name)
    if new.expires_at is not msgspec.UNSET:
        values["expires_at"] = new.expires_at
    return values


def _label(name: str | None) -> dict[str, object]:
    return {"name": name, "name_folded": None if name is None else _folded(name)}


def _folded(text: str) -> str:
    """What two spellings of a label have in common: no case, one composition."""
    return unicodedata.normalize("NFC", text.casefold())
