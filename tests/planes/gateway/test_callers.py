"""Who may call the gateway, and whose key is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from argon2 import PasswordHasher
from sqlalchemy import insert
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.clock import now
from keyman.http import limit
from keyman.identity import applications
from keyman.identity.applications import Users
from keyman.identity.issuers import Issuer
from keyman.identity.tables import identities
from keyman.keys.request import Request
from keyman.planes.gateway import app as plane
from keyman.planes.gateway import forwarding
from keyman.providers.catalogue import ServiceSlug
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName, RowNumber
from tests.planes.gateway.scene import CHAT, VALUE, Scene, renewed, scene_at
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


async def personal(scene: Scene, *scopes: str) -> str:
    made = await scene.owner.client.post("/api/tokens", json={"name": "editor", "scopes": scopes})
    assert made.status_code == 201, made.text
    return str(made.json()["token"])


HEADERS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")


@pytest.mark.parametrize("name", HEADERS)
async def test_a_token_counts_in_each_header_in_which_an_sdk_puts_its_key(gateway: Scene, name: str) -> None:
    token = gateway.application.token
    headers = {name: f"bearer  {token}" if name == "authorization" else token, "keyman-user": str(gateway.owner.id)}
    assert (await gateway.ask("POST", CHAT, headers, b"{}")).status == 200
    (sent,) = gateway.provider.requests
    assert [one for one in HEADERS if sent.all_of(one)] == ["authorization"]


async def test_an_error_has_the_form_of_the_gateway_for_a_browser_too(gateway: Scene) -> None:
    answer = await gateway.ask("POST", CHAT, {"accept": "text/html", "api-key": "sk-1234"}, b"{}")
    assert (answer.status, answer.header("keyman-error")) == (401, "unauthenticated")
    assert answer.json["error"]["code"] == "unauthenticated"


async def test_the_same_token_twice_counts_and_two_different_ones_do_not(gateway: Scene) -> None:
    same = await gateway.post(x_api_key=gateway.application.token)
    assert same.status == 200
    other = await gateway.pair.app("OPENAI")
    for headers in ({"x_api_key": other.token}, {"api_key": "sk-my-own"}, {"x_goog_api_key": ""}):
        assert (await gateway.post(b"{}", CHAT, **headers)).status == 400
    twice = [*gateway.headers.items(), ("authorization", f"Bearer {gateway.application.token}")]
    assert (await gateway.ask("POST", CHAT, twice, b"{}")).status == 400
    assert len(gateway.provider.requests) == 1


async def test_the_default_key_is_used_as_long_as_it_is_active(gateway: Scene) -> None:
    newer = await gateway.owner.key(value="sk-Zt81LqoPw5aYc3hVn6Xe9876")
    for change, used in (({}, newer), ({"default": True}, gateway.key_id), ({"disabled": True}, newer)):
        answer = await gateway.owner.client.patch(f"/api/keys/{gateway.key_id}", json=change)
        assert answer.status_code == 200
        assert (await gateway.post()).header("keyman-key-id") == str(used)


async def test_basic_of_a_proxy_does_not_count(gateway: Scene) -> None:
    headers = {"authorization": "Basic eDp5", "x-api-key": gateway.application.token}
    answer = await gateway.ask("POST", CHAT, {**headers, "keyman-user": str(gateway.owner.id)}, b"{}")
    assert answer.status == 200
    assert (await gateway.ask("POST", CHAT, {"authorization": "Basic eDp5"}, b"{}")).status == 401


@pytest.mark.parametrize("shown", [{}, {"authorization": "Bearer "}, {"x-api-key": "km_x"}, {"api-key": "sk-1234"}])
async def test_without_a_valid_token_it_is_401(gateway: Scene, shown: dict[str, str]) -> None:
    answer = await gateway.ask("POST", CHAT, shown, b"{}")
    assert (answer.status, answer.header("keyman-error")) == (401, "unauthenticated")
    assert gateway.provider.requests == []


async def test_a_token_that_has_ended_is_not_taken_for_one_of_a_user(gateway: Scene) -> None:
    await applications.revoke(gateway.pair.management.database, ApplicationName(gateway.application.name))
    answer = await gateway.post()
    assert answer.status == 401
    assert answer.json["detail"] == (
        "This is the token of neither an application nor a user, or it has expired or been revoked."
    )
    answer = await gateway.ask("POST", CHAT, {"authorization": "Bearer km_cut"}, b"{}")
    assert "it was not copied completely" in answer.json["detail"]


async def test_a_session_does_not_count(gateway: Scene) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in gateway.owner.client.cookies.items())
    assert cookie
    assert (await gateway.ask("POST", CHAT, {"cookie": cookie}, b"{}")).status == 401


async def test_a_page_of_another_site_with_a_token_passes_and_there_is_no_cors(gateway: Scene) -> None:
    answer = await gateway.post(origin="https://other.example", sec_fetch_site="cross-site")
    assert answer.status == 200
    assert not [name for name, _ in answer.fields if name.startswith("access-control-")]
    headers = {"origin": "https://other.example", "access-control-request-method": "POST"}
    assert (await gateway.ask("OPTIONS", CHAT, headers)).status == 401


async def test_an_application_names_the_user_or_the_key(gateway: Scene) -> None:
    token = {"authorization": f"Bearer {gateway.application.token}"}
    user, key = str(gateway.owner.id), str(gateway.key_id)
    for named in ({"keyman-user": user}, {"keyman-key": key}, {"keyman-user": user, "keyman-key": key}):
        answer = await gateway.ask("POST", CHAT, {**token, **named}, b"{}")
        assert (answer.status, answer.header("keyman-key-id")) == (200, key), named
    bad: tuple[dict[str, str], ...] = (
        {},
        {"keyman-user": user, "keyman-subject": "x"},
        {"keyman-issuer": "https://id.example.com", "keyman-user": user},
        {"keyman-user": "0"},
        {"keyman-user": "+1"},
        {"keyman-user": f"{user} "},
        {"keyman-user": "1e3"},
        {"keyman-user": "9" * 30},
        {"keyman-key": "x"},
        {"keyman-user": user, "keyman-purpose": "x" * 201},
        {"keyman-user": user, "keyman-purpose": "a\tb"},
    )
    for named in bad:
        answer = await gateway.ask("POST", CHAT, {**token, **named}, b"{}")
        assert (answer.status, answer.header("keyman-error")) == (400, "invalid-request"), named


async def test_a_header_of_keymans_that_is_sent_twice_is_refused(gateway: Scene) -> None:
    for second in ("keyman-user", "Keyman_User"):
        twice = [*gateway.headers.items(), (second, str(gateway.owner.id))]
        assert (await gateway.ask("POST", CHAT, twice, b"{}")).status == 400
    for name, value in (("Keyman-Key", str(gateway.key_id)), ("Keyman-Purpose", "x"), ("Keyman-Anything", "x")):
        twice = [*gateway.headers.items(), (name, value), (name, value)]
        assert (await gateway.ask("POST", CHAT, twice, b"{}")).status == 400, name
    assert gateway.provider.requests == []


async def test_what_an_application_may_not_have_looks_like_what_does_not_exist(gateway: Scene) -> None:
    other = await renewed(gateway)
    others_key, missing = str(other.key_id), "999999999"
    bodies = set()
    for named in (
        {"keyman_user": missing},
        {"keyman_key": missing},
        {"keyman_user": str(gateway.owner.id), "keyman_key": others_key},
        {"keyman_subject": "nobody", "keyman_user": ""},
    ):
        headers = {**gateway.headers, **{name.replace("_", "-"): value for name, value in named.items()}}
        headers = {name: value for name, value in headers.items() if value}
        answer = await gateway.ask("POST", CHAT, headers, b"{}")
        assert answer.status == 404, named
        bodies.add(answer.json["detail"])
    await gateway.owner.key("ANTHROPIC", "sk-ant-api03-0123456789")
    small = await gateway.pair.app("ANTHROPIC")
    headers = {"authorization": f"Bearer {small.token}", "keyman-user": str(gateway.owner.id)}
    answer = await gateway.ask("POST", CHAT, headers, b"{}")
    bodies.add(answer.json["detail"])
    assert (answer.status, len(bodies)) == (404, 1)
    assert await gateway.pair.told(small) == [("key.use-refused", "not-granted")]
    assert gateway.provider.requests == []


async def test_a_key_of_another_service_is_not_used(gateway: Scene) -> None:
    key = await gateway.owner.key("ANTHROPIC", "sk-ant-api03-0123456789")
    assert (await gateway.post(keyman_key=str(key))).status == 404
    assert await gateway.entries() == [("key.use-refused", "unknown")]


@pytest.mark.parametrize("reason", ["disabled", "expired"])
async def test_paused_and_expired_keys_are_404(gateway: Scene, reason: str) -> None:
    if reason == "expired":
        await gateway.pair.change(gateway.key_id, expires_at=datetime(2001, 1, 1, tzinfo=UTC))
    else:
        await gateway.owner.client.patch(f"/api/keys/{gateway.key_id}", json={"disabled": True})
    assert (await gateway.post()).status == 404
    assert await gateway.entries() == [("key.use-refused", reason)]


async def test_an_application_that_the_owner_has_blocked_gets_the_404_of_a_missing_key(gateway: Scene) -> None:
    block = await gateway.pair.block_of(gateway.application)
    missing = await gateway.post(keyman_key=str(gateway.key_id + 1_000_000))
    assert (await gateway.owner.client.put(block)).status_code == 204
    for answer in (await gateway.post(), await gateway.post(keyman_key=str(gateway.key_id))):
        assert (answer.status, answer.header("keyman-error")) == (404, "not-found")
        assert answer.json["detail"] == missing.json["detail"]
    assert await gateway.entries() == [("key.use-refused", "unknown"), *[("key.use-refused", "blocked-by-owner")] * 2]
    assert gateway.provider.requests == []
    token = await personal(gateway, "keys:use")
    own = await gateway.ask("POST", CHAT, {"authorization": f"Bearer {token}"}, b"{}")
    assert own.status == 200
    assert (await gateway.owner.client.delete(block)).status_code == 204
    assert (await gateway.post()).status == 200


async def test_a_key_whose_settings_were_changed_in_the_database_is_not_sent(gateway: Scene) -> None:
    await gateway.pair.change(gateway.key_id, settings='{"endpoint": "https://evil.openai.azure.com"}')
    answer = await gateway.post()
    assert (answer.status, answer.header("keyman-error")) == (409, "undecryptable")
    assert await gateway.entries() == [("key.use-refused", "not-current")]
    assert gateway.provider.requests == []


async def test_users_are_named_by_the_subject_of_the_application(gateway: Scene) -> None:
    issuer = Issuer.parse(f"keyman:app:{gateway.application.name}")
    shop = await gateway.pair.app("OPENAI", users=Users((issuer,)))
    headers = {"authorization": f"Bearer {shop.token}"}
    for subject in ({"keyman-subject": "user-42"}, {"keyman-subject*": f"UTF-8''{quote('jürgen')}"}):
        answer = await gateway.ask("POST", CHAT, {**headers, **subject}, b"{}")
        assert answer.status == 404
    assert await gateway.pair.told(shop) == [("key.use-refused", "unknown")] * 2
    for subject in ({"keyman-subject": "jürgen"}, {"keyman-subject*": "jürgen"}, {"keyman-subject*": "UTF-8''%ff"}):
        assert (await gateway.ask("POST", CHAT, {**headers, **subject}, b"{}")).status == 400


async def test_a_bound_application_uses_only_keys_of_its_users_whichever_way_it_asks(gateway: Scene) -> None:
    outside, subject = "https://id.example.com", f"ada-{gateway.owner.id}"
    bound = await gateway.pair.app("OPENAI", users=Users((Issuer(outside),)))
    user, key = {"keyman-user": str(gateway.owner.id)}, {"keyman-key": str(gateway.key_id)}
    ways = [
        user,
        key,
        {**user, **key},
        {"keyman-subject": subject},
        {"keyman-subject": subject, "keyman-issuer": outside},
    ]

    async def statuses(*asked: dict[str, str]) -> list[int]:
        headers = {"authorization": f"Bearer {bound.token}"}
        return [(await gateway.ask("POST", CHAT, {**headers, **one}, b"{}")).status for one in asked]

    assert await statuses(*ways) == [404] * 5
    named = [reason for _, reason in await gateway.pair.told(bound)]
    assert named == ["not-granted"] * 3 + ["unknown"] * 2
    async with gateway.pair.resolver.database.write(Unchecked.OPERATOR) as connection:
        pair = {"issuer": outside, "subject": subject, "created_at": now()}
        await connection.execute(insert(identities).values(user_id=gateway.owner.id, **pair))
    assert await statuses(*ways) == [200] * 5
    assert await statuses({"keyman-subject": subject, "keyman-issuer": "https://other.example.com"}) == [404]
    assert (await gateway.pair.told(bound))[-1] == ("key.use-refused", "not-granted")


async def test_a_user_uses_own_keys_with_a_token_that_may(gateway: Scene) -> None:
    token = await personal(gateway, "keys:use")
    answer = await gateway.ask("POST", CHAT, {"authorization": f"Bearer {token}"}, b"{}")
    assert (answer.status, answer.header("keyman-key-id")) == (200, str(gateway.key_id))
    assert gateway.provider.requests[0].all_of("authorization") == [f"Bearer {VALUE}"]
    entry = await gateway.last_entry()
    assert (entry.action, entry.user_id, entry.actor) == ("key.use", gateway.owner.id, "token")
    assert (await gateway.pair.row(gateway.key_id)).last_used_by == "editor"


async def test_a_user_never_uses_the_key_of_another(gateway: Scene) -> None:
    other = await renewed(gateway)
    token = await personal(gateway, "keys:use")
    headers = {"authorization": f"Bearer {token}", "keyman-key": str(other.key_id)}
    assert (await gateway.ask("POST", CHAT, headers, b"{}")).status == 404
    for name in ("keyman-user", "keyman-subject", "keyman-issuer"):
        headers = {"authorization": f"Bearer {token}", name: str(other.owner.id)}
        assert (await gateway.ask("POST", CHAT, headers, b"{}")).status == 400
    assert gateway.provider.requests == []


async def test_a_personal_token_needs_the_scope(gateway: Scene) -> None:
    token = await personal(gateway, "keys:read", "keys:write", "tokens:manage", "audit:read")
    answer = await gateway.ask("POST", CHAT, {"authorization": f"Bearer {token}"}, b"{}")
    assert (answer.status, answer.header("keyman-error")) == (403, "forbidden")
    assert "keys:use" in answer.json["error"]["message"]


@pytest.fixture
async def strict_gateway(tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    """A gateway with small limits, which does not take personal tokens."""
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    small: dict[str, Any] = {"personal": False, "rate": 2.0, "concurrency": 2, "max_body": 1000, "timeout": 2.0}
    async with scene_at(url, provisioned, quick_passwords, tmp_path, **small) as scene:
        yield scene


async def test_an_operator_can_shut_personal_tokens_out(strict_gateway: Scene) -> None:
    token = await personal(strict_gateway, "keys:use")
    assert (await strict_gateway.ask("POST", CHAT, {"authorization": f"Bearer {token}"}, b"{}")).status == 401


@pytest.fixture
def standing_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for the limits, so that a slow machine allows no request more."""
    monkeypatch.setattr(limit, "monotonic", lambda: 1000.0)


@pytest.mark.usefixtures("standing_still")
async def test_the_limits_of_a_caller_are_counted_before_its_body_is_read(strict_gateway: Scene) -> None:
    answers = [await strict_gateway.post() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 200]
    talk = strict_gateway.talk(content_length="10")
    assert await talk.begun() == 429
    assert talk.header("retry-after") == "1"
    assert talk.inbox.empty()
    other = await renewed(strict_gateway)
    assert (await other.post()).status == 200


async def test_a_caller_has_only_so_many_requests_at_once(strict_gateway: Scene) -> None:
    other = await renewed(strict_gateway)
    talks = [strict_gateway.talk(transfer_encoding="chunked") for _ in range(2)]
    for talk in talks:
        talk.give(b"x", more=True)
    while len(strict_gateway.provider.requests) < 2:
        await asyncio.sleep(0.01)
    answer = await strict_gateway.post()
    assert (answer.status, answer.header("retry-after")) == (429, "1")
    assert (await other.post()).status == 200  # others have a place
    for talk in talks:
        talk.give(b"")
        assert await talk.begun() == 200
        await talk.ended()
    assert (await strict_gateway.post()).status == 200


async def test_a_body_that_is_too_large_is_413(strict_gateway: Scene) -> None:
    answer = await strict_gateway.post(b"x" * 1001)
    assert (answer.status, answer.header("keyman-error")) == (413, "payload-too-large")
    assert strict_gateway.provider.requests == []
    talk = strict_gateway.talk(transfer_encoding="chunked")
    for _ in range(3):
        talk.give(b"x" * 400, more=True)
    assert await talk.begun() == 413


async def test_a_provider_that_sends_nothing_is_given_up(strict_gateway: Scene) -> None:
    async def handler(incoming: object) -> None:
        await asyncio.Event().wait()

    strict_gateway.provider.handler = handler
    answer = await strict_gateway.post()
    assert (answer.status, answer.header("keyman-error")) == (504, "provider-timeout")


@pytest.mark.usefixtures("standing_still")
async def test_the_limits_of_a_user_are_those_of_all_own_tokens(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, rate=2.0) as scene:
        tokens = [await personal(scene, "keys:use") for _ in range(2)]
        answers = [
            await scene.ask("POST", CHAT, {"authorization": f"Bearer {tokens[number % 2]}"}, b"{}")
            for number in range(5)
        ]
        assert [answer.status for answer in answers] == [200, 200, 200, 200, 429]
        assert answers[-1].header("retry-after") == "1"
        assert (await scene.post()).status == 200  # an application has its own, also with the key of this user
        other = await renewed(scene)
        mine = {"authorization": f"Bearer {await personal(other, 'keys:use')}"}
        assert (await other.ask("POST", CHAT, mine, b"{}")).status == 200


async def test_whatever_was_asked_for_a_user_gets_only_own_keys(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the plane forgot to say whose key is meant."""
    other = await renewed(gateway)
    wanted = Request(key_id=RowNumber(other.key_id), service=ServiceSlug("OPENAI"))
    monkeypatch.setattr(forwarding, "requested_key", lambda *_: wanted)
    answer = await gateway.ask("POST", CHAT, {"authorization": f"Bearer {await personal(gateway, 'keys:use')}"}, b"{}")
    assert answer.status == 404
    entry = await gateway.last_entry()
    assert (entry.action, entry.reason, entry.user_id) == ("key.use-refused", "unknown", gateway.owner.id)
    assert gateway.provider.requests == []


async def test_a_body_that_stops_arriving_is_400(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane, "BODY_PAUSE", 2.0)
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, tmp_path) as scene:
        talk = scene.talk(transfer_encoding="chunked")
        for _ in range(8):  # each part has its own time
            talk.give(b"x", more=True)
            await asyncio.sleep(0.3)
        assert not talk.task.done()
        assert await talk.begun() == 400
        assert talk.header("keyman-error") == "invalid-request"
