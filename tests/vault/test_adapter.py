"""The adapter: requests, retries, bounds, and errors that show nothing of a request."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from hvac.api.auth_methods.token import Token
from hvac.api.secrets_engines.transit import Transit

from keyman.certificates import OTHER_HOST, UNKNOWN_CA
from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason
from keyman.metrics import Metrics
from keyman.retry import ATTEMPTS
from keyman.vault.adapter import (
    MAX_CONNECTIONS,
    AsyncAdapter,
    VaultFault,
    none_if_missing,
)
from tests.support.exceptions import everything_in
from tests.support.http import HANG_UP, RESET, SILENCE, FaultyServer, Reply, Script, answer, faulty_server
from tests.support.vault import RunningVault
from tests.vault.bench import Bench, bench_at, tls_vault

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3a91"
TOKEN = "s.canary-token-5521"
SENT = "canary-sent-0c1d"
FINE = answer({"data": {"fine": True}})


@asynccontextmanager
async def adapter_to(address: str, **settings: Any) -> AsyncIterator[AsyncAdapter]:
    adapter = AsyncAdapter(VaultSettings(address=address, **settings), Metrics())
    adapter.token = TOKEN
    try:
        yield adapter
    finally:
        await adapter.close()


@asynccontextmanager
async def faked(script: Script, **settings: Any) -> AsyncIterator[tuple[FaultyServer, AsyncAdapter]]:
    async with faulty_server(script) as server, adapter_to(server.address, **settings) as adapter:
        yield server, adapter


async def fault_of(adapter: AsyncAdapter, path: str = "/v1/transit/encrypt/keyman") -> VaultFault:
    """How a POST fails. A minute without an answer is a hang."""
    async with asyncio.timeout(60):
        with pytest.raises(VaultFault) as caught:
            await adapter.post(path, json={"plaintext": SENT})
    return caught.value


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts: how many there are does not depend on them."""
    monkeypatch.setattr("keyman.retry.FIRST_PAUSE", 0.001)


# --- What goes out


async def test_hvacs_methods_are_awaitable_as_they_stand(bench: Bench) -> None:
    key = (await bench.transit.read_key(bench.settings.key, mount_point=bench.settings.mount))["data"]
    assert (key["type"], key["derived"]) == ("aes256-gcm96", True)
    assert (await Token(bench.admin).lookup_self())["data"]["policies"] == ["root"]


async def test_an_answer_without_content_is_none(bench: Bench) -> None:
    path, nothing = "/v1/sys/policies/acl/nothing", 'path "nothing" { capabilities = ["deny"] }'
    assert await bench.admin.put(path, json={"policy": nothing}) is None
    assert await bench.admin.delete(path) is None


async def test_a_request_carries_token_namespace_and_the_mark_against_forgery() -> None:
    async with faked([FINE], namespace="team/blue") as (server, adapter):
        await adapter.get("/v1/sys/x", params={"list": "true"})
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("GET", "/v1/sys/x?list=true", b"")
    assert request.headers["x-vault-token"] == TOKEN
    assert request.headers["x-vault-namespace"] == "team/blue"
    assert request.headers["x-vault-request"] == "true"


async def test_without_token_and_namespace_neither_header_is_sent() -> None:
    async with faked([FINE]) as (server, adapter):
        adapter.token = None
        await adapter.get("/v1/sys/x")
    assert not {"x-vault-token", "x-vault-namespace"} & server.requests[0].headers.keys()


async def test_everything_happens_inside_the_namespace(embedded_bench: Bench) -> None:
    name = f"team-{token_hex(4)}"
    await embedded_bench.admin.post(f"/v1/sys/namespaces/{name}", json={})
    async with bench_at(embedded_bench.vault, namespace=name) as inside:
        await inside.guard().verify()
        mounts = (await embedded_bench.admin.get("/v1/sys/mounts"))["data"]
        assert f"{inside.settings.mount}/" not in mounts
        outside = inside.with_settings(namespace=None).client()
        outside.adapter.token = embedded_bench.admin.token
        key = Transit(outside.adapter).read_key(inside.settings.key, mount_point=inside.settings.mount)
        assert await none_if_missing(key) is None
        outside.adapter.token = None
    await embedded_bench.admin.delete(f"/v1/sys/namespaces/{name}")


async def test_no_token_is_found_in_the_environment_or_the_home(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = bench.vault.root_token
    (tmp_path / ".vault-token").write_text(root)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("VAULT_TOKEN", "BAO_TOKEN", "KEYMAN_VAULT_TOKEN"):
        monkeypatch.setenv(name, root)
    seen, proxy = await bench.behind_a_proxy()
    adapter = seen.client().adapter
    with pytest.raises(VaultFault) as caught:
        await Token(adapter).lookup_self()
    assert (caught.value.reason, caught.value.status) == (VaultReason.FORBIDDEN, 403)
    assert [call.token for call in proxy.calls] == [None]


async def test_no_proxy_is_found_in_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with faulty_server([FINE]) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with adapter_to(bench.vault.address) as adapter:
            assert not (await adapter.get("/v1/sys/seal-status"))["sealed"]
    assert proxy.requests == []


async def test_a_cookie_is_not_kept() -> None:
    async with faked([Reply(headers={"Set-Cookie": "route=1; Path=/"})]) as (server, adapter):
        await adapter.get("/v1/sys/x")
        await adapter.get("/v1/sys/x")
    assert len(server.requests) == 2
    assert "cookie" not in server.requests[1].headers


async def test_an_answer_is_understood_where_a_proxy_compresses_what_it_may() -> None:
    def compressing(request: Any) -> Reply:
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return FINE
        return Reply(200, gzip.compress(FINE.body), {"Content-Encoding": "gzip"})

    async with faked(compressing) as (_, adapter):
        assert await adapter.get("/v1/sys/x") == {"data": {"fine": True}}


# --- Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_neither_token_nor_body_along(status: int) -> None:
    async with faulty_server([FINE]) as elsewhere:
        location = {"Location": f"{elsewhere.address}/v1/transit/encrypt/keyman"}
        async with faked([Reply(status, b"", location)]) as (server, adapter):
            fault = await fault_of(adapter)
        assert (fault.reason, fault.status) == (VaultReason.UNREACHABLE, status)
        assert len(server.requests) == 1
    assert elsewhere.connections == 0


# --- What is tried again


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [412, 429, 502, 503, 504])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    async with faked([Reply(status), Reply(status), FINE]) as (server, adapter):
        assert await adapter.post("/v1/x", json={"a": "b"}) == {"data": {"fine": True}}
    assert len(server.requests) == 3
    assert {request.body for request in server.requests} == {b'{"a":"b"}'}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [201, 202, 206, 400, 401, 403, 404, 405, 409, 413, 500, 501])
async def test_what_stays_is_asked_once(status: int) -> None:
    async with faked([Reply(status), FINE]) as (server, adapter):
        fault = await fault_of(adapter)
    assert fault.status == status
    assert fault.reason == (VaultReason.FORBIDDEN if status == 403 else VaultReason.ERROR)
    assert len(server.requests) == 1


BROKEN = {
    "closed without an answer": HANG_UP,
    "reset": RESET,
    "closed within the head": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le", then="close"),
    "closed within the body": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", then="close"),
    "not HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n\r\n", then="close"),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_connection_is_tried_again(broken: Reply) -> None:
    async with faked([broken, FINE]) as (server, adapter):
        assert await adapter.post("/v1/x", json={}) == {"data": {"fine": True}}
    assert len(server.requests) == 2


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (HANG_UP, VaultReason.UNREACHABLE),
        (Reply(412), VaultReason.ERROR),
        (Reply(429), VaultReason.QUOTA),
        (Reply(502), VaultReason.UNREACHABLE),
        (Reply(503), VaultReason.UNREACHABLE),
        (Reply(503, b'{"errors":["Vault is sealed"]}'), VaultReason.SEALED),
        (Reply(504), VaultReason.UNREACHABLE),
    ],
)
async def test_trying_again_ends_with_the_last_reason(reply: Reply, reason: VaultReason) -> None:
    async with faked([reply]) as (server, adapter):
        assert (await fault_of(adapter)).reason == reason
    assert len(server.requests) == ATTEMPTS


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("method", ["GET", "LIST", "POST", "PUT", "DELETE"])
async def test_a_broken_connection_costs_as_many_attempts_as_are_allowed(method: str) -> None:
    async with faked([HANG_UP]) as (server, adapter):
        with pytest.raises(VaultFault):
            await adapter.request(method, "/v1/x")
    assert len(server.requests) == ATTEMPTS


async def test_an_address_where_nobody_listens_is_unreachable() -> None:
    async with faulty_server([FINE]) as server:
        address = server.address
    async with adapter_to(address) as adapter:
        fault = await fault_of(adapter)
    assert (fault.reason, fault.status) == (VaultReason.UNREACHABLE, None)


@pytest.mark.usefixtures("hasty")
async def test_attempts_that_failed_are_counted() -> None:
    metrics = Metrics()
    async with faulty_server([HANG_UP, Reply(503), FINE]) as server:
        adapter = AsyncAdapter(VaultSettings(address=server.address), metrics)
        await adapter.post("/v1/x", json={})
        await adapter.close()
    assert metrics.registry.get_sample_value("keyman_vault_retries_total") == 2
    assert metrics.registry.get_sample_value("keyman_vault_requests_in_flight") == 0


# --- Retry-After


async def test_retry_after_is_waited_for() -> None:
    async with faked([Reply(429, headers={"Retry-After": "1"}), FINE]) as (server, adapter):
        await adapter.get("/v1/x")
    first, second = server.arrivals
    assert second - first > 0.9  # sooner would be too soon; how much later does not matter


async def test_a_quota_of_vault_is_recognised_among_other_failures(bench: Bench) -> None:
    settings = bench.settings
    quota, options = f"/v1/sys/quotas/rate-limit/q-{token_hex(4)}", "/v1/sys/quotas/config"
    # Without this OpenBao says 429 and not until when.
    await bench.admin.post(options, json={"enable_rate_limit_response_headers": True})
    await bench.admin.post(quota, json={"path": f"{settings.mount}/", "rate": 1, "interval": "30s"})
    try:
        await bench.transit.read_key(settings.key, mount_point=settings.mount)
        async with adapter_to(settings.address, timeout=2) as adapter:
            adapter.token = bench.admin.token
            with pytest.raises(VaultFault) as caught:
                await Transit(adapter).read_key(settings.key, mount_point=settings.mount)
    finally:
        await bench.admin.delete(quota)
        await bench.admin.post(options, json={"enable_rate_limit_response_headers": False})
    assert (caught.value.reason, caught.value.status) == (VaultReason.QUOTA, 429)
    assert caught.value.retry_after


async def test_nobody_waits_past_the_deadline_for_a_later_attempt() -> None:
    async with faked([Reply(429, headers={"Retry-After": "30"}), FINE], timeout=5) as (server, adapter):
        fault = await fault_of(adapter)
    assert (fault.reason, fault.retry_after) == (VaultReason.QUOTA, 30)
    assert len(server.requests) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("header", ["soon", "-1", "1.5", "", "9" * 30, "١", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_retry_after_that_is_no_small_number_changes_nothing(header: str) -> None:
    raw = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: " + header.encode() + b"\r\n\r\n"
    async with faked([Reply(raw=raw), FINE]) as (_, adapter):
        assert await adapter.get("/v1/x") == {"data": {"fine": True}}


# --- One deadline for everything


@pytest.mark.parametrize(
    "reply",
    [
        SILENCE,
        Reply(raw=b"HTTP/1.1 200 OK\r\n", then="stall"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n{", then="drip"),
    ],
    ids=["no answer", "half a head", "a body that never ends"],
)
async def test_an_answer_that_does_not_come_is_a_timeout(reply: Reply) -> None:
    async with faked([reply], timeout=0.3) as (server, adapter):
        fault = await fault_of(adapter)
    assert (fault.reason, fault.status) == (VaultReason.TIMEOUT, None)
    assert len(server.requests) == 1


async def test_the_deadline_bounds_all_attempts_together() -> None:
    slow = Reply(503, delay=0.4)
    async with faked([slow], timeout=1.0) as (server, adapter):
        fault = await fault_of(adapter)
    assert fault.reason in (VaultReason.UNREACHABLE, VaultReason.TIMEOUT)
    assert len(server.requests) <= 3  # four take 1.6 s


async def test_a_cancelled_call_stays_cancelled() -> None:
    async with faked([SILENCE]) as (server, adapter):
        call = asyncio.create_task(adapter.get("/v1/x"))
        async with asyncio.timeout(30):
            while not server.requests:
                await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


# --- Nothing leaks


def _canary_replies() -> dict[str, Reply]:
    body = f'{{"errors": ["{CANARY}"], "data": {{"batch_results": [{{"plaintext": "{CANARY}"}}]}}}}'.encode()
    headers = {"X-Echo": CANARY, "Location": f"http://127.0.0.1:9/{CANARY}", "Content-Type": f"text/{CANARY}"}
    head = b"HTTP/1.1 200 OK\r\n"
    return {
        **{str(status): Reply(status, body, headers) for status in (307, 400, 403, 404, 429, 500, 502, 503)},
        "not JSON": Reply(200, f"<p>{CANARY}".encode(), headers),
        "not UTF-8": Reply(200, b'"\xff' + CANARY.encode() + b'"', headers),
        "status line": Reply(raw=f"HTTP/1.1 abc {CANARY}\r\n\r\n".encode(), then="close"),
        "reason phrase": Reply(raw=f"HTTP/1.1 500 {CANARY}\r\nContent-Length: 0\r\n\r\n".encode()),
        "not HTTP": Reply(raw=f"{CANARY}\r\n\r\n".encode(), then="close"),
        "header": Reply(raw=head + f"{CANARY}\x00: {CANARY}\r\n\r\n".encode(), then="close"),
        "length": Reply(raw=head + f"Content-Length: {CANARY}\r\n\r\n".encode(), then="close"),
        "chunk": Reply(raw=head + f"Transfer-Encoding: chunked\r\n\r\n{CANARY}\r\n".encode(), then="close"),
        "truncated": Reply(raw=head + f'Content-Length: 99\r\n\r\n{{"{CANARY}'.encode(), then="close"),
        "gzip": Reply(raw=head + f"Content-Encoding: gzip\r\nContent-Length: 13\r\n\r\n{CANARY}".encode()),
        "stalled": Reply(raw=head + f'Content-Length: 99\r\n\r\n{{"{CANARY}'.encode(), then="stall"),
    }


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("reply", _canary_replies().values(), ids=_canary_replies().keys())
async def test_a_fault_holds_nothing_that_was_sent_or_received(reply: Reply) -> None:
    async with faked([reply], timeout=0.5) as (_, adapter):
        fault = await fault_of(adapter)
    told = everything_in(fault)
    for secret in (CANARY, TOKEN, SENT):
        assert secret not in told


async def test_a_fault_of_an_unreachable_vault_holds_no_token() -> None:
    async with faulty_server([FINE]) as server:
        address = server.address
    async with adapter_to(address, timeout=0.5) as adapter:
        told = everything_in(await fault_of(adapter))
    assert TOKEN not in told
    assert SENT not in told


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"data":', b"\xff\xfe", b'{"a":1}{"b":2}'])
async def test_a_200_that_is_not_json_is_an_error_and_not_asked_again(body: bytes) -> None:
    async with faked([Reply(200, body), FINE]) as (server, adapter):
        fault = await fault_of(adapter)
    assert (fault.reason, fault.status) == (VaultReason.ERROR, 200)
    assert len(server.requests) == 1


# --- Missing


async def test_missing_is_none_and_nothing_else_is(bench: Bench) -> None:
    assert await none_if_missing(bench.transit.read_key("nobody", mount_point=bench.settings.mount)) is None
    found = await none_if_missing(Token(bench.admin).lookup_self())
    assert found is not None
    assert found["data"]
    async with adapter_to(bench.vault.address) as stranger:
        with pytest.raises(VaultFault):
            await none_if_missing(Token(stranger).lookup_self())


# --- TLS


@pytest.mark.usefixtures("hasty")
async def test_tls_takes_the_private_authority_and_no_other(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO
) -> None:
    ours = await embedded_bench.authority(tmp_path)
    theirs = await embedded_bench.authority(tmp_path)
    context = await ours.server_context(common_name="localhost", ip_sans="127.0.0.1")
    async with faulty_server([FINE], context) as server:
        async with adapter_to(server.address, ca_certificate=ours.certificate) as adapter:
            assert await adapter.get("/v1/x") == {"data": {"fine": True}}
        for certificate in (theirs.certificate, None):
            async with adapter_to(server.address, ca_certificate=certificate) as adapter:
                fault = await fault_of(adapter)
            assert (fault.reason, fault.status) == (VaultReason.UNTRUSTED, None)
            assert "The certificate: " in fault.explained()
    assert len(server.requests) == 1
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    # One each: what is wrong with a certificate does not pass by asking again.
    assert [line["event"] for line in lines] == ["vault's certificate is refused"] * 2
    assert {line["why"] for line in lines} == {UNKNOWN_CA.format(cacert="KEYMAN_VAULT_CACERT")}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tls_takes_the_name_that_was_asked_and_no_other(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO, host: str
) -> None:
    authority = await embedded_bench.authority(tmp_path)
    context = await authority.server_context(common_name="vault.example.com")
    trusting = {"ca_certificate": authority.certificate}
    async with (
        faulty_server([FINE], context) as server,
        adapter_to(server.address.replace("127.0.0.1", host), **trusting) as adapter,
    ):
        assert (await fault_of(adapter)).reason == VaultReason.UNTRUSTED
    assert server.requests == []
    assert json.loads(logged.getvalue())["why"] == OTHER_HOST.format(address="KEYMAN_VAULT_ADDR")


@pytest.mark.usefixtures("hasty")
async def test_tls_takes_no_certificate_that_has_expired(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO
) -> None:
    authority = await embedded_bench.authority(tmp_path)
    past = (datetime.now(UTC) - timedelta(seconds=10)).strftime("%Y-%m-%dT%H:%M:%SZ")
    context = await authority.server_context(common_name="localhost", ip_sans="127.0.0.1", not_after=past)
    trusting = {"ca_certificate": authority.certificate}
    async with faulty_server([FINE], context) as server, adapter_to(server.address, **trusting) as adapter:
        assert (await fault_of(adapter)).reason == VaultReason.UNTRUSTED
    assert server.requests == []
    assert json.loads(logged.getvalue())["why"] == "it has expired"


async def test_tls_where_it_is_not_asked_is_unreachable_and_no_refusal_of_vault(
    embedded_bench: Bench, tmp_path: Path
) -> None:
    """Its answer is a 400, which from Vault itself would mean a refused login or a used wrapping token."""
    authority = await embedded_bench.authority(tmp_path)
    async with (
        tls_vault(authority, tmp_path) as vault,
        adapter_to(vault.address.replace("https:", "http:")) as adapter,
    ):
        fault = await fault_of(adapter)
    assert (fault.reason, fault.status) == (VaultReason.UNREACHABLE, None)


@pytest.mark.usefixtures("hasty")
async def test_a_server_without_tls_is_unreachable_where_tls_is_asked(vault: RunningVault) -> None:
    async with adapter_to(vault.address.replace("http:", "https:")) as adapter:
        assert (await fault_of(adapter)).reason == VaultReason.UNREACHABLE


# --- Connections


async def test_one_after_another_share_a_connection() -> None:
    async with faked([FINE, Reply(404), Reply(204), Reply(500), FINE]) as (server, adapter):
        for _ in range(20):
            await asyncio.gather(adapter.get("/v1/x"), return_exceptions=True)
    assert (len(server.requests), server.connections) == (20, 1)


async def test_many_at_once_share_a_bounded_number_of_connections() -> None:
    async with faked([Reply(delay=0.02)], timeout=30) as (server, adapter):
        await asyncio.gather(*(adapter.get("/v1/x") for _ in range(200)))
        assert len(server.requests) == 200
        assert server.connections == MAX_CONNECTIONS
        await asyncio.gather(*(adapter.get("/v1/x") for _ in range(200)))
    assert server.connections == MAX_CONNECTIONS


async def test_closing_before_the_first_request_is_nothing() -> None:
    adapter = AsyncAdapter(VaultSettings(address="http://127.0.0.1:9"), Metrics())
    await adapter.close()


async def test_settings_of_one_adapter_are_not_those_of_another(vault: RunningVault) -> None:
    settings = VaultSettings(address=vault.address)
    first, second = AsyncAdapter(settings, Metrics()), AsyncAdapter(replace(settings, timeout=9.0), Metrics())
    first.token = vault.root_token
    assert second.token is None
    assert (first.timeout, second.timeout) == (5.0, 9.0)
    assert (await Token(first).lookup_self())["data"]["id"] == vault.root_token
    with pytest.raises(VaultFault):
        await Token(second).lookup_self()
    await first.close()
    await second.close()
