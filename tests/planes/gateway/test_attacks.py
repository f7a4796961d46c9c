"""Attacks on the gateway: by a client, by a provider, and by a services file that points inwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.errors import Conflict
from keyman.planes.gateway.services import Forwarded
from keyman.providers.catalogue import Catalogue
from tests.planes.gateway.provider import GOOD, Incoming, good
from tests.planes.gateway.scene import CHAT, VALUE, Scene, scene_at
from tests.planes.gateway.talk import Talk
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path",
    [
        "/openai/v1/../../anthropic/v1/messages",
        "/openai/v1/./chat/completions",
        "/openai/v1/%2e%2e/files",
        "/openai/v1/chat%2fcompletions",
        "/openai//v1/chat/completions",
        "//openai/v1/chat/completions",
        "/openai/v1/chat/completions;x=1",
        "/openai\\v1\\chat\\completions",
        "/openai/v1/chat/completions\t",
        "/openai/v1/chat/complétions",
        "http://evil.example/openai/v1/chat/completions",
        "*",
        "openai/v1/chat/completions",
    ],
)
async def test_a_path_that_could_be_read_in_two_ways_is_refused_before_its_sender_is_known(
    gateway: Scene, path: str
) -> None:
    for headers in ({}, gateway.headers):
        answer = await gateway.ask("POST", path, headers, b"{}")
        assert (answer.status, answer.header("keyman-error")) == (400, "invalid-request")
    assert gateway.provider.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/openai/v1/models/x"),
        ("POST", "/openai/v1/files"),
        ("POST", "/openai/v1/chat/completions/"),
        ("GET", "/openai/v1/organization/users"),
        ("POST", "/openai/v1/Chat/completions"),
        ("POST", "/openai"),
        ("POST", "/openai/"),
        ("OPTIONS", CHAT),
        ("PROPFIND", CHAT),
    ],
)
async def test_what_is_not_on_the_list_is_403(gateway: Scene, method: str, path: str) -> None:
    answer = await gateway.ask(method, path, gateway.headers)
    assert (answer.status, answer.header("keyman-error")) == (403, "path-not-allowed")
    assert gateway.provider.requests == []
    assert await gateway.entries() == []


@pytest.mark.parametrize(
    ("method", "path", "advice"),
    [
        ("POST", "/openai/chat/completions", "The base URL lacks /v1 at its end."),
        ("GET", "/groq/models", "The base URL lacks /openai/v1 at its end."),
        ("POST", "/openai/v1/files", "Use the resolver, or ask the operator of keyman to allow it."),
        ("DELETE", "/openai/chat/completions", "Use the resolver, or ask the operator of keyman to allow it."),
    ],
)
async def test_the_refusal_of_a_path_says_what_to_do(gateway: Scene, method: str, path: str, advice: str) -> None:
    said = f"The gateway does not forward this method and path. Nothing was sent. {advice}"
    assert (await gateway.ask(method, path, gateway.headers)).json["detail"] == said


@pytest.mark.parametrize(
    ("method", "header"), [("CONNECT", "x"), ("TRACE", "x"), ("GET", "upgrade"), ("POST", "Upgrade")]
)
async def test_connect_trace_and_upgrade_are_400(gateway: Scene, method: str, header: str) -> None:
    answer = await gateway.ask(method, CHAT, {**gateway.headers, header: "websocket"})
    assert answer.status == 400
    assert gateway.provider.requests == []


@pytest.mark.parametrize("query", ["a=1#b", "a=\u00e9", "a=\x7f"])
async def test_a_query_is_forwarded_as_it_is_or_not_at_all(gateway: Scene, query: str) -> None:
    answer = await gateway.post(path=f"{CHAT}?{query}")
    assert (answer.status, answer.header("keyman-error")) == (400, "invalid-request")
    assert gateway.provider.requests == []


@pytest.mark.parametrize("query", ["key=x", "API_KEY=x", "access%5ftoken=x", "a=1&%6Bey=x", "$alt=sse", "a=b;token=x"])
async def test_a_credential_in_the_query_reaches_nobody(gateway: Scene, query: str) -> None:
    answer = await gateway.post(path=f"{CHAT}?{query}")
    assert answer.status == 400
    assert gateway.provider.requests == []


@pytest.mark.parametrize(
    "lengths",
    [
        [("content-length", "2"), ("content-length", "3")],
        [("content-length", "2"), ("content-length", "2")],
        [("content-length", "2"), ("Content_Length", "2")],
        [("content-length", "2"), ("transfer-encoding", "chunked")],
        [("content-length", "2"), ("Transfer_Encoding", "chunked")],
        [("content-length", "-1")],
        [("content-length", "+2")],
        [("content-length", "0x2")],
        [("content-length", "2, 2")],
        [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "gzip, chunked")],
        [("transfer-encoding", "gzip")],
        [("transfer-encoding", "identity")],
        [("transfer-encoding", "")],
    ],
)
async def test_a_body_of_an_unclear_length_or_form_is_refused(gateway: Scene, lengths: list[tuple[str, str]]) -> None:
    answer = await gateway.ask("POST", CHAT, [*gateway.headers.items(), *lengths], b"{}")
    assert answer.status == 400
    assert gateway.provider.requests == []


async def test_a_client_cannot_take_the_place_of_the_key(gateway: Scene) -> None:
    sent = {
        "connection": "authorization, x-mine",
        "x_api_key": "mine",
        "content_type": "text/plain",
        "proxy-authorization": "Basic x",
        "ocp-apim-subscription-key": "mine",
        "host": "evil.example",
        "te": "trailers",
        "x-forwarded-host": "evil.example",
        "x-http-method-override": "DELETE",
        "x-original-url": "/v1/files",
        "x-mine": "1",
        "cookie": "a=b",
    }
    answer = await gateway.ask("POST", CHAT, {**gateway.headers, **sent}, b"{}")
    assert answer.status == 200
    (request,) = gateway.provider.requests
    names = {name.lower() for name, _ in request.fields}
    assert names == {"authorization", "accept-encoding", "host", "content-length"}
    assert request.all_of("authorization") == [f"Bearer {VALUE}"]
    assert request.all_of("host") != ["evil.example"]


async def test_no_key_is_used_for_a_header_that_cannot_be_sent(gateway: Scene) -> None:
    answer = await gateway.ask("POST", CHAT, {**gateway.headers, "x-mine": "\xff"}, b"{}")
    assert (answer.status, answer.header("keyman-error")) == (400, "invalid-request")
    assert await gateway.entries() == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
async def test_a_redirect_is_neither_followed_nor_passed_on(gateway: Scene, status: int) -> None:
    gateway.provider.answers(b"HTTP/1.1 %d X\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n" % status)
    answer = await gateway.post()
    assert (answer.status, answer.header("keyman-error")) == (502, "provider-redirected")
    assert answer.header("location") is None
    assert len(gateway.provider.requests) == 1


async def test_304_is_passed_on(gateway: Scene) -> None:
    gateway.provider.answers(b'HTTP/1.1 304 Not Modified\r\netag: "1"\r\n\r\n')
    answer = await gateway.ask("GET", "/openai/v1/models", gateway.headers)
    assert (answer.status, answer.header("etag")) == (304, '"1"')


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: identity, br\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(2000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
        b"this is not HTTP\r\n\r\n",
        b"",
    ],
)
async def test_an_answer_that_is_not_as_it_should_be_is_502(gateway: Scene, answer: bytes) -> None:
    gateway.provider.answers(answer)
    found = await gateway.post()
    assert (found.status, found.header("keyman-error")) == (502, "provider-answer-refused")
    assert b"y" * 10 not in found.body


async def test_headers_of_keyman_and_of_the_host_do_not_come_from_a_provider(gateway: Scene) -> None:
    fields = (
        b"keyman-key-id: 999\r\nKeyman-Error: not-found\r\nset-cookie: a=x\r\naccess-control-allow-origin: *\r\n"
        b"strict-transport-security: max-age=1\r\nclear-site-data: *\r\nalt-svc: h3=evil\r\nrefresh: 0;url=//evil\r\n"
        b"X-Accel-Redirect: /internal/secret\r\nx-accel-buffering: yes\r\nX-Sendfile: /etc/passwd\r\n"
        b"proxy-authenticate: Basic\r\nvia: x\r\nserver: x\r\nconnection: x-secret\r\nx-secret: 1\r\nx-stays: 1\r\n"
    )
    gateway.provider.answers(b"HTTP/1.1 200 OK\r\n" + fields + b"content-length: 0\r\n\r\n")
    answer = await gateway.post()
    assert answer.header("keyman-key-id") == str(gateway.key_id)
    shown = {name for name, _ in answer.fields}
    assert "x-stays" in shown
    assert not shown & {
        "keyman-error",
        "set-cookie",
        "access-control-allow-origin",
        "strict-transport-security",
        "clear-site-data",
        "alt-svc",
        "refresh",
        "proxy-authenticate",
        "x-accel-redirect",
        "x-accel-buffering",
        "x-sendfile",
        "via",
        "server",
        "connection",
        "x-secret",
    }


async def test_a_name_that_leads_inwards_is_not_connected_to(gateway: Scene) -> None:
    """The provider of these tests listens there."""
    await gateway.owner.key("INWARDS", "0123456789abcdef")
    before = set(gateway.provider.tasks)  # connections that are kept
    answer = await gateway.ask("GET", "/inwards/x", gateway.headers)
    assert (answer.status, answer.header("keyman-error")) == (502, "provider-unreachable")
    assert gateway.provider.requests == []
    assert gateway.provider.tasks <= before


@pytest.fixture
async def private_gateway(tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Scene]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    there = {"service": "INWARDS", "name": "x", "base_url": "https://localhost:9", "paths": ["GET /x"]}
    allowed = [{**there, "allow_private": True}]
    async with scene_at(url, provisioned, quick_passwords, tmp_path, allowed) as scene:
        yield scene


async def test_an_operator_can_allow_it_and_tls_is_verified_there_too(private_gateway: Scene) -> None:
    """Nobody listens at that port, so that it was tried shows only in the log; the answer is the same."""
    await private_gateway.owner.key("INWARDS", "0123456789abcdef")
    assert (await private_gateway.ask("GET", "/inwards/x", private_gateway.headers)).status == 502


AZURE = Catalogue().find("AZURE_OPENAI")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://a.openai.azure.com",
        "https://user@a.openai.azure.com",
        "https://a.openai.azure.com:8443",
        "https://a.openai.azure.com./",
        "https://a.openai.azure.com/x",
        "https://a.openai.azure.com?x",
        "https://a.openai.azure.com#x",
        "https://evil.example#.openai.azure.com",
        "https://evil.example\\.openai.azure.com",
        "https://openai.azure.com.evil.example",
        "https://127.0.0.1",
        "https://169.254.169.254",
        "https://[::ffff:10.0.0.1]",
        "https://exämple.openai.azure.com",
        "https://a.openai.azure.com\n",
    ],
)
async def test_an_endpoint_that_is_not_allowed_is_not_used_whatever_is_stored(endpoint: str) -> None:
    assert AZURE is not None
    assert AZURE.upstream is not None
    service = Forwarded(AZURE, AZURE.upstream, ())
    with pytest.raises(Conflict) as refused:
        service.base_url({"endpoint": endpoint})
    assert "endpoint" in str(refused.value)
    good = service.base_url({"endpoint": "https://My-Resource.openai.azure.com/"})
    assert good == "https://my-resource.openai.azure.com"


async def test_a_key_without_the_setting_of_its_service_is_409(gateway: Scene) -> None:
    azure = await gateway.pair.app("AZURE_OPENAI")
    await gateway.owner.key("AZURE_OPENAI", "0123456789abcdef")
    headers = {"api-key": azure.token, "keyman-user": str(gateway.owner.id)}
    answer = await gateway.ask("POST", "/azure-openai/openai/v1/chat/completions", headers, b"{}")
    assert (answer.status, answer.header("keyman-error")) == (409, "conflict")
    assert "endpoint" in answer.json["error"]["message"]
    entry = await gateway.last_entry()
    assert (entry.action, entry.reason, entry.application) == ("key.use-refused", "settings", azure.name)


@pytest.mark.parametrize("surplus", [b"surplus", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond"])
@pytest.mark.parametrize("pause", [0, 0.1])
async def test_what_a_provider_sends_beyond_its_answer_is_an_answer_to_nobody(
    gateway: Scene, surplus: bytes, pause: float
) -> None:
    """Callers share connections to a provider. What is left over from the answer to one is not for another."""
    sent = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(GOOD if pause else GOOD + surplus)
        await asyncio.sleep(pause)
        await incoming.send(surplus if pause else b"")
        sent.set()

    gateway.provider.handler = handler
    answer = await gateway.post()
    assert answer.status in (200, 502)
    assert b"surplus" not in answer.body
    await sent.wait()
    await asyncio.sleep(0.1)  # until it has arrived
    gateway.provider.handler = good
    after = await gateway.post()
    assert (after.status, after.json) == (200, {"ok": True})


async def test_a_request_is_sent_once_whatever_happens_to_it(gateway: Scene) -> None:
    """It may have cost something."""

    async def closes(incoming: Incoming) -> None:
        incoming.writer.close()

    for method, path in (("POST", CHAT), ("GET", "/openai/v1/models")):
        gateway.provider.handler = good
        assert (await gateway.post()).status == 200  # the connection is kept, and the next request uses it
        gateway.provider.requests.clear()
        gateway.provider.handler = closes
        answer = await gateway.ask(method, path, gateway.headers, b"{}" if method == "POST" else b"")
        assert (answer.status, answer.header("keyman-error")) == (502, "provider-answer-refused")
        assert len(gateway.provider.requests) == 1
    gateway.provider.requests.clear()
    for status in (429, 500, 503):
        gateway.provider.answers(b"HTTP/1.1 %d X\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n" % status)
        assert (await gateway.post()).status == status
    assert len(gateway.provider.requests) == 3


async def test_a_cookie_of_a_provider_is_not_kept(gateway: Scene) -> None:
    gateway.provider.answers(b"HTTP/1.1 200 OK\r\nset-cookie: a=b; Path=/\r\ncontent-length: 0\r\n\r\n")
    for _ in range(2):
        assert (await gateway.post()).status == 200
    assert [request.all_of("cookie") for request in gateway.provider.requests] == [[], []]


async def test_trailers_are_dropped(gateway: Scene) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin("trailer: x-late, keyman-key-id")
        await incoming.event(b"body")
        await incoming.send(f"0\r\nx-late: {VALUE}\r\nkeyman-key-id: 9\r\n\r\n".encode())

    gateway.provider.handler = handler
    answer = await gateway.post()
    assert (answer.status, answer.body, answer.is_whole) == (200, b"body", True)
    assert answer.header("keyman-key-id") == str(gateway.key_id)
    assert not {"x-late", "trailer"} & {name for name, _ in answer.fields}


async def test_a_refusal_without_end_is_passed_on_and_little_of_it_kept(gateway: Scene) -> None:
    """What is kept of a refusal is for the verdict."""
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(b"HTTP/1.1 401 X\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                await incoming.event(b"x" * 4096)
        finally:
            gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk(most=1)
    talk.give(b"")
    assert await talk.begun() == 401
    size = 0
    while size < 1024 * 1024:
        size += len(await talk.part() or b"")
    talk.leave()
    await talk.part()
    await asyncio.wait_for(gone.wait(), 10)
    talk.task.cancel()
    await asyncio.wait({talk.task})


async def test_an_answer_before_the_end_of_a_body_leaves_nothing_for_the_next_request(gateway: Scene) -> None:
    """The rest of the body never reaches a connection on which the next request, perhaps another caller's, is sent."""

    async def early(incoming: Incoming) -> None:
        await incoming.reader.readuntil(b"begin")
        await incoming.send(GOOD)

    for name, value in (("transfer-encoding", "chunked"), ("content-length", "100")):
        gateway.provider.handler = early
        talk = Talk(gateway.app, "POST", CHAT, {**gateway.headers, name: value})
        talk.give(b"begin", more=True)
        assert await talk.begun() == 200
        assert await talk.part() == b'{"ok":true}'
        gateway.provider.requests.clear()
        gateway.provider.handler = good
        talk.give(b"POST /v1/files HTTP/1.1\r\n\r\n", more=True)
        assert (await gateway.post(b"own")).json == {"ok": True}
        talk.leave()
        await talk.ended()
        assert [(sent.target, sent.body) for sent in gateway.provider.requests] == [("/v1/chat/completions", b"own")]
