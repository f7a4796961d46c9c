"""The settings of keys in the resolver: an application gets them with the value, if they are the current ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import bindparam, select, update

from keyman.audit.tables import audit_log
from keyman.audit.verification import verify
from keyman.keys.deployment import Deployment
from keyman.keys.settings import settings_hash
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import problem
from tests.planes.resolver.pair import Pair
from tests.providers.pastes import ACCOUNT, BODY

pytestmark = pytest.mark.anyio

ENDPOINT = "https://my-resource.openai.azure.com"
CURRENT = {"endpoint": ENDPOINT, "api_version": "2024-10-21"}
STORED = f'{{"api_version":"2024-10-21","endpoint":"{ENDPOINT}"}}'

TAMPERED = [
    "{}",
    '{"endpoint":"https://evil.openai.azure.com"}',
    STORED.replace("my-resource", "evil"),
    f"{STORED} ",
    STORED.replace(",", ", "),
    f'{{"endpoint":"{ENDPOINT}","api_version":"2024-10-21"}}',
    "",
    "null",
    "no JSON",
]


async def test_an_application_gets_the_settings_with_the_value(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app("AZURE_OPENAI", "OPENAI")
    key_id = await owner.key("AZURE_OPENAI", BODY, settings=CURRENT)
    assert (await app.ask(key_id=key_id)).json()["settings"] == CURRENT
    assert (await app.ask(user_id=owner.id, service="AZURE_OPENAI")).json()["settings"] == CURRENT
    assert (await app.ask(key_id=await owner.key())).json()["settings"] == {}


@pytest.mark.parametrize("settings", TAMPERED)
async def test_settings_that_were_changed_in_the_database_are_refused(shared_pair: Pair, settings: str) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app("AZURE_OPENAI")
    key_id = await owner.key("AZURE_OPENAI", BODY, settings=CURRENT)
    assert (await shared_pair.row(key_id)).settings == STORED
    await shared_pair.change(key_id, settings=settings)
    answer = await app.ask(key_id=key_id)
    problem(answer, "undecryptable")
    assert BODY not in answer.text
    assert await shared_pair.told(app) == [("key.resolve-refused", "not-current")]
    assert (await shared_pair.row(key_id)).undecryptable
    # Once the settings are those that the user stored, a rewrap or a new value brings the key back.
    await shared_pair.change(key_id, settings=STORED, undecryptable=False)
    assert await app.gets(key_id=key_id) == BODY


@asynccontextmanager
async def audited_settings(pair: Pair, key_id: int, settings_hash: str | None) -> AsyncIterator[None]:
    """Give the entries of a key another hash of settings, then theirs again: other tests verify the same audit log."""
    of_key, database = audit_log.c.key_id == key_id, pair.resolver.database
    async with database.write(Unchecked.OPERATOR) as connection:
        own = (await connection.execute(select(audit_log.c.id, audit_log.c.settings_hash).where(of_key))).all()
        await connection.execute(update(audit_log).where(of_key).values(settings_hash=settings_hash))
    try:
        yield
    finally:
        back = update(audit_log).where(audit_log.c.id == bindparam("entry")).values(settings_hash=bindparam("own"))
        async with database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(back, [{"entry": entry.id, "own": entry.settings_hash} for entry in own])


async def test_damaged_settings_are_refused_even_if_the_audit_log_names_them(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app("AZURE_OPENAI")
    key_id = await owner.key("AZURE_OPENAI", BODY, settings=CURRENT)
    await shared_pair.change(key_id, settings="no JSON")
    async with audited_settings(shared_pair, key_id, settings_hash("no JSON")):
        answer = await app.ask(key_id=key_id)
    problem(answer, "undecryptable")
    assert BODY not in answer.text
    assert await shared_pair.told(app) == [("key.resolve-refused", "not-current")]


async def test_the_settings_of_a_key_from_before_settings_are_none(shared_pair: Pair) -> None:
    """An upgraded row has none, and no entry of it has a hash. Both databases refuse settings that somebody adds."""
    owner, app = await shared_pair.owner(), await shared_pair.app("AZURE_OPENAI")
    key_id = await owner.key("AZURE_OPENAI", BODY)
    async with audited_settings(shared_pair, key_id, None):
        assert await app.gets(key_id=key_id) == BODY
        for settings in ('{"endpoint":"https://evil.openai.azure.com"}', "", " {}"):
            await shared_pair.change(key_id, settings=settings, undecryptable=False)
            problem(await app.ask(key_id=key_id), "undecryptable")
        await shared_pair.change(key_id, settings="{}", undecryptable=False)
        assert await app.gets(key_id=key_id) == BODY
        assert (await owner.client.put(f"/api/keys/{key_id}", json={"api_key": f"{BODY}2"})).status_code == 200
        assert await app.gets(key_id=key_id) == f"{BODY}2"


async def test_a_hash_of_settings_is_covered_by_the_chain(shared_pair: Pair) -> None:
    owner, database = await shared_pair.owner(), shared_pair.resolver.database
    key_id = await owner.key("AZURE_OPENAI", BODY, settings=CURRENT)
    deployment = (await Deployment.load(database)).uuid
    before = await verify(database, deployment)
    assert not before.breaks
    async with audited_settings(shared_pair, key_id, "0" * 64):
        after = await verify(database, deployment)
    assert len(after.breaks) == 1


async def test_a_credential_is_given_out_as_it_was_sent(shared_pair: Pair) -> None:
    owner, app = await shared_pair.owner(), await shared_pair.app("GOOGLE_VERTEX")
    for file in (ACCOUNT, f"\n {ACCOUNT}\r\n", ACCOUNT.replace("my-project", "\u4e2d\u00e9")):
        key_id = await owner.key("GOOGLE_VERTEX", file, settings={"project": "my-project-123"})
        assert await app.gets(key_id=key_id) == file
