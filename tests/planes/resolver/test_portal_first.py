"""An application names somebody of an identity provider in a portal link, before that person came from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select
from sqlalchemy.engine import URL

from keyman.audit import retention, verification
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.config.identity import JwtSettings
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer as IssuerName
from keyman.identity.passwords import Passwords
from keyman.identity.tables import identities, portal_links, sessions
from keyman.identity.users import list_all
from keyman.keys.deployment import Deployment
from keyman.keys.erasure import delete_any
from keyman.values import RowNumber
from tests.planes.management.api.harness import OPENAI_KEY, api_plane_at, problem
from tests.planes.resolver.pair import App, Pair, resolver_at
from tests.planes.resolver.test_portal import BROWSER, arrived, path_of
from tests.planes.resolver.test_portal_links import PORTAL, link
from tests.support.issuer import AUDIENCE, Issuer, served
from tests.support.planes import ORIGIN, Vault

pytestmark = pytest.mark.anyio


@pytest.fixture
async def company() -> AsyncIterator[Issuer]:
    async with served() as found:
        yield found


@pytest.fixture
async def company_pair(
    database: URL, provisioned: Vault, quick_passwords: PasswordHasher, company: Issuer
) -> AsyncIterator[Pair]:
    """Both planes, of which management accepts the JWTs of the company."""
    jwt = JwtSettings(company.url, AUDIENCE)
    async with (
        api_plane_at(database, provisioned.settings, Passwords(quick_passwords), jwt=jwt) as management,
        resolver_at(database, provisioned.resolver, public_url=ORIGIN) as resolver,
    ):
        yield Pair(management, resolver)


async def of_company(pair: Pair, company: Issuer) -> App:
    """An application whose first issuer is the company."""
    return await pair.app(users=Users((IssuerName(company.url),), PORTAL.return_urls))


async def me(pair: Pair, token: str) -> httpx.Response:
    return await pair.management.client().get("/api/auth/me", headers={"Authorization": f"Bearer {token}"})


async def test_the_user_is_the_same_and_the_application_sends_nobody_to_the_account_any_more(
    company_pair: Pair, company: Issuer
) -> None:
    shop = await of_company(company_pair, company)
    browser, unused = await arrived(company_pair, shop), await path_of(shop)
    named = (await browser.get("/api/auth/me")).json()["id"]
    assert (await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).status_code == 201
    assert (await me(company_pair, company.token())).json()["id"] == named
    assert (await browser.get("/api/auth/me")).status_code == 401  # what the application opened has ended
    page = await company_pair.management.client().get(unused, headers=BROWSER)
    assert page.status_code == 404
    problem(await link(shop), "forbidden")
    assert (await shop.ask(subject="ada", service="OPENAI")).json()["api_key"] == OPENAI_KEY
    (listed,) = await list_all(company_pair.management.database)
    assert [(one.issuer, one.subject) for one in listed.identities] == [(company.url, "ada")]
    entries = [
        (entry.action, entry.detail)
        for entry in await company_pair.management.rows(audit_log)
        if entry.user_id == named and entry.action.startswith("account.")
    ]
    assert entries == [
        ("account.create", f"portal of {shop.name}"),
        ("account.login", None),
        ("account.link", f"issuer {company.url}"),
    ]


async def test_the_other_order_ends_in_the_same_way(company_pair: Pair, company: Issuer) -> None:
    shop = await of_company(company_pair, company)
    assert (await me(company_pair, company.token())).status_code == 200
    problem(await link(shop), "forbidden")
    assert (await link(shop, "eve")).status_code == 201


async def test_of_a_hundred_first_requests_at_once_one_stores_the_proof(company_pair: Pair, company: Issuer) -> None:
    shop = await of_company(company_pair, company)
    named = (await link(shop)).json()["user_id"]
    answers = await asyncio.gather(*(me(company_pair, company.token()) for _ in range(100)))
    assert {(answer.status_code, answer.json()["id"]) for answer in answers} == {(200, named)}
    assert await company_pair.management.count(identities) == 1
    assert await company_pair.management.count(portal_links) == 0
    links = [entry for entry in await company_pair.management.rows(audit_log) if entry.action == "account.link"]
    assert len(links) == 1


async def test_links_and_a_first_jwt_at_once_leave_no_link_behind(company_pair: Pair, company: Issuer) -> None:
    shop = await of_company(company_pair, company)
    await link(shop)
    links = (link(shop) for _ in range(4))
    *answers, entered = await asyncio.gather(*links, me(company_pair, company.token()))
    assert entered.status_code == 200
    assert {answer.status_code for answer in answers} <= {201, 403}
    assert await company_pair.management.count(portal_links) == 0
    assert (await link(shop)).status_code == 403


async def test_sessions_of_other_people_go_on(company_pair: Pair, company: Issuer) -> None:
    shop = await of_company(company_pair, company)
    eve = await arrived(company_pair, shop, "eve")
    await arrived(company_pair, shop)
    assert (await me(company_pair, company.token())).status_code == 200
    assert (await eve.get("/api/auth/me")).status_code == 200
    async with company_pair.management.database.read() as connection:
        count = await connection.execute(select(func.count()).select_from(sessions))
        assert count.scalar_one() == 1


async def page(client: httpx.AsyncClient, path: str = "/settings/api-keys") -> str:
    answer = await client.get(path, headers=BROWSER)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_a_key_that_an_application_left_before_its_owner_came_says_so_until_it_is_replaced(
    company_pair: Pair, company: Issuer
) -> None:
    """The attack: the key is the attacker's, who reads at the provider what the owner's applications send with it."""
    shop = await of_company(company_pair, company)
    browser = await arrived(company_pair, shop)
    left = (await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})).json()
    said, settings = f"Left through {shop.name}", f"/settings/api-keys/{left['id']}"
    assert "Left through" not in await page(browser)  # its person comes from there, and has no other way in
    assert "Left through" not in await page(browser, settings)
    scope = "keys:read keys:write audit:read"
    ada = company_pair.management.client(headers={"Authorization": f"Bearer {company.token(scope=scope)}"})
    own = (await ada.post("/api/keys", json={"service": "GROQ", "api_key": f"gsk_{'q7w2e9r4t6y1' * 3}"})).json()
    assert (await page(ada)).count(said) == 1
    assert f"Left through</dt><dd>{shop.name} " in await page(ada, settings)
    assert "Left through" not in await page(ada, f"/settings/api-keys/{own['id']}")
    entries = {each["key_id"]: each for each in (await ada.get("/api/audit?action=key.create")).json()}
    assert (entries[left["id"]]["application"], entries[own["id"]]["application"]) == (shop.name, None)
    assert f"from {shop.name}" in await page(ada, "/settings/activity")
    eve = company_pair.management.client(headers={"Authorization": f"Bearer {company.token(sub='eve', scope=scope)}"})
    assert said not in await page(eve)

    assert (await ada.patch(f"/api/keys/{left['id']}", json={"name": "chat"})).status_code == 200
    assert said in await page(ada)
    # Pruning repeats the entry of the current value.
    db = company_pair.management.database
    verified = await verification.verify(db, (await Deployment.load(db)).uuid)
    cuts = await retention.prunable(db, now() + timedelta(days=1), verified.heads)
    assert (await retention.prune(db, cuts)).carried == 2
    assert said in await page(ada)
    assert (await ada.put(f"/api/keys/{left['id']}", json={"api_key": f"{OPENAI_KEY}x"})).status_code == 200
    assert "Left through" not in await page(ada)


async def test_the_audit_log_says_of_each_change_in_a_portal_session_through_which_application(
    company_pair: Pair, company: Issuer
) -> None:
    shop = await of_company(company_pair, company)
    browser = await arrived(company_pair, shop)
    body = {"service": "OPENAI", "api_key": OPENAI_KEY}
    first, second = [(await browser.post("/api/keys", json=body)).json()["id"] for _ in range(2)]
    for key_id in (first, second):
        assert (await browser.patch(f"/api/keys/{key_id}", json={"default": True})).status_code == 200
    batch = await browser.post("/api/keys/batch", json={"keys": [body]})
    assert batch.json()[0]["status"] == 201
    for change in ({"disabled": True}, {"disabled": False}, {"name": "chat"}):
        assert (await browser.patch(f"/api/keys/{first}", json=change)).status_code == 200
    assert (await browser.put(f"/api/keys/{first}", json={"api_key": f"{OPENAI_KEY}x"})).status_code == 200
    assert (await browser.delete(f"/api/keys/{first}")).status_code == 204
    entries = [each for each in (await browser.get("/api/audit?limit=200")).json() if each["action"].startswith("key.")]
    assert {each["action"] for each in entries} == {
        *("key.create", "key.change", "key.pause", "key.resume", "key.replace", "key.delete")
    }
    assert len(entries) == 11
    assert {(each["actor"], each["application"]) for each in entries} == {("session", shop.name)}


async def test_the_audit_log_holds_nothing_that_says_who_somebody_is(company_pair: Pair, company: Issuer) -> None:
    """Numbers only: a log that is kept for years needs no change when the account is deleted."""
    shop = await of_company(company_pair, company)
    texts = ["sub-c4n4ry", "name-c4n4ry", "c4n4ry@example.com", "label-c4n4ry", "token-c4n4ry", "purpose of this"]
    subject, name, email, label, token_name, purpose = texts
    browser = await arrived(company_pair, shop, subject, name=name, email=email)
    body = {"service": "OPENAI", "api_key": OPENAI_KEY, "name": label}
    key = (await browser.post("/api/keys", json=body)).json()
    headers = {"Authorization": f"Bearer {company.token(sub=subject, scope='tokens:manage keys:write')}"}
    own = company_pair.management.client(headers=headers)
    made = await own.post("/api/tokens", json={"name": token_name, "scopes": ["keys:write"]})
    assert made.status_code == 201
    assert (await own.patch(f"/api/keys/{key['id']}", json={"name": f"{label}-2"})).status_code == 200
    assert (await shop.ask(subject=subject, service="OPENAI", purpose=purpose)).status_code == 200
    assert (await own.delete(f"/api/tokens/{made.json()['id']}")).status_code == 204
    user_id = (await own.get("/api/auth/me")).json()["id"]
    await delete_any(company_pair.management.database, RowNumber(user_id))
    entries = [tuple(entry) for entry in await company_pair.management.rows(audit_log)]
    assert len(entries) > 9
    written = repr(entries)
    assert "c4n4ry" not in written
    assert key["last_4_chars"] not in written
    assert purpose in written  # until `keyman audit prune`


async def test_a_wrong_jwt_proves_nothing(company_pair: Pair, company: Issuer) -> None:
    shop = await of_company(company_pair, company)
    browser = await arrived(company_pair, shop)
    for wrong in (company.token(exp=0), company.token(aud="other"), company.token()[:-20]):
        assert (await me(company_pair, wrong)).status_code == 401
    assert (await browser.get("/api/auth/me")).status_code == 200
    assert (await link(shop)).status_code == 201
