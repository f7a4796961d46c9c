"""`keyman.http.edge`: what happens to every request, independent of the application behind it."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import re
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.errors import NotFound, RateLimited
from keyman.http import passage
from keyman.http.edge import SECURITY_HEADERS, Edge
from keyman.http.exchange import SCOPE_KEY, ASGIApp, Exchange, Message, Receive, Scope, Send, exchange_of
from keyman.logs import current_request_id, with_request_id
from keyman.metrics import Metrics
from tests.support.logs import capture_logs

pytestmark = pytest.mark.anyio

CANARY = "kNrYcAnArY"


def settings(**changes: Any) -> Settings:
    given = {"public_url": "http://127.0.0.1:8000", **changes}
    return Settings(make_url("sqlite+aiosqlite:///x"), VaultSettings("http://127.0.0.1:8200"), **given)


class Answer:
    def __init__(self, messages: list[Message]) -> None:
        start, *rest = messages
        self.status: int = start["status"]
        self.headers = [(name.decode(), value.decode()) for name, value in start["headers"]]
        self.body = b"".join(message.get("body", b"") for message in rest)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name]
        assert len(found) < 2, f"{name} is there twice"
        return found[0] if found else None


async def ask(
    app: ASGIApp,
    method: str = "GET",
    headers: Iterable[tuple[bytes, bytes]] = (),
    client: tuple[str, int] | None = ("192.0.2.1", 40000),
    edge: Edge | None = None,
    receive: Receive | None = None,
    **changes: Any,
) -> tuple[Answer, Scope]:
    messages: list[Message] = []

    async def no_body() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    scope: Scope = {"type": "http", "method": method, "path": "/", "headers": list(headers), "client": client}
    await (edge or Edge(app, settings(**changes), Metrics()))(scope, receive or no_body, send)
    return Answer(messages), scope


async def hello(_scope: Scope, _receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5"), (b"cache-control", b"max-age=60")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hel", "more_body": True})
    await send({"type": "http.response.body", "body": b"lo", "more_body": False})


def raising(fault: Callable[[], BaseException], *, started: bool = False) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise fault()

    return app


async def test_every_answer_has_the_headers_and_what_the_route_says_goes_before() -> None:
    answer, _ = await ask(hello)
    assert answer.body == b"hello"
    for name, value in SECURITY_HEADERS.items():
        assert answer.header(name) == ("max-age=60" if name == "cache-control" else value)
    assert answer.header("strict-transport-security") is None


async def test_over_https_browsers_get_hsts_for_this_host_only() -> None:
    """The names below the host may be neighbours that have no https."""
    answer, _ = await ask(hello, public_url="https://keys.example.com")
    assert answer.header("strict-transport-security") == "max-age=63072000"


async def test_the_operator_says_what_hsts_is() -> None:
    for value, sent in (("max-age=60; includeSubDomains", "max-age=60; includeSubDomains"), ("", None)):
        answer, _ = await ask(hello, public_url="https://keys.example.com", hsts=value)
        assert answer.header("strict-transport-security") == sent
        answer, _ = await ask(hello, public_url="http://127.0.0.1:8000", hsts=value)
        assert answer.header("strict-transport-security") is None


async def test_two_authorization_headers_are_a_bad_request() -> None:
    for pair in (("Bearer km_a", "Bearer km_a"), ("Basic YTpi", "Bearer km_a"), ("", "x")):
        headers = [
            (name, value.encode()) for name, value in zip((b"authorization", b"Authorization"), pair, strict=True)
        ]
        for method in ("GET", "POST", "OPTIONS"):
            answer, _ = await ask(hello, method, headers)
            assert answer.status == 400
            assert json.loads(answer.body)["type"] == "/problems/invalid-request"


async def test_a_request_has_an_id_of_ours_whatever_the_client_says() -> None:
    edge = Edge(hello, settings(), Metrics())
    ids = set()
    for _ in range(20):
        answer, scope = await ask(hello, headers=[(b"x-request-id", CANARY.encode())], edge=edge)
        request_id = answer.header("x-request-id")
        assert request_id is not None
        assert re.fullmatch("[0-9a-f]{32}", request_id)
        assert exchange_of(scope).request_id == request_id
        ids.add(request_id)
    assert len(ids) == 20


async def test_head_gets_what_get_would_without_the_body() -> None:
    methods = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        methods.append(scope["method"])
        await hello(scope, receive, send)

    answer, _ = await ask(app, "HEAD")
    assert methods == ["GET"]
    assert answer.body == b""
    assert answer.header("content-length") == "5"


async def test_a_problem_that_the_application_let_through_is_answered() -> None:
    answer, _ = await ask(raising(lambda: RateLimited("Wait.", retry_after=3)))
    assert answer.status == 429
    assert answer.header("retry-after") == "3"
    assert answer.header("content-length") == str(len(answer.body))
    assert json.loads(answer.body)["request_id"] == answer.header("x-request-id")


async def test_any_other_exception_becomes_a_500_that_shows_only_the_request_id() -> None:
    with capture_logs() as lines:
        answer, _ = await ask(raising(lambda: RuntimeError(CANARY)))
    assert answer.status == 500
    body = json.loads(answer.body)
    assert body["type"] == "/problems/internal"
    assert body["detail"] == f"Give the operator of keyman this request id: {answer.header('x-request-id')}"
    assert CANARY not in answer.body.decode() + str(lines)
    assert [line["event"] for line in lines] == ["unhandled exception", "request"]
    assert lines[0]["fault"] == "builtins.RuntimeError"


async def test_half_an_answer_is_not_made_a_whole_one() -> None:
    """The connection is ended, which the client sees; a second answer in the first one's body nobody would."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    for fault in (lambda: RuntimeError(CANARY), lambda: KeyError(CANARY)):
        edge = Edge(raising(fault, started=True), settings(), Metrics())
        scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
        messages.clear()
        with capture_logs() as lines, pytest.raises(RuntimeError) as ended:
            await edge(scope, receive, send)
        assert CANARY not in str(ended.value)
        assert ended.value.__suppress_context__
        assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
        assert CANARY not in str(lines)
        assert lines[-1]["status"] == 500


async def test_a_body_has_so_long_to_arrive_however_many_pieces_it_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "BODY_TIMEOUT", 0.3)

    async def read_all(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def silence() -> Message:
        return await asyncio.Event().wait()  # type: ignore[return-value]  # it never returns

    for receive in (trickle, silence):
        answer, _ = await ask(read_all, "POST", receive=receive)
        assert answer.status == 400
        (error,) = json.loads(answer.body)["errors"]
        assert error == {"field": "", "message": "The body did not arrive in time."}


@pytest.mark.parametrize("outcome", ["answered", "refused", "a problem", "a fault", "overloaded"])
async def test_what_a_request_holds_is_freed_at_its_end(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    """Without the garbage collector: the server keeps a connection open for as long as somebody could read its body."""
    monkeypatch.setattr(passage, "BODY_TIMEOUT", 0.05)

    class Incoming:
        async def receive(self) -> Message:
            return await asyncio.Event().wait()  # type: ignore[return-value]  # it never returns

    async def read(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    apps = {
        "answered": hello,
        "refused": read,
        "a problem": raising(lambda: NotFound("x")),
        "a fault": raising(ValueError),
    }
    incoming = Incoming()
    freed = weakref.ref(incoming)
    edge = Edge(apps.get(outcome, hello), settings(max_queue=0 if outcome == "overloaded" else 8), Metrics())
    gc.disable()
    try:
        await ask(hello, "POST", edge=edge, receive=incoming.receive)
        del incoming
        await asyncio.sleep(0)  # the loop forgets what it has cancelled
        assert freed() is None
    finally:
        gc.enable()


async def test_a_client_that_leaves_before_its_body_is_whole_sent_a_bad_request() -> None:
    inbox: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        return inbox.pop()

    async def read_it_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await hello(scope, receive, send)

    answer, _ = await ask(read_it_all, "POST", receive=receive)
    [error] = json.loads(answer.body)["errors"]
    assert answer.status == 400
    assert error == {"field": "", "message": "The body ended before it was complete."}


async def test_after_a_whole_body_the_client_may_stay_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "BODY_TIMEOUT", 0.05)
    left = asyncio.Event()
    inbox: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def wait_for_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        asyncio.get_running_loop().call_later(0.2, left.set)
        assert (await receive())["type"] == "http.disconnect"
        await hello(scope, receive, send)

    answer, _ = await ask(wait_for_the_end, receive=receive)
    assert answer.status == 200


async def test_a_problem_after_half_an_answer_is_no_second_answer() -> None:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    edge = Edge(raising(lambda: NotFound("Late."), started=True), settings(), Metrics())
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    with capture_logs() as lines:
        await edge(scope, receive, send)
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert messages[-1]["more_body"]  # without its end, the server closes the connection
    assert (lines[-1]["status"], lines[-1]["cut"]) == (404, "not-found")


async def test_a_request_leaves_one_line_with_words_from_fixed_sets() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_template"] = "/api/keys/{key_id}"
        exchange_of(scope).user_id = 7
        await hello(scope, receive, send)

    headers = [(b"user-agent", CANARY.encode()), (b"cookie", CANARY.encode()), (b"referer", CANARY.encode())]
    with capture_logs(processors=[with_request_id]) as lines:
        answer, _ = await ask(app, CANARY, headers)
    (line,) = lines
    assert line.keys() == {"event", "log_level", "method", "route", "status", "duration_ms", "request_id", "user_id"}
    assert (line["method"], line["log_level"]) == ("other", "info")
    assert line["route"] == "/api/keys/{key_id}"
    assert (line["status"], line["user_id"]) == (200, 7)
    assert line["request_id"] == answer.header("x-request-id")
    assert CANARY not in str(line)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("route", ["/livez", "/readyz", "/metrics"])
@pytest.mark.parametrize(("status", "level"), [(200, "debug"), (503, "info"), (405, "info")])
async def test_requests_of_the_platform_are_only_seen_at_debug_unless_they_fail(
    method: str, route: str, status: int, level: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_template"] = route
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with capture_logs() as lines:
        await ask(app, method)
    assert [(line["event"], line["log_level"]) for line in lines] == [("request", level)]


async def test_an_error_is_counted_by_its_status() -> None:
    metrics = Metrics()
    for failing in (hello, raising(lambda: RuntimeError("x")), raising(lambda: NotFound("No."))):
        await ask(failing, edge=Edge(failing, settings(), metrics))
    counted = [
        metrics.registry.get_sample_value("keyman_http_errors_total", {"status": s}) for s in ("404", "500", "503")
    ]
    assert counted == [1, 1, 0]


async def test_what_is_bound_to_one_request_is_not_in_the_next_ones_lines() -> None:
    await ask(hello)
    assert current_request_id() is None
    await ask(raising(lambda: RuntimeError("x")))
    assert current_request_id() is None


async def test_it_leaves_anything_but_http_to_the_application() -> None:
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        return {}

    for kind in ("lifespan", "websocket"):
        scope: Scope = {"type": kind}
        await Edge(app, settings(), Metrics())(scope, nothing, nothing)
    assert [scope["type"] for scope in seen] == ["lifespan", "websocket"]
    assert all(SCOPE_KEY not in scope for scope in seen)


async def test_what_is_in_progress_is_counted_and_forgotten() -> None:
    metrics = Metrics()

    def in_progress() -> float:
        value = metrics.registry.get_sample_value("keyman_http_requests_in_progress")
        assert value is not None
        return value

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert in_progress() == 1
        await hello(scope, receive, send)

    await ask(app, edge=Edge(app, settings(), metrics))
    await ask(app, edge=Edge(raising(lambda: RuntimeError("x")), settings(), metrics))
    assert in_progress() == 0


# --- whose request it is


async def address(
    peer: str | None,
    *forwarded: str,
    trusted: tuple[str, ...] = ("10.0.0.0/8", "fd00::/8"),
    name: str = "x-forwarded-for",
) -> str | None:
    headers = [(name.encode(), value.encode("latin-1")) for value in forwarded]
    networks = tuple(ipaddress.ip_network(network) for network in trusted)
    client = None if peer is None else (peer, 40000)
    _, scope = await ask(hello, headers=headers, client=client, trusted_proxies=networks)
    exchange: Exchange = exchange_of(scope)
    return exchange.address


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        # Anybody can write the header: from a peer that is no proxy of ours it counts for nothing.
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("192.0.2.1", "10.0.0.1", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        # The client of the first proxy wrote what stands further left.
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "10.9.9.9, 203.0.113.9, 10.0.0.3, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", " 203.0.113.9 ,, ", "203.0.113.9"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("fd00::1", "2001:db8::7, fd00::2", "2001:db8::7"),
        # What is no address is not taken for one; the last that is known is.
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "_hidden, unknown", "10.0.0.1"),
        # Azure's gateways, HAProxy's `%[src_port]` and IIS append the port.
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1:1, 203.0.113.9:65535, 10.0.0.2:443", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1, [fd00::2]:8443", "2001:db8::1"),
        ("10.0.0.1", "[::ffff:203.0.113.9]:80", "203.0.113.9"),
        ("10.0.0.1", "[203.0.113.9]:80", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9:", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:port", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:443:443", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:4711111", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1]:443", "10.0.0.1"),
        ("10.0.0.1", "[]:443", "10.0.0.1"),
        ("10.0.0.1", f"{CANARY}", "10.0.0.1"),
        # Nor does it open the way to what stands further left, which its sender may have made up.
        ("10.0.0.1", "198.51.100.1, 203.0.113.9:x", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "203.0.113.256", "10.0.0.1"),
        ("10.0.0.1", "é", "10.0.0.1"),
        ("10.0.0.1", "x" * 9000, "10.0.0.1"),
    ],
)
async def test_the_address_is_the_nearest_that_is_no_proxy_of_ours(peer: str, forwarded: str, expected: str) -> None:
    assert await address(peer, *([forwarded] if forwarded else [])) == expected


async def test_without_trusted_proxies_the_header_counts_for_nothing() -> None:
    for peer in ("10.0.0.1", "127.0.0.1", "::1"):
        assert await address(peer, "203.0.113.9", trusted=()) == peer


async def test_other_headers_count_for_nothing() -> None:
    for name in ("forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "x-forwarded-host"):
        assert await address("10.0.0.1", "203.0.113.9", name=name) == "10.0.0.1"


async def test_a_server_that_does_not_know_the_peer_has_no_address() -> None:
    assert await address(None, "203.0.113.9") is None


async def test_a_header_in_several_lines_is_one_list() -> None:
    """RFC 9110, 5.3; HAProxy adds a line instead of lengthening the one that is there."""
    assert await address("10.0.0.1", "198.51.100.1", "203.0.113.9", "10.0.0.2") == "203.0.113.9"
    assert await address("10.0.0.1", "198.51.100.1, 203.0.113.9", "10.0.0.3, 10.0.0.2") == "203.0.113.9"


async def test_a_proxy_is_known_also_when_the_socket_speaks_ipv6() -> None:
    """A server that listens on `::` sees its IPv4 peers as mapped addresses."""
    assert await address("::ffff:10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert await address("10.0.0.1", "203.0.113.9, ::ffff:10.0.0.2") == "203.0.113.9"


async def test_the_zone_of_an_address_is_no_place_for_words() -> None:
    """`ipaddress` takes anything after the percent sign; the audit log has 64 characters for an address."""
    for zone in (CANARY, "x" * 200):
        found = await address("10.0.0.1", f"fe80::1%{zone}")
        assert found in ("fe80::1", "10.0.0.1")


@example(header="fe80::1%eth0")
@example(header="203.0.113.9%1")
@example(header="[fe80::1%eth0]:443")
@given(header=st.text(st.characters(max_codepoint=0xFF), max_size=60) | st.text("0123456789abcdef.:,% ", max_size=40))
async def test_whatever_a_proxy_hands_on_the_address_is_one(header: str) -> None:
    found = await address("10.0.0.1", header)
    assert found is not None
    ipaddress.ip_address(found)
    assert len(found) <= 45, "the longest that an address can be"
