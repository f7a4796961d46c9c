"""The operations on keys. Their rows come from `keys/rows.py`, which shows no caller another owner's key.

A value is sealed before its transaction begins, so that a call to Vault keeps no database connection busy, and a failed
call stores nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple, TypedDict
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import NO_VALUE, Action, Entry
from keyman.audit.log import current_settings, current_value, record
from keyman.clock import now
from keyman.errors import Conflict, InvalidRequest, PreconditionFailed
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys import choosing, duplicates, idempotency, labels
from keyman.keys.duplicates import Stored
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.inserting import Insertion, columns_of, entry_of, insert_all
from keyman.keys.rows import LOCK, NO_CHECK, ONE, SHOWN, Shown, label_columns, require, to_info
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement
from keyman.keys.sealing import Sealer
from keyman.keys.settings import from_text, has_current_settings, is_current, settings_hash, to_text
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import Catalogue
from keyman.providers.recognition import check_settings
from keyman.providers.settings import KeySettings, check_destination
from keyman.storage.group import gathered
from keyman.storage.statements import Command, Query
from keyman.storage.transactions import Database


class Created(NamedTuple):
    """A stored key. It is `replayed` if the request was a repeated one, and the first one had stored it."""

    key: KeyInfo
    replayed: bool


_CHANGED_BY_PROXY = re.compile(r'\A(?:W/)?"([^"]*?)(?:-gzip|-br)?"\Z')


class IfMatch(NamedTuple):
    """The ETags of an `If-Match` header. They are None if there is no condition: no header, or `*`."""

    etags: frozenset[str] | None = None

    @classmethod
    def parse(cls, header: str | None) -> IfMatch:
        """Parse the header. A text that is not an ETag never matches.

        A proxy that compresses an answer weakens its ETag (`W/`) or appends `-gzip` or `-br`. Neither matters: keyman
        makes an ETag of what the owner sees, not of bytes.
        """
        if header is None or header.strip() == "*":
            return cls()
        return cls(frozenset(_CHANGED_BY_PROXY.sub(r'"\1"', part.strip()) for part in header.split(",")))

    def check(self, key: KeyInfo) -> None:
        """Raise PreconditionFailed if the key has another ETag."""
        if self.etags is not None and key.etag not in self.etags:
            raise PreconditionFailed("The key has changed since you read it. Read it again before you change it.")


async def create(
    db: Database,
    sealer: Sealer,
    caller: Principal,
    new: NewKey,
    retry: IdempotencyKey | None = None,
    *,
    max_keys: int = 0,
) -> Created:
    """Seal and store a key. With `retry`, a repeated request stores only one key in 24 hours.

    The owner can have at most `max_keys` keys, unless it is 0. Raises RateLimited beyond.

    Call `idempotency.find` before, if you give `retry`. Raises InvalidRequest, IdempotencyMismatch and
    VaultUnavailable, and then stores nothing.
    """
    sealed = await sealer.seal(caller.owner_id, new.service, new.api_key)
    moment = now()
    values = columns_of(caller, new, sealed, moment)

    async def store(connection: AsyncConnection) -> KeyInfo:
        inserted = await gathered(connection, insert_all, Insertion(values, max_keys))
        key = to_info(inserted.shown, moment)
        key.duplicate_of = inserted.duplicate_of
        if retry is not None:
            await idempotency.keep(connection, retry, key)
        await record(connection, entry_of(caller, new, sealed, key))
        return key

    try:
        key = await db.together(caller, store)
    except IntegrityError:
        # The same request was sent twice at the same time, and the other one was first.
        first = await idempotency.find(db, retry, KeyInfo) if retry is not None else None
        if first is None:
            raise
        return Created(first, replayed=True)
    return Created(key, replayed=False)


async def get(db: Database, caller: Principal, key_id: KeyId) -> KeyInfo:
    """Return a key of the caller. Raises NotFound for a key that does not exist or is not the caller's."""
    async with db.read() as connection:
        return to_info(await require(connection, ONE, caller, key_id), now())


async def replace(
    db: Database,
    sealer: Sealer,
    catalogue: Catalogue,
    caller: Principal,
    key_id: KeyId,
    new: Replacement,
    condition: IfMatch,
) -> KeyInfo:
    """Seal a new value for a stored key. Raises NotFound, PreconditionFailed, InvalidRequest, VaultUnavailable.

    Raises Conflict if the settings are to stay, but are not those that the audit log names.
    """
    before = await get(db, caller, key_id)
    condition.check(before)
    _check_settings(catalogue, before, new.settings)
    stored, vault_request_id = await sealer.seal(caller.owner_id, before.service, new.api_key)
    values = {**stored._asdict(), "undecryptable": False, **NO_CHECK, **_metadata_of(new)}
    value = _NewValue(stored.value_uuid, vault_request_id, stored.fingerprint)
    return await _update(db, catalogue, caller, key_id, values, condition, Action.KEY_REPLACE, value)


async def change(
    db: Database, catalogue: Catalogue, caller: Principal, key_id: KeyId, new: Change, condition: IfMatch
) -> KeyInfo:
    """Change the metadata of a key. Raises NotFound, PreconditionFailed, InvalidRequest.

    Raises Conflict if the settings are to change, and value or settings are not those that the audit log names.
    """
    values = _metadata_of(new)
    if new.disabled is not msgspec.UNSET:
        values["disabled"] = new.disabled
    if new.default is not msgspec.UNSET:
        values["is_default"] = new.default
    if not values or new.settings is not msgspec.UNSET:
        key = await get(db, caller, key_id)
        condition.check(key)
        if not values:
            return key
        _check_settings(catalogue, key, new.settings)
    return await _update(db, catalogue, caller, key_id, values, condition, Action.KEY_CHANGE)


def _check_settings(catalogue: Catalogue, key: KeyInfo, given: KeySettings | msgspec.UnsetType) -> None:
    if not isinstance(given, msgspec.UnsetType) and (faults := [*check_settings(catalogue, key.service, given)]):
        raise InvalidRequest.at(*faults)


async def remove(db: Database, caller: Principal, key_id: KeyId, condition: IfMatch) -> None:
    """Delete a key with its ciphertext. Raises NotFound, PreconditionFailed."""

    async def delete_it(connection: AsyncConnection) -> None:
        row = await require(connection, LOCK, caller, key_id)
        key = to_info(row, now())
        condition.check(key)
        await _DELETE.execute(connection, of_id=key.id)
        await labels.keep(connection, caller.user_id, row)
        await record(
            connection,
            Entry(
                Action.KEY_DELETE,
                caller.origin,
                caller.user_id,
                key_id=key.id,
                service=key.service,
                application=caller.sent_by,
                value_uuid=NO_VALUE,
            ),
        )

    await db.together(caller, delete_it, about=key_id)


_UPDATE = Query(update(api_keys).where(api_keys.c.id == bindparam("of_id")).returning(*SHOWN), Shown)
_DELETE = Command(delete(api_keys).where(api_keys.c.id == bindparam("of_id")))


class _NewValue(NamedTuple):
    """A value that replaces the stored one, Vault's id of the call that sealed it, and its fingerprint."""

    value_uuid: UUID
    vault_request_id: str | None
    fingerprint: bytes | None


async def _update(
    db: Database,
    catalogue: Catalogue,
    caller: Principal,
    key_id: KeyId,
    values: dict[str, object],
    condition: IfMatch,
    action: Action,
    new: _NewValue | None = None,
) -> KeyInfo:
    becomes_default = values.get("is_default") is True

    async def update_it(connection: AsyncConnection) -> KeyInfo:
        if becomes_default:
            await choosing.lock_service(connection, caller, key_id)
        row = await require(connection, LOCK, caller, key_id)
        moment = now()
        before = to_info(row, moment)
        condition.check(before)
        changed = values
        if new is not None and before.expires_at is not None and before.expires_at <= moment:
            changed = {"expires_at": None, **values}  # the new value is not expired
        naming: _Naming = {}
        if new is not None or "settings" in changed:
            naming = await _naming(connection, catalogue, row, changed.get("settings"), new)
        entries = await choosing.clear_default(connection, caller, row, moment) if becomes_default else []
        # Always later than before, even if the clock was set back, so that the ETag always changes.
        moment = max(moment, before.updated_at + timedelta(microseconds=1))
        key = to_info(await _UPDATE.one(connection, of_id=key_id, **changed, updated_at=moment), moment)
        if (key.name, key.last_4_chars) != (row.name, row.last_4_chars):
            await labels.keep(connection, caller.user_id, row)
        entries += [
            Entry(
                recorded,
                caller.origin,
                caller.user_id,
                key_id=key.id,
                service=key.service,
                application=caller.sent_by,
                **naming,
            )
            for recorded in _recorded_actions(row, changed, action)
        ]
        if new is not None:
            stored = Stored(caller.owner_id, key.id, new.fingerprint)
            key.duplicate_of = await gathered(connection, duplicates.find, stored)
        await record(connection, *entries)
        return key

    if becomes_default:
        return await db.by_itself(caller, update_it)  # it locks several keys
    return await db.together(caller, update_it, about=key_id)


class _Naming(TypedDict, total=False):
    """The fields of an audit entry that names the current value of a key and its settings."""

    value_uuid: UUID
    settings_hash: str
    vault_request_id: str | None


async def _naming(
    connection: AsyncConnection, catalogue: Catalogue, row: Shown, settings: object, new: _NewValue | None
) -> _Naming:
    """Return the fields that name the value and the settings of a key from now on. `settings` are None if they stay.

    An entry must not name what somebody has put into the database: then a value or settings that the resolver refuses
    would be the current ones. Raises Conflict. Raises InvalidRequest for settings that send the stored value elsewhere.
    """
    # A statement of its own, after the lock: it sees what the transaction wrote that had the lock before.
    stored = await _CURRENT.one(connection, of_id=row.id)
    if new is None and isinstance(settings, str):
        if not is_current(stored):
            raise Conflict("The stored key is not the current one. Store the key again, with its settings.")
        before, after = from_text(row.settings) or {}, from_text(settings) or {}
        if faults := [*check_destination(catalogue.settings(row.service), before, after)]:
            raise InvalidRequest.at(*faults)
        return _Naming(value_uuid=stored.value_uuid, settings_hash=settings_hash(settings))
    if not isinstance(settings, str) and not has_current_settings(stored):
        raise Conflict("The stored settings are not the current ones. Send the settings together with the key.")
    text = settings if isinstance(settings, str) else stored.settings
    assert new is not None
    return _Naming(value_uuid=new.value_uuid, settings_hash=settings_hash(text), vault_request_id=new.vault_request_id)


class _Named(NamedTuple):
    """What the row of a key has, and what the audit log says that it has."""

    value_uuid: UUID
    settings: str
    current_value: UUID | None
    current_settings: str | None


_CURRENT = Query(
    select(
        api_keys.c.value_uuid,
        api_keys.c.settings,
        current_value(api_keys.c.id).label("current_value"),
        current_settings(api_keys.c.id).label("current_settings"),
    ).where(api_keys.c.id == bindparam("of_id")),
    _Named,
)


def _recorded_actions(before: Shown, values: dict[str, object], action: Action) -> Iterator[Action]:
    """Yield the actions to record for an update.

    Pausing and resuming have their own action. It replaces `action` if the update changes nothing else.
    """
    is_switched = values.get("disabled", before.disabled) != before.disabled
    if not is_switched or values.keys() != {"disabled"}:
        yield action
    if is_switched:
        yield Action.KEY_RESUME if before.disabled else Action.KEY_PAUSE


def _metadata_of(new: Replacement | Change) -> dict[str, object]:
    """Return the columns that a request changes beside the value. A field that is left out is not among them."""
    values: dict[str, object] = {}
    if new.name is not msgspec.UNSET:
        values |= label_columns(new.name)
    if new.expires_at is not msgspec.UNSET:
        values["expires_at"] = new.expires_at
    if new.settings is not msgspec.UNSET:
        values |= {"settings": to_text(new.settings), **NO_CHECK}  # they may decide where the key is sent
    return values
