"""The resolver's routes: who may call them, which bodies are valid, and what else the plane answers."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
import time_machine

from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity import applications
from keyman.identity.tokens import Token
from keyman.ids import MAX_ID
from keyman.values import ApplicationName
from tests.planes.management.api.bodies import CANARY
from tests.planes.management.api.harness import OPENAI_KEY, STATUSES, problem
from tests.planes.management.api.test_bad_input import NO_JSON
from tests.planes.resolver.pair import Pair, resolver_at
from tests.support.logs import capture_logs
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


# --- who is let in


async def test_without_the_token_of_an_application_there_is_no_way_in(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    made = await ada.client.post("/api/tokens", json={"name": "x"})
    cookie = ada.client.cookies["keyman_session"]
    shown: list[dict[str, str]] = [
        {},
        {"Authorization": f"Bearer {made.json()['token']}"},
        {"Authorization": f"Bearer {Token.generate().reveal()}"},
        {"Authorization": f"Bearer {app.token[:-1]}"},
        {"Authorization": f"Bearer {app.token} {app.token}"},
        {"Authorization": f"Basic {app.token}"},
        {"Authorization": app.token},
        {"Authorization": ""},
        {"Authorization": f"Bearer {CANARY}"},
        {"Cookie": f"keyman_session={cookie}"},
        {"X-Api-Key": app.token},
    ]
    rows = await shared_pair.resolver.count(audit_log)
    for headers in shown:
        for body in ({"key_id": key_id}, {"key_id": MAX_ID}, {}):
            answer = await shared_pair.resolver.client(headers=headers).post("/v1/resolve", json=body)
            problem(answer, "unauthenticated")
            assert CANARY not in answer.text
    assert await shared_pair.resolver.count(audit_log) == rows
    assert await app.gets(key_id=key_id) == OPENAI_KEY


async def test_the_address_of_a_client_comes_through_a_proxy_here_too(shared_pair: Pair, provisioned: Vault) -> None:
    """With ports, over several lines, from the right, and only from a proxy that is trusted."""
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    lines = ["203.0.113.66", "192.0.2.7:51234, 10.0.0.9"]
    sent = [(b"x-forwarded-for", line.encode()) for line in lines]
    sent += [(b"authorization", f"Bearer {app.token}".encode()), (b"content-type", b"application/json")]
    database = shared_pair.resolver.settings.database_url
    for trusted in ((), (ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8"))):
        async with resolver_at(database, provisioned.resolver, trusted_proxies=trusted) as plane:
            answer = await plane.wire("POST", b"/v1/resolve", sent, b'{"key_id": %d}' % key_id)
            assert answer.status_code == 200
    direct, forwarded = [entry.address for entry in await shared_pair.entries(app)]
    assert direct != forwarded == "192.0.2.7"


async def test_an_applications_token_is_nothing_to_the_management_plane(shared_pair: Pair) -> None:
    app = await shared_pair.app()
    script = shared_pair.management.bearer(app.token)
    for path in ("/api/keys", "/api/auth/me", "/api/audit", "/api/services"):
        problem(await script.get(path), "unauthenticated")
    answer = await script.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY})
    problem(answer, "unauthenticated")


async def test_the_management_plane_has_no_resolver_and_the_resolver_none_of_its_routes(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    problem(await ada.client.post("/v1/resolve", json={"key_id": await ada.key()}), "not-found")
    for path in ("/", "/api/keys", "/api/services", "/docs", "/schema", "/static/keyman.css"):
        problem(await app.client.get(path, headers={"Accept": "text/html"}), "not-found")


async def test_a_revoked_application_is_out_with_its_next_request(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    assert await app.gets(key_id=key_id) == OPENAI_KEY
    await applications.revoke(shared_pair.resolver.database, ApplicationName(app.name))
    problem(await app.ask(key_id=key_id), "unauthenticated")


async def test_an_old_token_is_good_until_the_overlap_ends(sqlite_pair: Pair) -> None:
    ada, app = await sqlite_pair.owner(), await sqlite_pair.app()
    key_id, name = await ada.key(), ApplicationName(app.name)
    with time_machine.travel(now(), tick=False) as clock:
        made = await applications.rotate(sqlite_pair.resolver.database, name, timedelta(hours=1))
        new = sqlite_pair.resolver.bearer(made.token.reveal())
        clock.shift(timedelta(minutes=59))
        for client in (app.client, new):
            assert (await client.post("/v1/resolve", json={"key_id": key_id})).status_code == 200
        clock.shift(timedelta(minutes=1))
        problem(await app.ask(key_id=key_id), "unauthenticated")
        assert (await new.post("/v1/resolve", json={"key_id": key_id})).status_code == 200


# --- what a body must be


NO_ID: tuple[Any, ...] = (None, True, "1", 1.0, 1.5, 0, -1, MAX_ID + 1, 10**30, [1], {})
NO_SERVICE: tuple[Any, ...] = (None, 7, "", "openai", "OPENAI ", "X" * 65, CANARY, "A\n", "Ä", ["OPENAI"])
NO_PURPOSE: tuple[Any, ...] = (7, ["x"], "x" * 201, "a\x00b", "a\nb", "a\u202eb", "a\u200fb", "\u2028")

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [""]),
    ({"purpose": "x"}, [""]),
    ({"user_id": 1}, [""]),
    ({"service": "OPENAI"}, [""]),
    ({"key_id": 1, "user_id": 1, "service": "OPENAI"}, [""]),
    ({"key_id": 1, "user_id": 1}, [""]),
    ({"key_id": 1, "service": "OPENAI"}, [""]),
    ({"subject": "ada"}, [""]),
    ({"subject": "ada", "user_id": 1, "service": "OPENAI"}, [""]),
    ({"subject": "ada", "key_id": 1}, [""]),
    ({"key_id": 1, "issuer": "https://id.example.com"}, ["issuer"]),
    ({"user_id": 1, "service": "OPENAI", "issuer": "https://id.example.com"}, ["issuer"]),
    *(({"subject": value, "service": "OPENAI"}, ["subject"]) for value in ("", " a", "a\u202e", 7, None)),
    *(({"subject": "a", "service": "OPENAI", "issuer": value}, ["issuer"]) for value in ("", "a b", "keyman:x", 7)),
    *(({"key_id": value}, ["key_id"]) for value in NO_ID),
    *(({"user_id": value, "service": "OPENAI"}, ["user_id"]) for value in NO_ID),
    *(({"user_id": 7, "service": value}, ["service"]) for value in NO_SERVICE),
    *(({"key_id": 1, "purpose": value}, ["purpose"]) for value in NO_PURPOSE),
    ({"key_id": 1, CANARY: CANARY}, [""]),
    (
        {"key_id": CANARY, "user_id": CANARY, "service": 1, "purpose": 1, "x": 1},
        ["key_id", "user_id", "service", "purpose", ""],
    ),
]  # fmt: skip


async def test_every_fault_of_a_body_is_named_and_nothing_of_it_repeated_or_recorded(sqlite_pair: Pair) -> None:
    app = await sqlite_pair.app()
    with capture_logs() as logs:
        for body, fields in WRONG:
            answer = await app.ask(**body)
            problem(answer, "invalid-request", *fields)
            assert CANARY not in answer.text
    assert CANARY not in str(logs)
    assert await sqlite_pair.entries(app) == []


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
async def test_what_is_no_json_object_is_refused(sqlite_pair: Pair, content: bytes) -> None:
    app = await sqlite_pair.app()
    answer = await app.client.post("/v1/resolve", content=content, headers={"Content-Type": "application/json"})
    problem(answer, "invalid-request")
    assert CANARY not in answer.text
    assert await sqlite_pair.entries(app) == []


@pytest.mark.parametrize("value", ["null", "[]", "7", '"x"', "true"])
async def test_json_that_is_no_object_is_refused(sqlite_pair: Pair, value: str) -> None:
    app = await sqlite_pair.app()
    answer = await app.client.post("/v1/resolve", content=value, headers={"Content-Type": "application/json"})
    problem(answer, "invalid-request", "")


async def test_the_longest_purpose_is_recorded_as_it_is(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    for purpose in ("\U0001f511" * 200, "", None):
        assert await app.gets(key_id=key_id, purpose=purpose) == OPENAI_KEY
        assert (await ada.trail())[0]["purpose"] == purpose


async def test_a_body_has_a_length_a_type_and_no_encoding(sqlite_pair: Pair) -> None:
    app = await sqlite_pair.app()

    async def sent(content: bytes, **headers: str) -> httpx.Response:
        named = {"Content-Type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
        return await app.client.post("/v1/resolve", content=content, headers=named)

    body = json.dumps({"key_id": MAX_ID}).encode()
    problem(await sent(body + b" " * (65536 - len(body))), "not-found")
    problem(await sent(body + b" " * (65537 - len(body))), "payload-too-large")
    problem(await sent(body, Content_Type="text/plain"), "unsupported-media-type")
    problem(await sent(body, Content_Type="application/json; charset=latin-1"), "unsupported-media-type")
    problem(await sent(gzip.compress(body), Content_Encoding="gzip"), "unsupported-media-type")


async def test_a_query_is_refused(sqlite_pair: Pair) -> None:
    app = await sqlite_pair.app()
    problem(await app.client.post("/v1/resolve?key_id=1", json={"key_id": 1}), "invalid-request", "")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_other_methods_are_named(sqlite_pair: Pair, method: str) -> None:
    app = await sqlite_pair.app()
    answer = await app.client.request(method, "/v1/resolve")
    problem(answer, "method-not-allowed")
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert (await sqlite_pair.resolver.client().options("/v1/resolve")).headers["allow"] == "POST, OPTIONS"


async def test_a_page_of_another_site_gets_nothing_without_a_token_that_it_knows(sqlite_pair: Pair) -> None:
    ada, app = await sqlite_pair.owner(), await sqlite_pair.app()
    key_id = await ada.key()
    unknown = sqlite_pair.resolver.bearer(Token.generate().reveal())
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        for client in (sqlite_pair.resolver.client(), unknown):
            problem(await client.post("/v1/resolve", json={"key_id": key_id}, headers=headers), "forbidden")
    assert await sqlite_pair.entries(app) == []
    sent = {"Sec-Fetch-Site": "cross-site"}
    assert (await app.client.post("/v1/resolve", json={"key_id": key_id}, headers=sent)).status_code == 200


# --- how fast


async def test_an_application_that_asks_too_fast_waits_and_others_do_not(sqlite_pair: Pair, provisioned: Vault) -> None:
    ada, app, other = await sqlite_pair.owner(), await sqlite_pair.app(), await sqlite_pair.app()
    key_id = await ada.key()
    url = sqlite_pair.resolver.settings.database_url
    async with resolver_at(url, provisioned.resolver, resolve_rate=0.1) as slow:
        client = slow.bearer(app.token)
        first, second, third = [await client.post("/v1/resolve", json={"key_id": key_id}) for _ in range(3)]
        assert first.status_code == 200
        for limited in (second, third):
            problem(limited, "rate-limited")
            assert 0 < int(limited.headers["retry-after"]) <= 10
        assert await sqlite_pair.told(app) == [("key.resolve", None)]
        answer = await slow.bearer(other.token).post("/v1/resolve", json={"key_id": key_id})
        assert answer.status_code == 200


# --- what else there is


async def test_livez_readyz_and_metrics_answer_everybody(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    await app.gets(key_id=await ada.key())
    visitor = shared_pair.resolver.client()
    assert (await visitor.get("/livez")).json() == {"status": "ok"}
    assert (await visitor.get("/readyz")).json() == {"status": "ok", "checks": {"database": "ok", "vault": "ok"}}
    metrics = (await visitor.get("/metrics")).text
    assert 'keyman_http_request_seconds_count{method="POST",route="/v1/resolve",status="200"}' in metrics
    assert 'keyman_vault_operation_seconds_count{operation="decrypt"}' in metrics
    assert app.name not in metrics


@pytest.mark.parametrize("slug", STATUSES)
async def test_the_type_of_every_problem_leads_to_its_explanation(sqlite_pair: Pair, slug: str) -> None:
    answer = await sqlite_pair.resolver.client().get(f"/problems/{slug}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert f"{STATUSES[slug]} {slug}" in answer.text
    problem(await sqlite_pair.resolver.client().get(f"/problems/{slug}x"), "not-found")


async def test_the_log_names_the_application_by_its_id_and_no_more(shared_pair: Pair) -> None:
    ada, app = await shared_pair.owner(), await shared_pair.app()
    key_id = await ada.key()
    with capture_logs() as logs:
        await app.ask(key_id=key_id, purpose=CANARY)
    (line,) = [line for line in logs if line["event"] == "request"]
    assert line.keys() == {"event", "log_level", "method", "route", "status", "duration_ms", "application_id"}
    assert (line["route"], line["status"]) == ("/v1/resolve", 200)
    assert isinstance(line["application_id"], int)
    for word in (CANARY, OPENAI_KEY, app.name, app.token):
        assert word not in str(logs)
