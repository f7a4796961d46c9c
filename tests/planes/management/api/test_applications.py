"""`/api/applications`: which applications an owner sees, and who may block them."""

from __future__ import annotations

import itertools
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import func, insert, select

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity import applications
from keyman.identity.applications import ALL_USERS, Users
from keyman.identity.issuers import Issuer
from keyman.identity.tables import application_blocks, application_identities, identities
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName
from tests.planes.management.api.harness import ApiPlane, Json, problem, same_but_for_the_request_id, store
from tests.support.rows import entry, row

pytestmark = pytest.mark.anyio

_NUMBERS = itertools.count()

ALL = "/api/applications"


class Registered:
    """An application, which these tests never let ask."""

    def __init__(self, id_: int, name: str) -> None:
        self.id, self.name = id_, name
        self.block = f"{ALL}/{id_}/block"


async def register(plane: ApiPlane, *services: str, users: Users = ALL_USERS) -> Registered:
    return await created(plane, services or ("OPENAI",), users)


async def created(plane: ApiPlane, services: tuple[str, ...], users: Users = ALL_USERS) -> Registered:
    name = ApplicationName(f"api-{next(_NUMBERS)}")
    await applications.create(plane.database, name, services, users)
    (found,) = [each for each in await applications.list_all(plane.database) if each.name == name]
    return Registered(found.id, found.name)


async def shown(client: httpx.AsyncClient, which: Registered) -> Json | None:
    answer = await client.get(ALL)
    assert answer.status_code == 200, answer.text
    names = [each["name"] for each in answer.json()]
    assert names == sorted(names)
    return next((each for each in answer.json() if each["id"] == which.id), None)


async def user_id_of(client: httpx.AsyncClient) -> int:
    return int((await client.get("/api/auth/me")).json()["id"])


async def test_an_application_is_shown_with_its_services_and_can_be_blocked_and_unblocked(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    chat = await register(shared, "OPENAI", "ANTHROPIC")
    expected = {"id": chat.id, "name": chat.name, "services": ["OPENAI", "ANTHROPIC"], "last_used_at": None}
    assert await shown(ada, chat) == {**expected, "blocked": False}
    for _ in range(2):
        answer = await ada.put(chat.block)
        assert (answer.status_code, answer.content) == (204, b"")
        assert await shown(ada, chat) == {**expected, "blocked": True}
    assert await shown(eve, chat) == {**expected, "blocked": False}
    for _ in range(2):
        answer = await ada.delete(chat.block)
        assert (answer.status_code, answer.content) == (204, b"")
        assert await shown(ada, chat) == {**expected, "blocked": False}


async def test_each_change_is_one_audit_entry_and_no_change_is_none(shared: ApiPlane) -> None:
    ada, chat = await shared.user(), await register(shared)
    script = await shared.token(ada, "keys:write")
    for client in (ada, ada):
        await client.put(chat.block)
    for client in (script, script):
        await client.delete(chat.block)
    entries = [each for each in (await ada.get("/api/audit")).json() if each["application"]]
    assert [(each["action"], each["application"], each["actor"]) for each in entries] == [
        ("application.unblock", chat.name, "token"),
        ("application.block", chat.name, "session"),
    ]


async def test_the_last_use_is_that_of_a_key_of_the_caller_by_either_way(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    chat, batch, idle = [await register(shared) for _ in range(3)]
    first, second, theirs = await store(ada), await store(ada), await store(eve)
    moment = now().replace(microsecond=0)
    resolved, used, refused = Action.KEY_RESOLVE, Action.KEY_USE, Action.KEY_RESOLVE_REFUSED
    told = [
        (ada, first, chat, resolved, timedelta(hours=3)),
        (ada, second, chat, used, timedelta(hours=2)),
        (ada, second, chat, refused, timedelta(hours=1)),
        (ada, second, batch, resolved, timedelta(days=40)),
        (eve, theirs, batch, resolved, timedelta(hours=1)),
        (eve, theirs, idle, used, timedelta(hours=1)),
    ]
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        for whose, key, application, action, ago in told:
            values = {"user_id": await user_id_of(whose), "key_id": key["id"], "application": application.name}
            await connection.execute(insert(audit_log).values(entry(action, at=moment - ago, **values)))
    listed = {each["name"]: each["last_used_at"] for each in (await ada.get(ALL)).json()}
    assert listed[chat.name] == f"{moment - timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}"
    assert listed[batch.name] == f"{moment - timedelta(days=40):%Y-%m-%dT%H:%M:%SZ}"
    assert listed[idle.name] is None


@pytest.mark.parametrize("table", [application_identities, identities], ids=["of an application", "outside"])
async def test_an_application_of_other_peoples_users_is_like_one_that_does_not_exist(
    shared: ApiPlane, table: object
) -> None:
    ada, eve = await shared.user(), await shared.user()
    outside = Issuer.parse(f"https://id{next(_NUMBERS)}.example.com")
    issuer = outside if table is identities else Issuer.parse(f"keyman:app:{(await register(shared)).name}")
    shop = await register(shared, users=Users((issuer,)))
    values = row("identities", user_id=await user_id_of(ada), issuer=str(issuer))
    async with shared.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(identities if table is identities else application_identities).values(values))
    assert await shown(ada, shop) is not None
    assert await shown(eve, shop) is None
    for method in ("PUT", "DELETE"):
        there = await eve.request(method, shop.block)
        missing = await eve.request(method, f"{ALL}/{shop.id + 1_000_000}/block")
        assert same_but_for_the_request_id(there, missing)
        problem(there, "not-found")
        problem(await eve.request(method, f"{ALL}/x/block"), "not-found")
    assert (await ada.put(shop.block)).status_code == 204


async def test_a_revoked_application_is_neither_shown_nor_blocked(shared: ApiPlane) -> None:
    ada, chat = await shared.user(), await register(shared)
    await applications.revoke(shared.database, ApplicationName(chat.name))
    assert await shown(ada, chat) is None
    problem(await ada.put(chat.block), "not-found")


async def test_the_application_for_live_checks_gets_no_keys_and_is_not_shown(shared: ApiPlane) -> None:
    ada, checker = await shared.user(), await created(shared, ())
    assert await shown(ada, checker) is None
    problem(await ada.put(checker.block), "not-found")


async def test_blocks_are_deleted_with_the_account(shared: ApiPlane) -> None:
    ada, chat = await shared.user(), await register(shared)
    user_id = await user_id_of(ada)
    await ada.put(chat.block)
    counted = select(func.count()).select_from(application_blocks).where(application_blocks.c.user_id == user_id)
    async with shared.database.read() as connection:
        assert (await connection.execute(counted)).scalar_one() == 1
    deleted = await ada.request("DELETE", "/api/auth/me", json={"current_password": "correct horse battery staple"})
    assert deleted.status_code == 204
    async with shared.database.read() as connection:
        assert (await connection.execute(counted)).scalar_one() == 0
