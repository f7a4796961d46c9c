"""Through which application a key came: somebody stored its value in a session that an application had opened.

An application whose default issuer is an identity provider can name a person in a portal link before this person comes
from there for the first time. Then the account is the person's (identity/first_proof.py), and what was stored before
stays in it. So the pages say of each such key through which application it came, until its owner replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import bindparam, select

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.identity.principals import Principal
from keyman.identity.standing import listed_in_array, listed_in_json
from keyman.ids import KeyId
from keyman.keys.tables import api_keys
from keyman.storage.arrays import as_list
from keyman.storage.statements import Query
from keyman.storage.transactions import Database


async def left_through(db: Database, caller: Principal, key_ids: Iterable[KeyId]) -> Mapping[KeyId, str]:
    """Return, by the id of the key, the application through which a value of the caller's came. Others are left out.

    In a session that an application has opened, there are none: its person comes from that application.
    """
    wanted = sorted(key_ids)
    if caller.portal is not None or not wanted:
        return {}
    async with db.read() as connection:
        dialect = connection.dialect.name
        found = await _LEFT[dialect].all(connection, of_owner=caller.owner_id, ids=as_list(wanted, dialect))
    return {row.id: row.application for row in found}


class _Left(NamedTuple):
    id: KeyId
    application: str


# Each entry about a value has the same `value_uuid` as the row, also one that repeats a pruned entry.
_OF_VALUE = (
    select(api_keys.c.id, audit_log.c.application)
    .join_from(api_keys, audit_log, audit_log.c.key_id == api_keys.c.id)
    .where(
        api_keys.c.owner_id == bindparam("of_owner"),
        audit_log.c.value_uuid == api_keys.c.value_uuid,
        audit_log.c.value_uuid.is_not(None),  # as in the index
        audit_log.c.application.is_not(None),
        audit_log.c.action.in_([Action.KEY_CREATE, Action.KEY_REPLACE, Action.TRAIL_CARRY]),
    )
)
_LEFT = {
    "sqlite": Query(_OF_VALUE.where(listed_in_json()(api_keys.c.id)), _Left),
    "postgresql": Query(_OF_VALUE.where(listed_in_array(api_keys.c.id)), _Left),
}
