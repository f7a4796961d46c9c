"""What the gateway sends to a provider, and what it passes back."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import CHAT, VALUE, Scene, scene_at
from tests.planes.resolver.pair import through
from tests.support.needs import quick_on
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

on_both = quick_on("sqlite", "shared_gateway")
"""For what depends on rows of the database."""


@on_both
async def test_a_request_arrives_with_the_key_and_comes_back(gateway: Scene) -> None:
    answer = await gateway.post(b'{"model": "x"}', f"{CHAT}?a=1&b=%2F", content_type="application/json", x_mine="1")
    assert (answer.status, answer.json) == (200, {"ok": True})
    (sent,) = gateway.provider.requests
    assert (sent.method, sent.target, sent.body) == ("POST", "/v1/chat/completions?a=1&b=%2F", b'{"model": "x"}')
    assert sent.all_of("authorization") == [f"Bearer {VALUE}"]
    assert sent.all_of("accept-encoding") == ["identity"]
    assert (sent.all_of("content-type"), sent.all_of("x-mine")) == (["application/json"], ["1"])
    assert sent.all_of("host") == [gateway.provider.address.removeprefix("http://")]
    everything = repr(sent.fields)
    assert gateway.application.token not in everything
    assert "keyman" not in everything.lower()
    assert not [name for name in ("user-agent", "accept", "via", "x-forwarded-for") if sent.all_of(name)]


@on_both
async def test_the_answer_names_the_request_and_the_key(gateway: Scene) -> None:
    answer = await gateway.post()
    assert answer.header("keyman-key-id") == str(gateway.key_id)
    assert answer.header("keyman-request-id") == answer.header("x-request-id")


@on_both
async def test_the_audit_entry_comes_first_and_the_last_use_follows(gateway: Scene) -> None:
    seen: list[object] = []

    async def handler(incoming: Incoming) -> None:
        seen.extend(await gateway.entries())
        await incoming.rest()
        await incoming.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    gateway.provider.handler = handler
    answer = await gateway.post(keyman_purpose="a chat")
    assert answer.status == 204
    assert seen == [("key.use", None)]
    (entry,) = await gateway.pair.entries(gateway.application)
    assert (entry.key_id, entry.service, entry.purpose) == (gateway.key_id, "OPENAI", "a chat")
    assert entry.request_id == answer.header("keyman-request-id")
    assert await gateway.last_used_by() == gateway.application.name


@on_both
async def test_the_key_is_in_the_header_of_the_service(gateway: Scene) -> None:
    await gateway.owner.key("ANTHROPIC", "sk-ant-api03-0123456789")
    await gateway.owner.key("GOOGLE", "AIzaSy0123456789")
    headers = {"x-api-key": gateway.application.token, "keyman-user": str(gateway.owner.id)}
    await gateway.ask("POST", "/anthropic/v1/messages", headers, b"{}")
    headers = {"x-goog-api-key": gateway.application.token, "keyman-user": str(gateway.owner.id)}
    await gateway.ask("POST", "/google/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", headers, b"{}")
    anthropic, google = gateway.provider.requests
    assert (anthropic.all_of("x-api-key"), anthropic.all_of("authorization")) == (["sk-ant-api03-0123456789"], [])
    assert anthropic.all_of("anthropic-version") == ["2023-06-01"]
    assert google.all_of("x-goog-api-key") == ["AIzaSy0123456789"]
    assert google.target == "/below/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"


async def test_get_and_head_have_no_body(gateway: Scene) -> None:
    for method in ("GET", "HEAD"):
        gateway.provider.answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + (b"{}" if method == "GET" else b""))
        answer = await gateway.ask(method, "/openai/v1/models", gateway.headers)
        assert (answer.status, answer.body) == (200, b"{}" if method == "GET" else b"")
        sent = gateway.provider.requests[-1]
        assert (sent.method, sent.all_of("content-length"), sent.all_of("transfer-encoding")) == (method, [], [])


async def test_an_answer_to_head_has_the_headers_of_the_one_to_get(gateway: Scene) -> None:
    gateway.provider.answers(b'HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: "1"\r\n\r\n')
    answer = await gateway.ask("HEAD", "/openai/v1/models", gateway.headers)
    assert (answer.status, answer.header("content-length"), answer.header("etag")) == (200, "1234", '"1"')
    assert (answer.body, answer.is_whole) == (b"", True)


async def test_a_header_that_keyman_adds_to_its_own_answers_does_not_replace_one_of_the_provider(
    gateway: Scene,
) -> None:
    own = {"cache-control": "max-age=60", "content-security-policy": "sandbox", "x-request-id": "req_1"}
    fields = "".join(f"{name}: {value}\r\n" for name, value in own.items())
    gateway.provider.answers(f"HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n".encode())
    answer = await gateway.post()
    for name, value in own.items():
        assert [found for given, found in answer.fields if given == name] == [value]
    gateway.provider.answers(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert (await gateway.post()).header("cache-control") == "no-store"


async def test_an_error_of_the_provider_comes_back_as_it_is(gateway: Scene) -> None:
    body = b'{"error":{"message":"Rate limit","code":"x"}}'
    head = b"HTTP/1.1 429 Nope\r\nretry-after: 7\r\nx-request-id: req_1\r\nset-cookie: a=b\r\nserver: nginx\r\n"
    gateway.provider.answers(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body))
    answer = await gateway.post()
    assert (answer.status, answer.body) == (429, body)
    assert (answer.header("retry-after"), answer.header("x-request-id")) == ("7", "req_1")
    assert answer.header("keyman-error") is None
    assert not {"set-cookie", "server"} & {name for name, _ in answer.fields}


async def test_the_value_does_not_come_back(gateway: Scene) -> None:
    escaped = VALUE.replace("/", "\\/")
    body = json.dumps({"wrong": VALUE}).encode() + escaped.encode()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin(f"x-echo: you sent {VALUE}", "content-type: text/plain")
        for start in range(0, len(body), 5):
            await incoming.event(body[start : start + 5])
        await incoming.event(b"!")
        await incoming.send(b"0\r\n\r\n")

    gateway.provider.handler = handler
    answer = await gateway.post()
    mask = "sk-proj-...1234" if b"sk-proj-..." in answer.body else "sk-...1234"
    assert VALUE.encode() not in answer.body
    assert escaped.encode() not in answer.body
    assert len(answer.body) == len(body) + 1
    assert answer.body.endswith(b"!")
    assert answer.header("x-echo") == f"you sent {mask.ljust(len(VALUE), '*')}"


async def test_nothing_is_read_of_a_body_before_the_caller_is_known(gateway: Scene) -> None:
    talk = gateway.talk(authorization="Bearer km_wrong", content_length="100")
    assert await talk.begun() == 401
    assert talk.inbox.empty()


@on_both
async def test_errors_are_as_the_sdks_read_them(gateway: Scene) -> None:
    answer = await gateway.ask("POST", CHAT, {"authorization": "Bearer sk-proj-my-own-key"}, b"{}")
    assert answer.status == 401
    assert answer.header("keyman-error") == "unauthenticated"
    assert answer.header("content-type") == "application/problem+json"
    assert answer.json["error"].keys() == {"message", "type", "code"}
    assert answer.json["error"]["type"] == answer.json["error"]["code"] == "unauthenticated"
    assert answer.json["error"]["message"] == answer.json["detail"]
    assert "sk-proj" not in answer.body.decode()


@pytest.mark.parametrize("field", [("Content-Length", "2"), ("Transfer-Encoding", "chunked")])
async def test_an_error_says_that_it_ends_the_connection_if_a_body_can_be_under_way(
    gateway: Scene, field: tuple[str, str]
) -> None:
    """Otherwise an SDK sends its next request on a connection that has ended."""
    answer = await gateway.ask("POST", "/openai/v1/files", [*gateway.headers.items(), field], b"{}")
    assert (answer.status, answer.header("connection")) == (403, "close")
    assert (await gateway.ask("GET", "/openai/v1/files", gateway.headers)).header("connection") is None


async def test_unknown_paths_and_health_are_answered_here(gateway: Scene) -> None:
    assert (await gateway.ask("GET", "/livez", {})).status == 200
    assert (await gateway.ask("GET", "/readyz", {})).json["status"] == "ok"
    assert b"path" in (await gateway.ask("GET", "/problems/path-not-allowed", {})).body
    for path in ("/OPENAI/v1/models", "/open_ai/v1/models", "/nothing/v1", "/", "/v1/resolve", "/google_vertex/x"):
        answer = await gateway.ask("GET", path, gateway.headers)
        assert (answer.status, answer.header("keyman-error")) == (404, "not-found")
    assert gateway.provider.requests == []


async def test_a_value_that_vault_refuses_has_a_second_entry_and_is_409(gateway: Scene) -> None:
    await gateway.pair.change(gateway.key_id, encrypted_key="vault:v1:AAAA")
    for _ in range(2):  # the second time it is known
        answer = await gateway.post()
        assert (answer.status, answer.header("keyman-error")) == (409, "undecryptable")
        assert answer.json["error"]["code"] == "undecryptable"
    assert await gateway.entries() == [
        ("key.use", None),
        ("key.use-failed", "undecryptable"),
        ("key.use-refused", "undecryptable"),
    ]
    assert gateway.provider.requests == []


@pytest.fixture
async def troubled(tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    """A gateway whose Vault cannot be reached, with a database of its own at `keyman.db`."""
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    away = dataclasses.replace(provisioned, gateway=through(provisioned.gateway, "http://127.0.0.1:9"))
    async with scene_at(url, away, quick_passwords, tmp_path) as scene:
        yield scene


async def test_while_vault_cannot_be_reached_there_is_a_second_entry_and_nothing_is_sent(troubled: Scene) -> None:
    answer = await troubled.post()
    assert (answer.status, answer.header("keyman-error")) == (503, "vault-unavailable")
    assert int(answer.header("retry-after") or 0) > 0
    assert await troubled.entries() == [("key.use", None), ("key.use-failed", "unreachable")]
    assert troubled.provider.requests == []


async def test_without_an_audit_entry_nothing_is_opened_or_sent(troubled: Scene, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "keyman.db") as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END")
    answer = await troubled.post()
    assert answer.status == 500  # and not the 503 of Vault
    assert troubled.provider.requests == []
