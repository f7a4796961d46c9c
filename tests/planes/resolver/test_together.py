"""Writes that share a transaction give the same rows, answers and entries as the same writes one at a time."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from keyman.audit import verification
from keyman.audit.tables import audit_log
from keyman.keys.deployment import Deployment
from keyman.keys.tables import api_keys
from tests.planes.resolver.pair import App, Owner, Pair
from tests.support.fast import examples

pytestmark = pytest.mark.anyio

USERS = 8


class Step(NamedTuple):
    """What a user, or an application, does with the key that has this number among those of the user."""

    verb: str
    number: int


steps = st.builds(
    Step,
    st.sampled_from(["create", "twice", "replace", "change", "stale", "delete", "resolve", "newest"]),
    st.integers(0, 2),
)
scripts = st.lists(st.lists(steps, min_size=1, max_size=4), min_size=USERS, max_size=USERS)


class Outcome(NamedTuple):
    answers: list[Any]
    rows: list[tuple[Any, ...]]
    entries: list[tuple[Any, ...]]


async def play(pair: Pair, owner: Owner, app: App, script: list[Step]) -> Outcome:
    """Do a script, and return what can be seen of it, without ids and times."""
    keys, answers = [await owner.key()], []
    for at, (verb, number) in enumerate(script):
        key_id = keys[number % len(keys)]
        answers.append(await _do(owner, app, verb, key_id, at, keys))
    async with pair.management.database.read() as connection:
        shown = (api_keys.c.name, api_keys.c.service, api_keys.c.last_4_chars, api_keys.c.disabled)
        rows = await connection.execute(select(*shown).where(api_keys.c.owner_id == owner.id).order_by(api_keys.c.id))
        told = (audit_log.c.action, audit_log.c.reason, audit_log.c.service)
        mine = (audit_log.c.user_id == owner.id) & audit_log.c.action.like("key.%")
        entries = await connection.execute(select(*told).where(mine).order_by(audit_log.c.at, audit_log.c.id))
        return Outcome(answers, [tuple(one) for one in rows], sorted(map(str, entries)))  # type: ignore[arg-type]  # only compared


async def _do(owner: Owner, app: App, verb: str, key_id: int, at: int, keys: list[int]) -> Any:
    value = f"sk-hq2v9mXbT0c7eUKwN4Rd{at:04}"
    if verb in ("resolve", "newest"):
        asked = {"key_id": key_id} if verb == "resolve" else {"user_id": owner.id, "service": "OPENAI"}
        answer = await app.ask(**asked)
        return answer.status_code, answer.json().get("api_key")
    if verb in ("create", "twice"):
        body, headers = {"service": "OPENAI", "api_key": value}, {"idempotency-key": f"{owner.id}-{at}"}
        sent = [owner.client.post("/api/keys", json=body, headers=headers) for _ in range(1 + (verb == "twice"))]
        got = await asyncio.gather(*sent)
        assert len({answer.json()["id"] for answer in got}) == 1
        keys.append(got[0].json()["id"])
        return [answer.status_code for answer in got]
    path = f"/api/keys/{key_id}"
    if verb == "replace":
        return (await owner.client.put(path, json={"api_key": value})).status_code
    if verb == "delete":
        return (await owner.client.delete(path)).status_code
    headers = {"if-match": '"stale"'} if verb == "stale" else {}
    return (await owner.client.patch(path, json={"name": f"name {at}"}, headers=headers)).status_code


@settings(max_examples=examples(10), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts)
async def test_together_is_as_one_at_a_time(shared_pair: Pair, drawn: list[list[Step]]) -> None:
    app = await shared_pair.app()
    at_once = [play(shared_pair, owner, app, script) for owner, script in await _cast(shared_pair, drawn)]
    together = await asyncio.gather(*at_once)
    one_by_one = [await play(shared_pair, owner, app, script) for owner, script in await _cast(shared_pair, drawn)]
    assert together == one_by_one
    db = shared_pair.management.database
    verified = await verification.verify(db, (await Deployment.load(db)).uuid)
    assert not verified.breaks


async def _cast(pair: Pair, drawn: list[list[Step]]) -> list[tuple[Owner, list[Step]]]:
    """A new owner for each script."""
    return [(await pair.owner(), script) for script in drawn]
