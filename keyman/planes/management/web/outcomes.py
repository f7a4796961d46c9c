"""What the list of keys says of the change that a form has just made: of which keys, and how to undo it."""

from __future__ import annotations

from dataclasses import dataclass

from keyman.errors import NotFound
from keyman.http.requests import RowId
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys import labels, operations
from keyman.keys.schemas import KeyInfo
from keyman.planes.management.web.pages import Visit
from keyman.providers.catalogue import Catalogue
from keyman.storage.paging import DEFAULT_LIMIT
from keyman.storage.transactions import Database

CHANGED = "changed"
DELETED = "deleted"


@dataclass(frozen=True)
class Outcome:
    """The change that the address of the list names in `done`, and the keys that it names in `saved`.

    `name` is what the user calls the only key. It is empty if there are several, or if nothing is known of the key.
    `peeled` says that what was pasted around the key was removed, and `unending` that an expiry is gone because it had
    passed.
    """

    done: str = ""
    ids: tuple[KeyId, ...] = ()
    name: str = ""
    key: KeyInfo | None = None
    duplicate: KeyInfo | None = None
    peeled: bool = False
    unending: bool = False

    @classmethod
    async def of(
        cls, db: Database, caller: Principal, catalogue: Catalogue, visit: Visit, query: dict[str, str]
    ) -> Outcome:
        """Read the address. What it says wrongly, or another site has written, is left out."""
        ids = ids_of(query.get("saved", "").split(","))
        if len(ids) != 1:
            return cls(visit.done, ids)
        key = await _own(db, caller, ids[0])
        duplicate = await _own(db, caller, *ids_of([query.get("duplicate", "")]))
        name = name_of(catalogue, key) if key is not None else ""
        if key is None and visit.done == DELETED:
            name = await labels.of_deleted(db, caller, ids[0]) or ""
        is_unending = "unending" in query and visit.done == CHANGED and key is not None and key.expires_at is None
        return cls(visit.done, ids, name, key, duplicate, "peeled" in query, is_unending)


def ids_of(texts: list[str]) -> tuple[KeyId, ...]:
    """Return the numbers of keys among these texts, each once, and no more than a page has."""
    found: dict[KeyId, None] = {}
    for text in texts:
        try:
            found[KeyId(RowId.parse(text))] = None
        except NotFound:
            continue
    return tuple(found)[:DEFAULT_LIMIT]


def name_of(catalogue: Catalogue, key: KeyInfo) -> str:
    """Return what a user calls a key: its service, and its label or else its mask."""
    return f"{catalogue.name(key.service)} · {key.name or key.last_4_chars}"


async def _own(db: Database, caller: Principal, *ids: KeyId) -> KeyInfo | None:
    """Return the caller's key, or None if there is none, also if it was deleted since."""
    try:
        return await operations.get(db, caller, ids[0]) if ids else None
    except NotFound:
        return None
