"""The keys of a deleted account: the resolver finds none, and refuses what somebody restores."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from keyman.identity.tables import users
from keyman.keys import erasure
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from keyman.values import RowNumber
from tests.planes.management.api.harness import problem
from tests.planes.resolver.pair import Pair

pytestmark = pytest.mark.anyio


async def test_the_keys_of_a_deleted_account_are_not_found(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key = await ada.key()
    await app.gets(key_id=key)
    await erasure.delete_any(shared_pair.resolver.database, RowNumber(ada.id))
    unknown = problem(await app.ask(key_id=2**40), "not-found")
    for asked in ({"key_id": key}, {"user_id": ada.id, "service": "OPENAI"}):
        assert problem(await app.ask(**asked), "not-found")["detail"] == unknown["detail"]


async def test_a_restored_key_of_a_deleted_account_is_refused(shared_pair: Pair) -> None:
    """Also if the account is enabled behind keyman's back: the audit log says that the key has no value."""
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key = await ada.key()
    row = (await shared_pair.row(key))._asdict()
    await erasure.delete_any(shared_pair.resolver.database, RowNumber(ada.id))
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(api_keys).values(row))
    problem(await app.ask(key_id=key), "not-found")
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == ada.id).values(disabled_at=None))
    problem(await app.ask(key_id=key), "undecryptable")
