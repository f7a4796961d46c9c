"""The answer to a COMMIT does not come, and a hundred clients wait for it: each gets an answer, and it is true."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from keyman.audit import verification
from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.keys.deployment import Deployment
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database
from tests.faults.conftest import plane_of
from tests.support.planes import Vault
from tests.support.relay import Cut, relay_to

pytestmark = pytest.mark.anyio

CLIENTS = 100

UNKNOWN = "may or may not be stored"
NOTHING = "Nothing was stored."


async def post(client: httpx.AsyncClient, name: str) -> httpx.Response:
    body = {"service": "OPENAI", "api_key": "sk-hq2v9mXbT0c7eUKwN4Rd1234", "name": name}
    return await client.post("/api/keys", json=body, headers={"Idempotency-Key": name})


def told(answer: httpx.Response) -> str:
    """What an answer says about its key: one of three."""
    if answer.status_code == 201:
        return "stored"
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == "/problems/database-unavailable"
    (said,) = [text for text in (UNKNOWN, NOTHING) if text in answer.json()["detail"]]
    return said


async def stored(url: URL) -> set[str]:
    """The names of the keys that are stored. Each has its one entry."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        rows = (await connection.execute(select(api_keys.c.id, api_keys.c.name))).all()
        made = select(audit_log.c.key_id).where(audit_log.c.action == Action.KEY_CREATE)
        entries = (await connection.execute(made)).scalars().all()
    await engine.dispose()
    assert sorted(entries) == sorted(row.id for row in rows)
    return {row.name for row in rows}


@pytest.mark.parametrize("where", Cut)
async def test_each_of_a_hundred_clients_gets_a_true_answer_when_a_commit_is_not_answered(
    postgresql: URL, provisioned: Vault, quick_passwords: PasswordHasher, where: Cut
) -> None:
    assert postgresql.port is not None
    async with relay_to(postgresql.port) as relay:
        url = postgresql.set(host="127.0.0.1", port=relay.port)
        async with plane_of(url, provisioned.settings, quick_passwords) as plane:
            ada = await plane.user()
            names = [f"key {number}" for number in range(CLIENTS)]
            relay.cut(where, least=30_000)  # the first groups are of few keys
            answers = await asyncio.gather(*(post(ada, name) for name in names))
            assert relay.was_cut.is_set()
            relay.mend()
            found = await stored(postgresql)
            outcomes = {name: told(answer) for name, answer in zip(names, answers, strict=True)}
            for name, outcome in outcomes.items():
                if outcome != UNKNOWN:
                    assert (outcome == "stored") is (name in found)
            counted = Counter(outcomes.values())
            if where is Cut.AFTER:
                assert counted == {"stored": CLIENTS}
            elif where is Cut.BEFORE:
                assert counted.keys() == {"stored", NOTHING}
                assert counted[NOTHING] >= 10
            else:
                assert counted[UNKNOWN] >= 10
                assert {name for name, outcome in outcomes.items() if outcome == UNKNOWN} <= found
            # Sent again with the same Idempotency-Key, every key is stored once.
            again = await asyncio.gather(*(post(ada, name) for name in names))
            assert {answer.status_code for answer in again} == {201}
            assert await stored(postgresql) == {*names}
    db = Database(postgresql)
    assert not (await verification.verify(db, (await Deployment.load(db)).uuid)).breaks
    await db.close()
