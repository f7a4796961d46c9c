"""The operations on keys. Every read starts from `_OWNED`, so that no caller sees another owner's key.

A value is sealed before its transaction begins, so that a call to Vault keeps no database connection busy, and a failed
call stores nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict
from uuid import UUID

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import NO_VALUE, Action, Entry
from keyman.audit.log import current_settings, current_value, record
from keyman.clock import now
from keyman.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed, RateLimited, Sentence
from keyman.identity.principals import Principal
from keyman.identity.tables import owners
from keyman.ids import MAX_ID, KeyId, OwnerId
from keyman.keys import idempotency
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.schemas import Change, KeyInfo, NewKey, Replacement, Status, status_of
from keyman.keys.sealing import Sealer
from keyman.keys.settings import from_text, has_current_settings, is_current, settings_hash, to_text
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import Catalogue
from keyman.providers.recognition import check_settings
from keyman.providers.settings import KeySettings, check_destination
from keyman.storage.paging import Listing, Page, Slice
from keyman.storage.statements import Command, Query, scalar
from keyman.storage.transactions import Database

FULL_RETRY_AFTER = 3600
"""Seconds, for an owner who has as many keys as they can have. Waiting does not help, but a client that waits does not
ask again and again.
"""


class Created(NamedTuple):
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
    stored, vault_request_id = await sealer.seal(caller.owner_id, new.service, new.api_key)
    settings = to_text(new.settings)
    moment = now()
    values: dict[str, object] = {
        "user_id": caller.user_id,
        "owner_id": caller.owner_id,
        "service": str(new.service),
        **_label(new.name),
        **stored._asdict(),
        "disabled": False,
        "undecryptable": False,
        "created_at": moment,
        "updated_at": moment,
        "expires_at": new.expires_at,
        "settings": settings,
    }
    try:
        async with db.write(caller) as connection:
            await _check_number(connection, caller, max_keys)
            key = _to_info(await _INSERT.one(connection, **values), moment)
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
                    settings_hash=settings_hash(settings),
                ),
            )
    except IntegrityError:
        # The same request was sent twice at the same time, and the other one was first.
        first = await idempotency.find(db, retry) if retry is not None else None
        if first is None:
            raise
        return Created(first, replayed=True)
    return Created(key, replayed=False)


async def list_own(
    db: Database, caller: Principal, part: Slice, service: str | None = None, text: str | None = None
) -> Page[KeyInfo]:
    """Return the caller's keys, newest first.

    `service` selects the keys of one service, and `text` the keys with this text in their label, ignoring case.
    """
    listing = _LISTINGS[service is not None, bool(text)]  # an empty text also matches keys without a label
    parameters: dict[str, object] = {"owner_id": caller.owner_id}
    if service is not None:
        parameters["service"] = service
    if text:
        parameters["pattern"] = _pattern(text)
    async with db.read() as connection:
        page = await listing.page(connection, part, **parameters)
    moment = now()
    return Page([_to_info(row, moment) for row in page.items], page.cursor)


async def get(db: Database, caller: Principal, key_id: KeyId) -> KeyInfo:
    """Return a key of the caller. Raises NotFound for a key that does not exist or is not the caller's."""
    async with db.read() as connection:
        return _to_info(await _one(connection, _ONE, caller, key_id), now())


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
    values = {**stored._asdict(), "undecryptable": False, **_surroundings(new)}
    value = _NewValue(stored.value_uuid, vault_request_id)
    return await _update(db, catalogue, caller, key_id, values, condition, Action.KEY_REPLACE, value)


async def change(
    db: Database, catalogue: Catalogue, caller: Principal, key_id: KeyId, new: Change, condition: IfMatch
) -> KeyInfo:
    """Change the metadata of a key. Raises NotFound, PreconditionFailed, InvalidRequest.

    Raises Conflict if the settings are to change, and value or settings are not those that the audit log names.
    """
    values = _surroundings(new)
    if new.disabled is not msgspec.UNSET:
        values["disabled"] = new.disabled
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
    async with db.write(caller) as connection:
        key = _to_info(await _one(connection, _LOCK, caller, key_id), now())
        condition.check(key)
        await _DELETE.execute(connection, of_id=key.id)
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


async def _check_number(connection: AsyncConnection, caller: Principal, most: int) -> None:
    """Raise RateLimited if the owner has `most` keys. Lock the owner, so that no other request counts meanwhile."""
    if not most:
        return
    await _LOCK_OWNER.first(connection, owner_id=caller.owner_id)
    if await _COUNT.one(connection, owner_id=caller.owner_id, most=most) >= most:
        raise RateLimited(
            Sentence(
                "This account has as many API keys as it can have: {count}. Delete one that you no longer use.",
                count=most,
            ),
            retry_after=FULL_RETRY_AFTER,
        )


class _Shown(NamedTuple):
    id: KeyId
    service: str
    name: str | None
    last_4_chars: str
    disabled: bool
    undecryptable: bool
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_by: str | None
    settings: str


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
    api_keys.c.settings,
)


# Every read starts here.
_OWNED = select(*_SHOWN).where(api_keys.c.owner_id == bindparam("owner_id"))
_OF_SERVICE = api_keys.c.service == bindparam("service")
_IS_LIKE = api_keys.c.name_folded.like(bindparam("pattern"), escape="/")
_LISTINGS: Mapping[tuple[bool, bool], Listing[_Shown]] = {
    (False, False): Listing(_OWNED, api_keys.c.id, _Shown),
    (True, False): Listing(_OWNED.where(_OF_SERVICE), api_keys.c.id, _Shown),
    (False, True): Listing(_OWNED.where(_IS_LIKE), api_keys.c.id, _Shown),
    (True, True): Listing(_OWNED.where(_OF_SERVICE, _IS_LIKE), api_keys.c.id, _Shown),
}
"""The lists of keys, by two flags: whether they are of one service, and whether their labels are searched."""

_ONE = Query(_OWNED.where(api_keys.c.id == bindparam("of_id")), _Shown)
_LOCK = Query(_OWNED.where(api_keys.c.id == bindparam("of_id")).with_for_update(), _Shown)
# The lock is weak enough that rows that refer to the owner can be inserted meanwhile.
_LOCK_OWNER = scalar(
    select(owners.c.id).where(owners.c.id == bindparam("owner_id")).with_for_update(key_share=True), OwnerId
)
_SOME = select(api_keys.c.id).where(api_keys.c.owner_id == bindparam("owner_id")).limit(bindparam("most")).subquery()
_COUNT = scalar(select(func.count()).select_from(_SOME), int)
_INSERT = Query(insert(api_keys).returning(*_SHOWN), _Shown)
_UPDATE = Query(update(api_keys).where(api_keys.c.id == bindparam("of_id")).returning(*_SHOWN), _Shown)
_DELETE = Command(delete(api_keys).where(api_keys.c.id == bindparam("of_id")))


async def _one(connection: AsyncConnection, query: Query[_Shown], caller: Principal, key_id: KeyId) -> _Shown:
    """Return the caller's key, by `_ONE` or `_LOCK`. Raises NotFound."""
    if 0 < key_id <= MAX_ID:
        row = await query.first(connection, owner_id=caller.owner_id, of_id=key_id)
        if row is not None:
            return row
    raise NotFound("There is nothing with this id.")


class _NewValue(NamedTuple):
    """A value that replaces the stored one, and Vault's id of the call that sealed it."""

    value_uuid: UUID
    vault_request_id: str | None


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
    async with db.write(caller) as connection:
        row = await _one(connection, _LOCK, caller, key_id)
        moment = now()
        before = _to_info(row, moment)
        condition.check(before)
        if new is not None and before.expires_at is not None and before.expires_at <= moment:
            values = {"expires_at": None, **values}  # the new value is not expired
        naming: _Naming = {}
        if new is not None or "settings" in values:
            naming = await _naming(connection, catalogue, row, values.get("settings"), new)
        # Always later than before, even if the clock was set back, so that the ETag always changes.
        moment = max(moment, before.updated_at + timedelta(microseconds=1))
        key = _to_info(await _UPDATE.one(connection, of_id=key_id, **values, updated_at=moment), moment)
        entries = [
            Entry(recorded, caller.origin, caller.user_id, key_id=key.id, service=key.service, **naming)
            for recorded in _recorded_actions(row, values, action)
        ]
        await record(connection, *entries)
    return key


class _Naming(TypedDict, total=False):
    """The fields of an audit entry that names the current value of a key and its settings."""

    value_uuid: UUID
    settings_hash: str
    vault_request_id: str | None


async def _naming(
    connection: AsyncConnection, catalogue: Catalogue, row: _Shown, settings: object, new: _NewValue | None
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


class _Stored(NamedTuple):
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
    _Stored,
)


def _recorded_actions(before: _Shown, values: dict[str, object], action: Action) -> Iterator[Action]:
    """Yield the actions to record for an update.

    Pausing and resuming have their own action. It replaces `action` if the update changes nothing else.
    """
    is_switched = values.get("disabled", before.disabled) != before.disabled
    if not is_switched or values.keys() != {"disabled"}:
        yield action
    if is_switched:
        yield Action.KEY_RESUME if before.disabled else Action.KEY_PAUSE


def _to_info(row: _Shown, moment: datetime) -> KeyInfo:
    """Return a key as answers show it. One whose settings were damaged in the database shows none of them."""
    settings = from_text(row.settings)
    return KeyInfo(
        id=row.id,
        service=row.service,
        name=row.name,
        last_4_chars=row.last_4_chars,
        status=status_of(row, moment) if settings is not None else Status.UNDECRYPTABLE,
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        last_used_by=row.last_used_by,
        settings=settings or {},
    )


def _surroundings(new: Replacement | Change) -> dict[str, object]:
    values: dict[str, object] = {}
    if new.name is not msgspec.UNSET:
        values |= _label(new.name)
    if new.expires_at is not msgspec.UNSET:
        values["expires_at"] = new.expires_at
    if new.settings is not msgspec.UNSET:
        values["settings"] = to_text(new.settings)
    return values


def _label(name: str | None) -> dict[str, object]:
    return {"name": name, "name_folded": None if name is None else _folded(name)}


def _folded(text: str) -> str:
    """Return a label without case and in one Unicode composition, to compare spellings."""
    return unicodedata.normalize("NFC", text.casefold())


def _pattern(text: str) -> str:
    """Return a LIKE pattern for labels that contain this text. Wildcards in the text are escaped."""
    escaped = _folded(text).replace("/", "//").replace("%", "/%").replace("_", "/_")
    return f"%{escaped}%"
