"""`POST /v1/portal-links`: who gets a link, for whom, and what is stored of it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, update

from keyman.clock import now
from keyman.identity import applications
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer
from keyman.identity.return_urls import ReturnUrl
from keyman.identity.tables import application_identities, identities, portal_links, users
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName
from tests.planes.resolver.pair import App, Pair, pair_at
from tests.support.planes import ORIGIN, PASSWORD, Vault
from tests.support.rows import AnyRow

pytestmark = pytest.mark.anyio

BACK = "https://shop.example.com/settings"
PORTAL = Users(return_urls=(ReturnUrl.parse(BACK), ReturnUrl.parse("http://localhost:3000/")))


async def link(app: App, subject: str = "ada", **more: Any) -> httpx.Response:
    return await app.client.post("/v1/portal-links", json={"subject": subject, **more})


async def rows(pair: Pair, user_id: int) -> list[AnyRow]:
    """The links of a user, oldest first."""
    found = select(portal_links).where(portal_links.c.user_id == user_id).order_by(portal_links.c.id)
    async with pair.resolver.database.read() as connection:
        return list((await connection.execute(found)).all())


async def test_a_link_is_made_for_a_user_who_is_created_at_the_first(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    first = await link(shop, "user-42", name="Ada", email="ada@shop.example")
    assert first.status_code == 201
    assert first.json().keys() == {"url", "expires_at", "user_id"}
    assert first.headers["cache-control"] == "no-store"
    second = await link(shop, "user-42", return_url=f"{BACK}/keys?tab=1")
    assert second.json()["user_id"] == first.json()["user_id"]
    base, _, code = first.json()["url"].rpartition("/")
    assert base == f"{ORIGIN}/portal"
    assert len(code) >= 27  # 160 bits, in characters of six
    one, other = await rows(shared_pair, first.json()["user_id"])
    assert one.code_hash == hashlib.sha256(code.encode()).digest()
    assert code not in repr(tuple(one))
    assert (one.subject, one.name, one.email, one.return_url) == ("user-42", "Ada", "ada@shop.example", BACK)
    assert (other.name, other.email, other.return_url) == (None, None, f"{BACK}/keys?tab=1")
    assert (one.expires_at - one.created_at).total_seconds() == 300
    assert await shared_pair.told(shop) == [("account.create", None), ("portal.link", None), ("portal.link", None)]
    (created, *_) = await shared_pair.entries(shop)
    assert (created.user_id, created.detail) == (first.json()["user_id"], f"portal of {shop.name}")
    assert "user-42" not in repr([tuple(entry) for entry in await shared_pair.entries(shop)])


async def test_a_hundred_first_links_at_once_create_one_user(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    answers = await asyncio.gather(*(link(shop) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["user_id"] for answer in answers}) == 1
    assert len({answer.json()["url"] for answer in answers}) == 100
    assert [action for action, _ in await shared_pair.told(shop)].count("account.create") == 1


async def test_users_are_different_for_each_subject_and_each_application(shared_pair: Pair) -> None:
    shop, other = await shared_pair.app(users=PORTAL), await shared_pair.app(users=PORTAL)
    subjects = ["ada", "Ada", "a\u030ada", "\u00e5da"]
    found = [(await link(app, subject)).json()["user_id"] for app in (shop, other) for subject in subjects]
    assert len(set(found)) == len(found)


async def test_the_first_issuer_names_the_users(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    shared = await shared_pair.app(users=PORTAL._replace(issuers=(Issuer(f"keyman:app:{shop.name}"),)))
    assert (await link(shop)).json()["user_id"] == (await link(shared)).json()["user_id"]


async def test_an_application_without_portal_gets_none(shared_pair: Pair) -> None:
    for users_ in (Users(), Users(issuers=(Issuer("https://id.example.com"),))):
        app = await shared_pair.app(users=users_)
        refused = await link(app)
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
        assert await shared_pair.told(app) == []


ATTACKS = [
    "https://evil.example/",
    "//evil.example/",
    "https://shop.example.com.evil.example/settings",
    "https://shop.example.com@evil.example/settings",
    "https://shop.example.com\\@evil.example/settings",
    "https://evil.example\\@shop.example.com/settings",
    "http://shop.example.com/settings",
    "https://shop.example.com:8443/settings",
    "https://shop.example.com/settingsx",
    "https://shop.example.com/settings/../admin",
    "https://shop.example.com/settings/%2e%2e/admin",
    "https://shop.example.com/settings/..%2fadmin",
    "https://shop.example.com/settings/..%5cadmin",
    "https://shop.example.com/settings\\..\\admin",
    "https://shop.example.com/settings#@evil.example",
    "https://shop.example.com/settings\r\nLocation: https://evil.example/",
    "https://shop.example.com/settings\t",
    " https://shop.example.com/settings",
    "javascript:alert(1)//https://shop.example.com/settings",
    "http://localhost:3000@evil.example/",  # pragma: allowlist secret
    "",
]


@pytest.mark.parametrize("return_url", ATTACKS)
async def test_no_link_leads_to_another_site(shared_pair: Pair, return_url: str) -> None:
    shop = await shared_pair.app(users=PORTAL)
    refused = await link(shop, return_url=return_url)
    assert refused.status_code == 400
    assert [error["field"] for error in refused.json()["errors"]] == ["return_url"]
    assert "evil" not in refused.text
    assert await shared_pair.told(shop) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"subject": ""},
        {"subject": " ada"},
        {"subject": "a" * 256},
        {"subject": "a\u202eda"},
        {"subject": 7},
        {"subject": None},
        {"subject": "ada", "email": "nobody"},
        {"subject": "ada", "name": "a\nb"},
        {"subject": "ada", "name": "a\u202eb"},
        {"subject": "ada", "issuer": "https://id.example.com"},
        {"subject": "ada", "user_id": 7},
    ],
)
async def test_a_body_that_is_wrong_makes_no_link(shared_pair: Pair, body: dict[str, object]) -> None:
    shop = await shared_pair.app(users=PORTAL)
    assert (await shop.client.post("/v1/portal-links", json=body)).status_code == 400
    assert await shared_pair.told(shop) == []


async def test_a_user_who_signs_in_by_another_way_gets_none(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = (await link(shop)).json()["user_id"]
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        outside = {"issuer": "https://id.example.com", "subject": f"{shop.name}-ada", "created_at": now()}
        await connection.execute(insert(identities).values(user_id=user_id, **outside))
    assert (await link(shop)).status_code == 403
    # An identity of the outside that has no user of an application: it is not taken over by one.
    owner = await shared_pair.owner()
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(
            insert(identities).values(user_id=owner.id, **{**outside, "subject": f"{shop.name}-o"})
        )
    both = await shared_pair.app(users=PORTAL._replace(issuers=(Issuer("https://id.example.com"),)))
    assert (await link(both, f"{shop.name}-o")).status_code == 403
    assert await rows(shared_pair, owner.id) == []


async def test_a_user_with_a_password_gets_none(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = (await link(shop)).json()["user_id"]
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(password_hash=PASSWORD))
    assert (await link(shop)).status_code == 403


async def test_a_disabled_user_and_a_revoked_application_get_none(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = (await link(shop)).json()["user_id"]
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(update(users).where(users.c.id == user_id).values(disabled_at=now()))
    assert (await link(shop)).status_code == 404
    await applications.revoke(shared_pair.resolver.database, ApplicationName(shop.name))
    assert (await link(shop, "eve")).status_code == 401
    async with shared_pair.resolver.database.read() as connection:
        mine = application_identities.c.issuer == f"keyman:app:{shop.name}"
        assert len((await connection.execute(select(application_identities).where(mine))).all()) == 1


@pytest.mark.parametrize("public_url", [None, "https://keys.example.com"])
async def test_a_link_leads_to_the_public_address_and_the_root_path(
    sqlite: Any, provisioned: Vault, quick_passwords: Any, public_url: str | None
) -> None:
    settings = {"public_url": public_url, "root_path": "/keyman", "resolve_rate": 2.0}
    async with pair_at(sqlite, provisioned.settings, provisioned.resolver, quick_passwords, **settings) as pair:
        shop = await pair.app(users=PORTAL)
        made = await link(shop)
        if public_url is None:
            assert (made.status_code, made.json()["type"]) == (409, "/problems/conflict")
            assert "KEYMAN_PUBLIC_URL" in made.json()["detail"]
            assert await pair.told(shop) == []
        else:
            assert made.json()["url"].startswith("https://keys.example.com/keyman/portal/")
            answers = [await link(shop) for _ in range(6)]
            assert {answer.status_code for answer in answers} == {201, 429}
