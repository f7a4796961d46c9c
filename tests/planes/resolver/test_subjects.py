"""Keys by the subject of their user, and applications that serve only the users of their issuers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import insert

from keyman.clock import now
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer
from keyman.identity.tables import application_identities, identities
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY
from tests.planes.resolver.pair import SHOWN, App, Pair
from tests.planes.resolver.test_portal import arrived, disable
from tests.planes.resolver.test_portal_links import PORTAL, link
from tests.support.rows import add, count

pytestmark = pytest.mark.anyio

OUTSIDE = "https://id.example.com"
NOT_FOUND = "/problems/not-found"

_NUMBERS = itertools.count()


async def with_key(pair: Pair, app: App, subject: str) -> int:
    """Let the user of a subject leave a key, and return the user's id."""
    browser = await arrived(pair, app, subject)
    stored = await browser.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    assert stored.status_code == 201
    return int((await browser.get("/api/auth/me")).json()["id"])


async def key_of(app: App, subject: str) -> int:
    return int((await app.ask(subject=subject, service="OPENAI")).json()["key_id"])


async def refused(app: App, **asked: Any) -> None:
    answer = await app.ask(**asked)
    assert (answer.status_code, answer.json()["type"]) == (404, NOT_FOUND), asked
    assert answer.json()["detail"] == "There is no such key for this application. The audit log says why."


async def reasons(pair: Pair, app: App) -> Sequence[str | None]:
    return [reason for action, reason in await pair.told(app) if action == "key.resolve-refused"]


async def test_an_application_gets_a_key_by_its_own_name_for_the_user(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = await with_key(shared_pair, shop, "user-42")
    for asked in ({}, {"issuer": f"keyman:app:{shop.name}"}):
        answer = (await shop.ask(subject="user-42", service="OPENAI", **asked)).json()
        assert answer.keys() == {*SHOWN, "subject"}
        assert (answer["subject"], answer["user_id"], answer["api_key"]) == ("user-42", user_id, OPENAI_KEY)
    assert await shop.gets(user_id=user_id, service="OPENAI") == OPENAI_KEY  # without `subject`
    for entry in await shared_pair.entries(shop):
        assert "user-42" not in repr(tuple(entry))


async def test_resolving_never_creates_a_user(shared_pair: Pair) -> None:
    shop, plain = await shared_pair.app(users=PORTAL), await shared_pair.app()
    before = await count(shared_pair.resolver.database, "users")
    for app in (shop, plain):
        await refused(app, subject="nobody", service="OPENAI")
        assert await reasons(shared_pair, app) == ["unknown"]
    assert await count(shared_pair.resolver.database, "users") == before


async def test_subjects_are_compared_byte_for_byte(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    await with_key(shared_pair, shop, "ada\u00e5")
    for other in ("Ada\u00e5", "adaa\u030a", "ada", "ada\u00e5x"):
        await refused(shop, subject=other, service="OPENAI")


async def test_another_issuer_is_refused_like_an_unknown_subject(shared_pair: Pair) -> None:
    shop, other, plain = (
        await shared_pair.app(users=PORTAL),
        await shared_pair.app(users=PORTAL),
        await shared_pair.app(),
    )
    await with_key(shared_pair, shop, "ada")
    for app in (other, plain):
        for issuer in (f"keyman:app:{shop.name}", OUTSIDE, "keyman:app:nobody"):
            await refused(app, subject="ada", service="OPENAI", issuer=issuer)
        await refused(app, subject="ada", service="OPENAI")  # its own default issuer
        assert await reasons(shared_pair, app) == ["not-granted"] * 3 + ["unknown"]


async def test_a_bound_application_gets_only_keys_of_its_users_whichever_way_it_asks(shared_pair: Pair) -> None:
    shop, other = await shared_pair.app(users=PORTAL), await shared_pair.app(users=PORTAL)
    bound = await shared_pair.app(users=Users(issuers=(Issuer(OUTSIDE), Issuer(f"keyman:app:{shop.name}"))))
    free = await shared_pair.app()
    ada, eve = await with_key(shared_pair, shop, "ada"), await with_key(shared_pair, other, "eve")
    owner = await shared_pair.owner()
    of_owner, of_ada, of_eve = await owner.key(), await key_of(shop, "ada"), await key_of(other, "eve")
    for app in (shop, bound, free):
        for asked in ({"user_id": ada, "service": "OPENAI"}, {"key_id": of_ada}):
            assert await app.gets(**asked) == OPENAI_KEY
    strangers = [{"user_id": user_id, "service": "OPENAI"} for user_id in (eve, owner.id)]
    strangers += [{"key_id": key_id} for key_id in (of_eve, of_owner)]
    for app in (shop, bound):
        for asked in strangers:
            await refused(app, **asked)
        assert await reasons(shared_pair, app) == ["not-granted"] * 4
        await refused(app, user_id=2**40, service="OPENAI")
    for asked in strangers:
        assert await free.gets(**asked) == OPENAI_KEY
    by_subject = await bound.ask(subject="ada", service="OPENAI", issuer=f"keyman:app:{shop.name}")
    assert by_subject.json()["api_key"] == OPENAI_KEY


async def test_an_identity_that_an_application_gave_to_another_user_does_not_count(shared_pair: Pair) -> None:
    """A taken-over management plane writes an identity of the outside, and the resolver's own counts before it."""
    bound = await shared_pair.app(users=Users(issuers=(Issuer(OUTSIDE),)))
    owner, subject = await shared_pair.owner(), f"{bound.name}-ada"
    key_id = await owner.key()
    pair_ = {"issuer": OUTSIDE, "subject": subject, "created_at": now()}
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(identities).values(user_id=owner.id, **pair_))
    assert await bound.gets(key_id=key_id) == OPENAI_KEY
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        other = await add(connection, "users")
        await connection.execute(insert(application_identities).values(user_id=other, **pair_))
    await refused(bound, key_id=key_id)
    await refused(bound, subject=subject, service="OPENAI")


async def test_an_owner_is_shown_exactly_the_applications_that_get_the_owners_keys(shared_pair: Pair) -> None:
    """The pages ask a view of the database, because management cannot read whom an application serves."""
    host = f"https://Id_{next(_NUMBERS)}.example.com"
    issuers = [host, f"{host}/x", host.lower(), host.replace("_", "%"), host.replace("_", "-"), host[:-1]]
    shop = await shared_pair.app(users=PORTAL)
    bounds: list[tuple[str, ...]] = [(), *((one,) for one in issuers), (issuers[1], host), (f"keyman:app:{shop.name}",)]
    apps = [await shared_pair.app(users=Users(issuers=tuple(map(Issuer, bound)))) for bound in bounds]
    of_shop = await shared_pair.app(users=PORTAL)
    owners = [await shared_pair.owner() for _ in range(5)]
    keys = [await owner.key() for owner in owners]
    pairs = [(identities, 0, host), (application_identities, 1, host), (identities, 2, issuers[1])]
    pairs += [(application_identities, 2, f"keyman:app:{shop.name}"), (application_identities, 3, host.lower())]
    async with shared_pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        for number, (table, at, issuer) in enumerate(pairs):
            pair_ = {"issuer": issuer, "subject": f"{host}-{number}", "created_at": now()}
            await connection.execute(insert(table).values(user_id=owners[at].id, **pair_))
        # What the resolver has stored counts before what management has stored.
        pair_ = {"issuer": host, "subject": f"{host}-1", "created_at": now()}
        await connection.execute(insert(identities).values(user_id=owners[4].id, **pair_))
    for owner, key_id in zip(owners, keys, strict=True):
        listed = {each["name"]: each for each in (await owner.client.get("/api/applications")).json()}
        for app in (*apps, shop, of_shop):
            gets = (await app.ask(key_id=key_id)).status_code == 200
            assert gets == (app.name in listed), (owner.id, app.name)
            blocked = await owner.client.put(await shared_pair.block_of(app))
            assert blocked.status_code == (204 if gets else 404)
    everywhere = [
        [app.name in {each["name"] for each in (await one.client.get("/api/applications")).json()} for app in apps]
        for one in owners
    ]
    assert [sum(shown) for shown in everywhere] == [3, 3, 4, 2, 1]


async def test_a_disabled_user_has_no_key_by_a_subject(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    user_id = await with_key(shared_pair, shop, "ada")
    await disable(shared_pair.resolver.database, user_id)
    await refused(shop, subject="ada", service="OPENAI")
    assert await reasons(shared_pair, shop) == ["account-disabled"]


async def test_a_user_without_a_key_is_unknown(shared_pair: Pair) -> None:
    shop = await shared_pair.app(users=PORTAL)
    await link(shop, "ada")
    await refused(shop, subject="ada", service="OPENAI")
    assert await reasons(shared_pair, shop) == ["unknown"]
