"""Both kinds of client against servers that fail and servers that attack."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import traceback
from time import monotonic
from typing import Any, NoReturn

import pytest

from keyman.client import (
    BadAnswer,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerFailed,
    Unavailable,
    Unreachable,
)
from keyman.client.exchange import MAX_ANSWER, MAX_TEXT
from keyman.retry import ATTEMPTS
from tests.client.asking import TOKEN, VALUE, Kind, given, keyman, problem, resolver
from tests.support.http import HANG_UP, RESET, SILENCE, Reply, answer, faulty_server, free_port
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

SEALED = problem(503, "vault-unavailable", "Vault is sealed.")


# --- tried again


@pytest.mark.parametrize("fault", [RESET, HANG_UP, SEALED, problem(429, "rate-limited"), Reply(502, b"<html>")])
async def test_what_passes_is_tried_again(kind: Kind, fault: Reply) -> None:
    async with faulty_server([fault, fault, given()]) as server, resolver(kind, server.address) as client:
        assert (await client.resolve()).reveal() == VALUE
    assert len(server.requests) == 3
    assert len({request.body for request in server.requests}) == 1


async def test_an_outage_is_raised_after_a_few_attempts(kind: Kind) -> None:
    async with faulty_server([SEALED]) as server, resolver(kind, server.address) as client:
        with pytest.raises(Unavailable, match="Vault is sealed") as caught:
            await client.resolve()
    assert len(server.requests) == ATTEMPTS
    assert (caught.value.slug, caught.value.status, caught.value.request_id) == ("vault-unavailable", 503, "9f3c")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 500, 501])
async def test_what_does_not_pass_is_not_tried_again(kind: Kind, status: int) -> None:
    async with (
        faulty_server([problem(status, "whatever"), given()]) as server,
        resolver(kind, server.address) as client,
    ):
        with pytest.raises(ClientError):
            await client.resolve()
    assert len(server.requests) == 1


async def test_retry_after_is_waited_for(kind: Kind) -> None:
    slow_down = problem(429, "rate-limited", **{"Retry-After": "1"})
    async with faulty_server([slow_down, given()]) as server, resolver(kind, server.address) as client:
        await client.resolve()
        first, second = server.arrivals
        assert second - first >= 1


async def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(kind: Kind) -> None:
    slow_down = problem(429, "rate-limited", **{"Retry-After": "60"})
    async with faulty_server([slow_down]) as server, resolver(kind, server.address, timeout=PATIENCE) as client:
        with pytest.raises(RateLimited) as caught:
            await client.resolve()
    assert (caught.value.retry_after, len(server.requests)) == (60, 1)


async def test_where_nobody_listens_it_is_unreachable(kind: Kind) -> None:
    async with resolver(kind, f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(Unreachable, match="no connection"):
            await client.resolve()


async def test_a_name_that_there_is_not_is_unreachable(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **named: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    async with resolver(kind, "https://keyman.invalid") as client:
        with pytest.raises(Unreachable, match="no connection"):
            await client.resolve()


async def test_what_was_not_sent_is_sent_again_and_what_may_have_been_is_not(kind: Kind) -> None:
    """A deletion, and a change that is bound to an ETag, would be refused the second time."""
    key = {
        "id": 1,
        "service": "OPENAI",
        "name": None,
        "last_4_chars": "...",
        "status": "active",
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
    }
    read = Reply(200, json.dumps(key).encode(), {"ETag": '"abc"'})
    async with faulty_server([read, HANG_UP]) as server, keyman(kind, server.address) as client:
        held = await client("get", 1)
        for method, arguments in (("delete", (1,)), ("delete", (held,)), ("replace", (held, VALUE))):
            before = len(server.requests)
            with pytest.raises(Unreachable):
                await client(method, *arguments)
            assert len(server.requests) - before == 1
        assert [request.headers.get("if-match") for request in server.requests] == [None, None, '"abc"', '"abc"']
        before = len(server.requests)
        with pytest.raises(Unreachable):
            await client("replace", 1, VALUE)
        assert len(server.requests) - before == ATTEMPTS
    async with faulty_server([read, SEALED, read]) as server, keyman(kind, server.address) as client:
        # Vault was not there: certainly nothing was stored.
        assert await client("replace", await client("get", 1), VALUE) == held


async def test_connections_are_used_again(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address) as client:
        for _ in range(3):
            await client.resolve()
    assert (len(server.requests), server.connections) == (3, 1)


# --- deadlines


@pytest.mark.parametrize(
    "slow",
    [
        SILENCE,
        Reply(delay=PATIENCE),
        Reply(raw=b"HTTP/1.1 200 OK\r\nX-Drip: ", then="drip"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", then="drip"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", then="stall"),
    ],
    ids=["silence", "late", "headers drip", "body drips", "body stalls"],
)
async def test_no_server_holds_a_caller_past_the_deadline(kind: Kind, slow: Reply) -> None:
    async with faulty_server([slow]) as server, resolver(kind, server.address, timeout=0.2) as client:
        began = monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.resolve()
        # A drip of 0.02 s and a body of 100,000 bytes would take half an hour.
        assert 0.2 <= monotonic() - began < PATIENCE / 2
        assert len(server.requests) <= 1


async def test_a_caller_who_gives_up_leaves_a_client_that_works() -> None:
    async with faulty_server([SILENCE, given()]) as server, resolver("async", server.address) as client:
        asking = asyncio.ensure_future(client.resolve())
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await client.resolve()).reveal() == VALUE


# --- servers that mean harm


GARBAGE = {
    "empty": Reply(200, b""),
    "not JSON": Reply(200, b"<html>" + VALUE.encode()),
    "not UTF-8": Reply(200, b'{"api_key": "\xff\xfe"}'),
    "another shape": answer([VALUE]),
    "another type": given(key_id=VALUE),
    "no value": given(api_key=None),
    "deep": Reply(200, b"[" * 100_000),
    "deep below a name": Reply(200, b'{"x":' * 100_000),
    "no HTTP after the head": Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", then="close"),
    "another user's key": given(user_id=8),
    "another service's key": given(service="ANTHROPIC"),
    "a line break in the value": given(api_key=f"{VALUE}\r\nX-Evil: 1"),
    "an empty value": given(api_key=""),
    "an endless value": given(api_key="k" * 10_000),
    "a time without a zone": given(expires_at="2030-01-01T00:00:00"),
    "nothing": Reply(204, b""),
}


@pytest.mark.parametrize("harm", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_not_an_answer_of_keyman_is_none(kind: Kind, harm: Reply) -> None:
    async with faulty_server([harm]) as server, resolver(kind, server.address) as client:
        with pytest.raises((BadAnswer, Unreachable)) as caught:
            await client.resolve()
    assert silent(caught.value)


async def test_an_answer_is_read_to_a_bound_and_no_further(kind: Kind) -> None:
    large = Reply(200, b" " * (MAX_ANSWER + 1))
    endless = Reply(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n%b\r\n" % (b" " * 65536) * 160
    )
    for reply in (large, endless, Reply(404, large.body)):
        async with faulty_server([reply]) as server, resolver(kind, server.address, timeout=PATIENCE) as client:
            with pytest.raises(BadAnswer, match="too large"):
                await client.resolve()
        assert len(server.requests) == 1


async def test_headers_are_bounded_too(kind: Kind) -> None:
    head = Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X-Header: value\r\n" * 100_000)
    async with faulty_server([head]) as server, resolver(kind, server.address, timeout=PATIENCE) as client:
        with pytest.raises(Unreachable):
            await client.resolve()


async def test_nothing_is_unpacked(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address) as client:
        await client.resolve()
    (request,) = server.requests
    assert request.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_token_follows_no_redirect(kind: Kind, status: int) -> None:
    async with faulty_server([given()]) as thief:
        away = Reply(status, b"", {"Location": f"{thief.address}/v1/resolve"})
        async with faulty_server([away]) as server, resolver(kind, server.address) as client:
            with pytest.raises(BadAnswer, match="redirect"):
                await client.resolve()
    assert thief.requests == []
    assert len(server.requests) == 1


async def test_a_cookie_is_not_sent_back(kind: Kind) -> None:
    sticky = Reply(200, given().body, {"Set-Cookie": "id=1; Path=/"})
    async with faulty_server([sticky]) as server, resolver(kind, server.address) as client:
        for _ in range(2):
            await client.resolve()
    assert all("cookie" not in request.headers for request in server.requests)


async def test_a_proxy_in_the_environment_gets_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    async with faulty_server([given(api_key="sk-of-the-proxy")]) as proxy, faulty_server([given()]) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address)
        async with resolver(kind, server.address) as client:
            assert (await client.resolve()).reveal() == VALUE
    assert proxy.requests == []


async def test_a_link_to_elsewhere_is_followed_at_home(kind: Kind) -> None:
    """A page of a listing names the next one by an address; the token stays where it belongs."""
    async with faulty_server([answer([])]) as thief:
        away = Reply(200, b"[]", {"Link": f'<{thief.address}/api/keys?cursor=AAAAAAAAAAo>; rel="next"'})
        async with faulty_server([away, answer([])]) as server, keyman(kind, server.address) as client:
            assert await client.all("keys") == []
    assert thief.requests == []
    assert [request.target for request in server.requests] == [
        "/api/keys?limit=200",
        "/api/keys?limit=200&cursor=AAAAAAAAAAo",
    ]


@pytest.mark.parametrize("link", ['</api/keys?cursor=AAAAAAAAAAo>; rel="next"', '</api/keys>; rel="next"'])
async def test_a_listing_that_would_never_end_ends(kind: Kind, link: str) -> None:
    async with faulty_server([Reply(200, b"[]", {"Link": link})]) as server, keyman(kind, server.address) as client:
        with pytest.raises(BadAnswer):
            await client.all("keys")
    assert len(server.requests) <= 2


@pytest.mark.parametrize("wrong", ["1/../../auth/me", "1?x=1", 1.0, None])
async def test_an_id_leads_to_no_other_path(kind: Kind, wrong: object) -> None:
    async with faulty_server([answer({})]) as server, keyman(kind, server.address) as client:
        for method in ("get", "delete"):
            with pytest.raises(TypeError):
                await client(method, wrong)
    assert server.requests == []


# --- what errors tell


async def test_a_servers_words_come_without_control_characters_and_to_a_length(kind: Kind) -> None:
    words = "\x1b[31mred\r\n2026-01-01 INFO forged\u202e" + "x" * 10_000
    body = {"type": "/problems/not-found", "detail": words, "errors": [{"field": words, "message": words}]}
    async with faulty_server([answer(body, 404)]) as server, resolver(kind, server.address) as client:
        with pytest.raises(NotFound) as caught:
            await client.resolve()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < MAX_TEXT + 100


async def test_fields_at_fault_are_named(kind: Kind) -> None:
    body = {"type": "/problems/invalid-request", "errors": [{"field": "user_id", "message": "must be a row"}]}
    async with faulty_server([answer(body, 400)]) as server, resolver(kind, server.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.resolve()
    assert caught.value.errors == (("user_id", "must be a row"),)
    assert "user_id: must be a row" in str(caught.value)


async def test_a_fault_that_is_in_no_field_is_in_the_message_too(kind: Kind) -> None:
    fault = {"field": "", "message": "The body is not JSON."}
    body = {"type": "/problems/invalid-request", "detail": "One field is invalid.", "errors": [fault]}
    async with faulty_server([answer(body, 400)]) as server, resolver(kind, server.address) as client:
        with pytest.raises(InvalidRequest, match=r"invalid\. The body is not JSON\. \(400"):
            await client.resolve()


async def test_a_problem_of_a_strange_shape_is_recognised_by_its_status(kind: Kind) -> None:
    strange: list[Any] = [{"type": 5}, {"detail": ["x"]}, [], None, {"errors": "many"}, {"type": "/problems/../../x"}]
    replies = [*(answer(body, 404) for body in strange), Reply(404, b"\xff")]
    async with faulty_server(replies) as server, resolver(kind, server.address) as client:
        for _ in replies:
            with pytest.raises(NotFound) as caught:
                await client.resolve()
            assert caught.value.slug is None


async def test_a_status_without_a_meaning_is_a_failure_of_the_server(kind: Kind) -> None:
    async with faulty_server([Reply(418, b"")]) as server, resolver(kind, server.address) as client:
        with pytest.raises(ServerFailed):
            await client.resolve()


async def test_what_was_sent_is_in_no_error(kind: Kind) -> None:
    """A server, or a proxy that reports on what it got, says the secrets back."""

    def mirror(request: Any) -> Reply:
        said = f"{request.headers['authorization']} {request.body.decode()}"
        fields = [{"field": TOKEN, "message": said}]
        body = {"type": f"/problems/{TOKEN}", "title": said, "detail": said, "request_id": TOKEN, "errors": fields}
        return answer(body, 400)

    async with faulty_server(mirror) as server, keyman(kind, server.address) as client:
        for method, arguments in (("add", ("OPENAI", VALUE)), ("replace", (1, VALUE))):
            with pytest.raises(InvalidRequest) as caught:
                await client(method, *arguments)
            assert "***" in str(caught.value)
            assert silent(caught.value)


FAULTS = {
    "refused": problem(404, "not-found"),
    "reset": RESET,
    "closed": HANG_UP,
    "late": SILENCE,
    "not HTTP": Reply(raw=f"{VALUE}\r\n\r\n".encode(), then="close"),
    "not JSON": Reply(200, VALUE.encode()),
    "too large": Reply(200, VALUE.encode() * 60_000),
    "another's": given(user_id=8),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_no_error_holds_a_token_or_a_value(kind: Kind, fault: Reply) -> None:
    async with faulty_server([fault]) as server, resolver(kind, server.address, timeout=0.6) as client:
        with pytest.raises(ClientError) as caught:
            await client.resolve()
        assert silent(caught.value)
        assert TOKEN not in repr(client.client)


def silent(fault: ClientError) -> bool:
    """Neither it, nor what led to it, nor what a reporter of errors shows of the frames: ours, for a test's hold it."""
    assert fault.__cause__ is None
    assert fault.__context__ is None
    shown = [str(fault), repr(fault), repr(fault.__dict__)]
    for frame, _ in traceback.walk_tb(fault.__traceback__):
        if "/keyman/client/" in frame.f_code.co_filename:
            shown += [repr(value) for value in frame.f_locals.values()]
    assert not [text for text in shown if TOKEN in text or VALUE in text]
    return True


async def test_no_log_holds_a_token_or_a_value(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    # Each by its name: a server that logs in this process would have kept the lines of both away.
    with caplog.at_level(logging.DEBUG, "httpx"), caplog.at_level(logging.DEBUG, "httpcore"):
        for reply in (given(), problem(404, "not-found")):
            async with faulty_server([reply]) as server, resolver(kind, server.address) as client:
                with contextlib.suppress(NotFound):
                    await client.resolve()
    assert caplog.records
    assert TOKEN not in caplog.text
    assert VALUE not in caplog.text
