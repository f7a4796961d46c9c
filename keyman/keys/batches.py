"""Stores several keys in one transaction. What is wrong with one of them does not stop the others.

If Vault seals only some of them, none is stored: the request fails as a whole, and can be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.audit.entries import Entry
from keyman.audit.log import record
from keyman.clock import now
from keyman.errors import Problem
from keyman.identity.principals import Principal
from keyman.keys import idempotency
from keyman.keys.idempotency import IdempotencyKey
from keyman.keys.inserting import Insertion, columns_of, entry_of, insert_all
from keyman.keys.rows import to_info
from keyman.keys.schemas import KeyInfo, NewKey
from keyman.keys.sealing import SealedValue, Sealer
from keyman.storage.transactions import Database

T = TypeVar("T")

Outcome: TypeAlias = KeyInfo | Problem
"""What becomes of an entry: a stored key, or why it is refused."""


class _Ready(NamedTuple):
    """A key that is to be stored, and its place in the request."""

    place: int
    new: NewKey
    sealed: SealedValue


async def create(
    db: Database,
    sealer: Sealer,
    caller: Principal,
    entries: Sequence[NewKey | Problem],
    answer: Callable[[Sequence[Outcome]], T],
    retry: IdempotencyKey | None = None,
    *,
    max_keys: int = 0,
) -> T | None:
    """Seal and store keys, and return what `answer` makes of the outcomes, one for each entry, in order.

    An entry that is a Problem was refused before. The owner can have at most `max_keys` keys, unless it is 0: the
    outcome is RateLimited beyond. `answer` is what `retry` keeps. Return None if the same request was carried out at
    the same moment; `idempotency.find` then has its answer.

    Raises VaultUnavailable, and then stores nothing.
    """
    places = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, NewKey)]
    sealed = await sealer.seal_all(caller.owner_id, [(new.service, new.api_key) for _, new in places])
    wanted = [_Ready(place, new, one) for (place, new), one in zip(places, sealed, strict=True)]

    async def store(connection: AsyncConnection) -> T:
        outcomes: list[NewKey | Outcome] = [*entries]
        moment = now()
        rows = await insert_all(
            connection, [Insertion(columns_of(caller, one.new, one.sealed, moment), max_keys) for one in wanted]
        )
        made = list[Entry]()
        for one, row in zip(wanted, rows, strict=True):
            if isinstance(row, Problem):
                outcomes[one.place] = row
                continue
            outcomes[one.place] = key = to_info(row.shown, moment)
            key.duplicate_of = row.duplicate_of
            made.append(entry_of(caller, one.new, one.sealed, key))
        found = answer([outcome for outcome in outcomes if not isinstance(outcome, NewKey)])
        if retry is not None:
            await idempotency.keep(connection, retry, found)
        await record(connection, *made)
        return found

    try:
        return await db.by_itself(caller, store)  # it would keep the other writes of a group waiting
    except IntegrityError:
        if retry is None or await idempotency.find(db, retry, object) is None:
            raise
        return None
