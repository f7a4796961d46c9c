"""The rows of the keys of an owner. Every read starts from `OWNED`, so that no caller sees another owner's key."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import NotFound
from keyman.identity.principals import Principal
from keyman.ids import MAX_ID, KeyId
from keyman.keys.schemas import KeyCheck, KeyInfo, Status, status_of
from keyman.keys.settings import NONE, from_text
from keyman.keys.tables import api_keys
from keyman.patterns import APPLICATION_NAME
from keyman.providers.verdicts import Verdict, known_detail
from keyman.storage.statements import Query


class Shown(NamedTuple):
    """The columns of a key that its owner sees."""

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
    check_verdict: str | None
    checked_at: datetime | None
    check_detail: str | None
    checked_by: str | None
    is_default: bool


SHOWN = (
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
    api_keys.c.check_verdict,
    api_keys.c.checked_at,
    api_keys.c.check_detail,
    api_keys.c.checked_by,
    api_keys.c.is_default,
)

NO_CHECK: Mapping[str, None] = dict.fromkeys(("check_verdict", "checked_at", "check_detail", "checked_by"))
"""The columns of the last verdict, for a key of which nothing is known."""

OWNED = select(*SHOWN).where(api_keys.c.owner_id == bindparam("owner_id"))

ONE = Query(OWNED.where(api_keys.c.id == bindparam("of_id")), Shown)
LOCK = Query(OWNED.where(api_keys.c.id == bindparam("of_id")).with_for_update(), Shown)


async def require(connection: AsyncConnection, query: Query[Shown], caller: Principal, key_id: KeyId) -> Shown:
    """Return the caller's key, by `ONE` or `LOCK`. Raises NotFound."""
    if 0 < key_id <= MAX_ID:
        row = await query.first(connection, owner_id=caller.owner_id, of_id=key_id)
        if row is not None:
            return row
    raise NotFound("There is nothing with this id.")


def to_info(row: Shown, moment: datetime) -> KeyInfo:
    """Return a key as answers show it. One whose settings were damaged in the database shows none of them."""
    settings = {} if row.settings == NONE else from_text(row.settings)  # most have none
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
        check=_check(row),
        default=row.is_default,
    )


def _check(row: Shown) -> KeyCheck | None:
    """Return the last verdict, with one of keyman's own sentences.

    A row that keyman has not written, such as one with an unknown verdict, has none.
    """
    if row.check_verdict not in _VERDICTS or row.checked_at is None:
        return None
    if row.checked_by is None or not re.fullmatch(APPLICATION_NAME, row.checked_by):
        return None
    verdict = Verdict(row.check_verdict)
    return KeyCheck(verdict, row.checked_at, known_detail(verdict, row.check_detail), row.checked_by)


_VERDICTS = frozenset(Verdict)


def label_columns(name: str | None) -> dict[str, object]:
    """Return the columns of a label: the text, and its form for searching."""
    return {"name": name, "name_folded": None if name is None else folded(name)}


def folded(text: str) -> str:
    """Return a label without case and in one Unicode composition, to compare spellings."""
    return unicodedata.normalize("NFC", text.casefold())


def pattern_of(text: str) -> str:
    """Return a LIKE pattern for labels that contain this text. Wildcards in the text are escaped."""
    escaped = folded(text).replace("/", "//").replace("%", "/%").replace("_", "/_")
    return f"%{escaped}%"
