"""Live checks: from the owner through both planes to the provider, and what use says of a key."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from io import StringIO
from secrets import token_hex
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import delete, select, update

from keyman.audit.tables import audit_log
from keyman.client import AsyncKeyman, RateLimited
from keyman.clock import now
from keyman.config.checks import CheckSettings
from keyman.doctor import checks as doctor
from keyman.errors import Conflict
from keyman.identity import applications, limits
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.passwords import Passwords
from keyman.identity.principals import Credentials, Principal
from keyman.identity.tables import throttle as throttle_table
from keyman.ids import KeyId
from keyman.keys.checks import Sent, store_check, store_use
from keyman.keys.finding import Found, by_id
from keyman.keys.tables import api_keys
from keyman.planes.gateway.checking import _url as address_of
from keyman.planes.gateway.services import forwarded
from keyman.planes.management.checks import Gateway
from keyman.providers.catalogue import Catalogue
from keyman.providers.verdicts import DETAILS, ENDPOINT, MOST, Judgement, Verdict
from keyman.secret import Secret
from keyman.storage.transactions import Unchecked
from keyman.values import ApplicationName
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import CHAT, VALUE, Scene
from tests.planes.gateway.talk import Answer, asked
from tests.planes.management.api.harness import ApiPlane, api_plane_at, problem
from tests.support.logs import capture_logs
from tests.support.needs import quick_on
from tests.support.planes import ORIGIN, Vault

pytestmark = pytest.mark.anyio

REFUSAL = b'{"error": {"message": "Incorrect API key provided: sk-secret-words", "code": "invalid_api_key"}}'
CANARY = "sk-secret-words"


def answer(status: int, body: bytes = b"{}", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(head).encode() + body


class Checking:
    """A scene with an application for live checks, whose management plane asks this gateway."""

    def __init__(self, scene: Scene, token: str) -> None:
        self.scene = scene
        self.token = token

    async def ask(self, key_id: int | None = None, token: str | None = None) -> Answer:
        body = json.dumps({"key_id": key_id or self.scene.key_id}).encode()
        headers = {"authorization": f"Bearer {token or self.token}", "content-type": "application/json"}
        return await asked(self.scene.app, "POST", "/v1/check", headers, body)

    async def shown(self) -> Any:
        return (await self.scene.owner.client.get(f"/api/keys/{self.scene.key_id}")).json()["check"]

    async def entries(self, action: str = "key.check") -> list[Any]:
        about = (audit_log.c.key_id == self.scene.key_id) & (audit_log.c.action == action)
        async with self.scene.pair.management.database.read() as connection:
            return list((await connection.execute(select(audit_log).where(about).order_by(audit_log.c.id))).all())

    async def caller(self) -> Principal:
        """The application for live checks, as the gateway knows it."""
        db = self.scene.pair.management.database
        return await ApplicationProof().verify(db, self.token, Credentials(self.token, None, "a-request", None))

    async def found(self) -> Found:
        async with self.scene.pair.management.database.read() as connection:
            row = await by_id(connection, KeyId(self.scene.key_id))
        assert row is not None
        return row

    async def forget_attempts(self) -> None:
        async with self.scene.pair.management.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(throttle_table))

    async def set(self, **values: Any) -> None:
        async with self.scene.pair.management.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == self.scene.key_id).values(values))


async def checking(scene: Scene) -> Checking:
    """Register the application for live checks."""
    name = ApplicationName(f"checks-{token_hex(4)}")
    registered = await applications.create(scene.pair.management.database, name, ())
    return Checking(scene, registered.token.reveal())


@pytest.fixture
async def check(gateway: Scene) -> Checking:
    return await checking(gateway)


async def test_a_check_reads_asks_once_and_stores_the_verdict(check: Checking) -> None:
    scene = check.scene
    scene.provider.answers(answer(200, b'{"data": []}'))
    got = await check.ask()
    assert got.status == 200
    assert got.json.keys() == {"verdict", "checked_at", "detail"}
    assert got.json["verdict"] == "accepted"
    (request,) = scene.provider.requests
    assert (request.method, request.target, request.body) == ("GET", "/v1/models", b"")
    assert request.all_of("authorization") == [f"Bearer {VALUE}"]
    assert await check.shown() == {**got.json, "by": "keyman"}
    (entry,) = await check.entries()
    assert (entry.user_id, entry.actor, entry.detail) == (scene.owner.id, "application", "accepted")


@pytest.mark.parametrize(
    ("service", "line", "body", "verdict"),
    [
        ("COHERE", "POST /cohere/v1/check-api-key", {"valid": True}, "accepted"),
        ("COHERE", "POST /cohere/v1/check-api-key", {"valid": False}, "refused"),
        ("COHERE", "POST /cohere/v1/check-api-key", {"is": "a proxy"}, "unreachable"),
        ("HUGGINGFACE", "GET /api/whoami-v2", {"auth": {"accessToken": {"role": "read"}}}, "accepted"),
        ("HUGGINGFACE", "GET /api/whoami-v2", {"auth": {"accessToken": {"role": "fineGrained"}}}, "no-permission"),
    ],
)
async def test_a_check_can_be_a_post_or_go_to_another_address(
    check: Checking, service: str, line: str, body: Any, verdict: str
) -> None:
    scene = check.scene
    value = "hf_value-of-a-token-1234" if service == "HUGGINGFACE" else "value-of-no-form-1234"
    key_id = await scene.owner.key(service, value=value)
    # More than the gateway reads of an answer to a request of a client.
    scene.provider.answers(answer(200, json.dumps({"more": "x" * 2 * MOST, **body}).encode()))
    got = await check.ask(key_id)
    assert (got.status, got.json["verdict"]) == (200, verdict)
    (request,) = scene.provider.requests
    assert f"{request.method} {request.target}" == line
    assert request.all_of("authorization") == [f"Bearer {value}"]
    assert request.body == b""


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (answer(401, REFUSAL), "refused"),
        (answer(401, b"<html>Sign in to the proxy</html>"), "unreachable"),
        (answer(401, b'{"error": {"message": "You must be member of an organization"}}'), "no-permission"),
        (answer(302, b"", "location: https://elsewhere.example.com/"), "unreachable"),
        (answer(404), "unreachable"),
        (answer(500), "unreachable"),
        (answer(429, b'{"error": {"code": "insufficient_quota"}}'), "no-credit"),
        (b"not HTTP at all\r\n\r\n", "unreachable"),
    ],
)
async def test_a_verdict_is_that_of_the_table_and_nothing_of_the_provider_is_kept(
    check: Checking, content: bytes, verdict: str, logged: StringIO
) -> None:
    check.scene.provider.answers(content)
    got = await check.ask()
    assert (got.status, got.json["verdict"]) == (200, verdict)
    shown = await check.shown()
    assert shown["verdict"] == verdict
    told = f"{got.body!r} {shown} {await check.entries()} {logged.getvalue()}"
    assert [word for word in (CANARY, VALUE, "to the proxy") if word in told] == []


async def test_a_body_without_end_is_read_to_256_kib_and_left(check: Checking) -> None:
    gone = asyncio.Event()

    async def endless(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        try:
            while True:
                await incoming.event(b'{"a": ' + b"x" * 4000)
        finally:
            gone.set()

    check.scene.provider.handler = endless
    assert (await check.ask()).json["verdict"] == "accepted"
    await asyncio.wait_for(gone.wait(), 10)


async def test_a_provider_that_hangs_is_unreachable(check: Checking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyman.planes.gateway.checking.PATIENCE", 0.2)

    async def hangs(incoming: Incoming) -> None:
        await incoming.closed()

    check.scene.provider.handler = hangs
    assert (await check.ask()).json["verdict"] == "unreachable"


@pytest.mark.parametrize(
    ("addresses", "fault"), [((), "ClientConnectorDNSError"), (("169.254.169.254", "::1"), "AddressRefused")]
)
async def test_an_endpoint_that_is_nowhere_or_inside_is_asked_about_and_not_connected_to(
    check: Checking, monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], fault: str
) -> None:
    host = f"{token_hex(6)}.openai.azure.com"
    resolve = socket.getaddrinfo

    def leads(name: Any, port: Any, *more: Any, **named: Any) -> Any:
        if name != host:
            return resolve(name, port, *more, **named)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [info for address in addresses for info in resolve(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", leads)
    key_id = await check.scene.owner.key("AZURE_OPENAI", "0123456789abcdef", settings={"endpoint": f"https://{host}"})
    with capture_logs() as lines:
        got = await check.ask(key_id)
    assert (got.status, got.json["verdict"], got.json["detail"]) == (200, "unreachable", ENDPOINT)
    assert [line["fault"] for line in lines if line["event"] == "a provider cannot be reached"] == [fault]
    assert host not in str(lines)


async def test_neither_a_check_nor_a_use_changes_the_etag(check: Checking) -> None:
    path = f"/api/keys/{check.scene.key_id}"
    before = await check.scene.owner.client.get(path)
    await check.ask()
    await check.scene.last_used_by()
    after = await check.scene.owner.client.get(path)
    assert (before.json()["check"], before.json()["last_used_at"]) == (None, None)
    assert None not in (after.json()["check"], after.json()["last_used_at"])
    assert after.headers["etag"] == before.headers["etag"]


async def test_a_key_that_is_replaced_meanwhile_gets_no_verdict_and_no_entry(check: Checking) -> None:
    scene = check.scene

    async def replaces(incoming: Incoming) -> None:
        await incoming.rest()
        new = await scene.owner.client.put(f"/api/keys/{scene.key_id}", json={"api_key": "sk-proj-another1234"})
        assert new.status_code == 200
        await incoming.send(answer(401, REFUSAL))

    scene.provider.handler = replaces
    got = await check.ask()
    assert (got.status, got.json["verdict"]) == (200, "refused")
    assert await check.shown() is None
    assert await check.entries() == []


async def test_a_new_value_and_new_settings_forget_the_verdict_and_a_new_label_does_not(check: Checking) -> None:
    scene, path = check.scene, f"/api/keys/{check.scene.key_id}"
    await check.ask()
    before = (await scene.owner.client.get(path)).headers["etag"]
    assert await check.shown() is not None
    await check.set(check_verdict="refused")
    assert (await scene.owner.client.get(path)).headers["etag"] == before  # it is not part of it
    await scene.owner.client.patch(path, json={"name": "another"})
    assert (await check.shown())["verdict"] == "refused"
    await scene.owner.client.patch(path, json={"settings": {}})
    assert await check.shown() is None
    await check.ask()
    await scene.owner.client.put(path, json={"api_key": VALUE})
    assert await check.shown() is None


async def test_a_row_that_keyman_has_not_written_shows_no_text_of_its_own(check: Checking) -> None:
    await check.ask()
    await check.set(check_detail="Call +1 555 0100 to unlock your key.")
    assert (await check.shown())["detail"] == DETAILS[Verdict.ACCEPTED]
    for name in (None, "", "Call +1 555 0100", "x" * 65):
        await check.set(checked_by=name)
        assert await check.shown() is None


async def test_two_checks_at_once_store_a_verdict_each(check: Checking) -> None:
    both = await asyncio.gather(check.ask(), check.ask())
    assert [one.status for one in both] == [200, 200]
    assert len(await check.entries()) == 2


async def test_paused_and_expired_keys_can_be_checked_and_keep_their_status(check: Checking) -> None:
    for values in ({"disabled": True}, {"expires_at": now() - timedelta(days=1)}):
        await check.set(**values)
        assert (await check.ask()).json["verdict"] == "accepted"
    key = (await check.scene.owner.client.get(f"/api/keys/{check.scene.key_id}")).json()
    assert key["status"] == "expired"


async def test_an_undecryptable_key_is_409_and_the_provider_is_not_asked(check: Checking) -> None:
    await check.set(undecryptable=True)
    got = await check.ask()
    assert (got.status, got.json["type"]) == (409, "/problems/undecryptable")
    await check.set(undecryptable=False, encrypted_key="vault:v1:AAAA")
    assert (await check.ask()).status == 409
    assert [entry.reason for entry in await check.entries("key.check-failed")] == ["undecryptable"]
    await check.set(undecryptable=False, settings='{"region": "elsewhere"}')
    assert (await check.ask()).status == 409
    assert check.scene.provider.requests == []


async def test_what_is_not_supported_is_said_without_opening_the_value(check: Checking) -> None:
    scene = check.scene
    for service in ("PERPLEXITY", "AZURE_OPENAI"):  # the second lacks its endpoint
        key_id = await scene.owner.key(service, value="value-of-no-form")
        async with scene.pair.management.database.write(Unchecked.OPERATOR) as connection:  # it cannot be opened
            await connection.execute(
                update(api_keys).where(api_keys.c.id == key_id).values(encrypted_key="vault:v1:AAAA")
            )
        got = await check.ask(key_id)
        assert (got.status, got.json["verdict"]) == (200, "unsupported")
        shown = (await scene.owner.client.get(f"/api/keys/{key_id}")).json()
        assert (shown["check"]["verdict"], shown["status"]) == ("unsupported", "active")


@pytest.mark.parametrize(
    ("service", "settings", "url"),
    [
        ("aws-bedrock", {"region": "eu-west-1"}, "https://bedrock.eu-west-1.amazonaws.com/foundation-models"),
        ("azure-openai", {"endpoint": "https://a.openai.azure.com"}, "https://a.openai.azure.com/openai/v1/models"),
        ("openai", {}, "https://api.openai.com/v1/models"),
        ("fireworks", {}, "https://api.fireworks.ai/v1/accounts/fireworks/models"),
    ],
)
def test_the_address_of_a_check_has_the_settings_of_the_key(service: str, settings: dict[str, str], url: str) -> None:
    found = forwarded(Catalogue())[service]
    assert found.upstream.check is not None
    assert address_of(found, found.upstream.check, settings) == url
    if settings:
        with pytest.raises(Conflict):
            address_of(found, found.upstream.check, {})


async def test_only_the_application_for_checks_may_ask_and_it_may_do_nothing_else(check: Checking) -> None:
    scene = check.scene
    assert (await check.ask(token=scene.application.token)).status == 403
    made = await scene.owner.client.post("/api/tokens", json={"name": "x", "scopes": ["keys:use", "keys:write"]})
    assert (await check.ask(token=made.json()["token"])).status == 403
    assert (await check.ask(token="km_nothing")).status == 401
    headers = {"authorization": f"Bearer {check.token}", "keyman-user": str(scene.owner.id)}
    for path in (CHAT, "/openai/v1/nowhere", "/anthropic/v1/messages"):
        assert (await scene.ask("POST", path, headers, b"{}")).status == 403
    assert scene.provider.requests == []
    assert (await check.ask(999_999)).status == 404


# What use says.


async def used(check: Checking, status: int, body: bytes = b"{}", method: str = "POST", path: str = CHAT) -> Any:
    check.scene.provider.answers(answer(status, body))
    assert (await check.scene.ask(method, path, check.scene.headers, b"")).status == status
    return await check.shown()


async def test_use_records_what_is_grave_and_a_success_clears_a_refusal(check: Checking) -> None:
    assert await used(check, 429) is None
    assert await used(check, 500) is None
    assert await used(check, 200) is None
    shown = await used(check, 401, REFUSAL)
    assert (shown["verdict"], shown["by"]) == ("refused", "use")
    assert CANARY not in str(shown)
    assert await used(check, 200) is None
    await check.set(checked_at=now() - timedelta(seconds=11))
    assert (await used(check, 402))["verdict"] == "no-credit"
    assert (await used(check, 200))["verdict"] == "no-credit"  # it clears only a refusal
    assert await check.entries() == []


@pytest.mark.parametrize("by", ["keyman", "use", "chat-backend"])
async def test_a_success_clears_a_refusal_of_anyone(check: Checking, by: str) -> None:
    await check.ask()
    await check.set(check_verdict="refused", checked_by=by)
    assert (await check.shown())["by"] == by
    assert await used(check, 200) is None


async def test_use_changes_a_recorded_verdict_at_most_once_in_10_seconds(check: Checking) -> None:
    await check.ask()
    assert (await used(check, 429))["verdict"] == "rate-limited"
    assert (await used(check, 401, REFUSAL))["verdict"] == "rate-limited"
    await check.set(checked_at=now() - timedelta(seconds=11))
    assert (await used(check, 401, REFUSAL))["verdict"] == "refused"


async def test_a_wrong_request_of_a_client_says_nothing_of_the_key(check: Checking) -> None:
    await check.ask()
    assert (await used(check, 400, b'{"error": {"message": "invalid api key of a tool"}}'))["verdict"] == "accepted"
    assert (await used(check, 422))["verdict"] == "accepted"


async def test_a_list_that_may_be_public_clears_nothing(check: Checking) -> None:
    await used(check, 401, REFUSAL)
    assert (await used(check, 200, method="GET", path="/openai/v1/models/gpt"))["verdict"] == "refused"
    assert await used(check, 200, method="GET", path="/openai/v1/models") is None


@quick_on("sqlite", "shared_gateway")
async def test_a_verdict_changes_neither_the_status_nor_which_key_is_used(check: Checking) -> None:
    scene = check.scene
    newest = await scene.owner.key(value="sk-Zt81LqoPw5aYc3hVn6Xe9876")
    scene.provider.answers(answer(401, REFUSAL))
    for _ in range(2):
        assert (await scene.post()).header("keyman-key-id") == str(newest)
    shown = (await scene.owner.client.get(f"/api/keys/{newest}")).json()
    assert (shown["check"]["verdict"], shown["status"]) == ("refused", "active")


async def test_use_of_a_value_that_was_replaced_meanwhile_says_nothing(check: Checking) -> None:
    scene = check.scene

    async def replaces(incoming: Incoming) -> None:
        await incoming.rest()
        await scene.owner.client.put(f"/api/keys/{scene.key_id}", json={"api_key": "sk-proj-another1234"})
        await incoming.send(answer(401, REFUSAL))

    scene.provider.handler = replaces
    assert (await scene.post()).status == 401
    assert await check.shown() is None


@quick_on("sqlite", "shared_gateway")
async def test_an_answer_that_is_stored_late_replaces_no_newer_verdict(check: Checking) -> None:
    moment = now()
    row, caller, db = await check.found(), await check.caller(), check.scene.pair.management.database
    older, newer = Judgement.of(Verdict.REFUSED), Judgement.of(Verdict.ACCEPTED)
    before, after = moment - timedelta(minutes=1), moment + timedelta(minutes=1)
    await store_check(db, caller, row, newer, moment)
    shown = await check.shown()
    assert (shown["verdict"], shown["by"]) == ("accepted", "keyman")
    await store_check(db, caller, row, older, before)
    await store_use(db, Sent.of(row), older, before)
    assert await check.shown() == shown
    assert [entry.detail for entry in await check.entries()] == ["accepted", "refused"]  # both checks were made
    await store_use(db, Sent.of(row), older, after)
    refused = await check.shown()
    assert (refused["verdict"], refused["by"]) == ("refused", "use")
    await store_use(db, Sent.of(row), None, moment)  # an older success
    assert await check.shown() == refused
    await store_use(db, Sent.of(row), None, after + timedelta(seconds=1))
    assert await check.shown() is None


@quick_on("sqlite", "shared_gateway")
async def test_a_verdict_that_a_clock_ahead_has_stored_keeps_no_later_one_out(check: Checking) -> None:
    row, caller, db = await check.found(), await check.caller(), check.scene.pair.management.database
    ahead = {"check_verdict": "accepted", "check_detail": "x", "checked_by": "use", "checked_at": now() + timedelta(1)}
    await check.set(**ahead)
    await store_check(db, caller, row, Judgement.of(Verdict.NO_CREDIT), now())
    assert (await check.shown())["verdict"] == "no-credit"
    await check.set(**ahead)
    assert (await used(check, 401, REFUSAL))["verdict"] == "refused"
    await check.set(**{**ahead, "check_verdict": "refused"})
    assert await used(check, 200) is None


async def test_a_long_answer_is_as_old_as_its_beginning(check: Checking) -> None:
    scene = check.scene
    assert (await used(check, 401, REFUSAL))["verdict"] == "refused"
    checked = asyncio.Event()

    async def long(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        await incoming.event(b"data: 1")
        await checked.wait()
        await incoming.event(b"")

    scene.provider.handler = long
    talk = scene.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    scene.provider.answers(answer(401, REFUSAL))  # the provider has revoked the key since
    shown = (await check.ask()).json
    checked.set()
    assert await talk.ended() is None
    assert await check.shown() == {**shown, "by": "keyman"}


async def test_an_unknown_model_is_404_of_the_table(check: Checking) -> None:
    missing = b'{"error": {"message": "The model does not exist", "code": "model_not_found"}}'
    assert await used(check, 404, missing) is None  # no verdict was recorded, and this one is not grave
    await check.set(check_verdict="accepted", checked_at=now() - timedelta(minutes=1), checked_by="keyman")
    assert (await used(check, 404, missing))["verdict"] == "unreachable"


# The management plane.


@dataclass
class Owned:
    """The owner of the key, at a management plane that asks the gateway of a scene."""

    client: httpx.AsyncClient
    plane: ApiPlane
    path: str

    async def check(self) -> httpx.Response:
        return await self.client.post(self.path)


@asynccontextmanager
async def bridge(scene: Scene, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve the gateway of a scene on loopback, and yield its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        method, path, _ = head[0].split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:])]
        size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        got = await asked(scene.app, method, path, headers, await reader.readexactly(size))
        fields = [f"{name}: {value}" for name, value in got.fields if name not in ("content-length", "connection")]
        lines = [f"HTTP/1.1 {got.status} X", *fields, f"content-length: {len(got.body)}", "connection: close", "", ""]
        writer.write("\r\n".join(lines).encode() + got.body)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listener:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def owned(
    check: Checking, vault: Vault, quick: PasswordHasher, settings: CheckSettings | None
) -> AsyncIterator[Owned]:
    scene = check.scene
    made = await scene.owner.client.post("/api/tokens", json={"name": "x", "scopes": ["keys:write", "keys:read"]})
    url = scene.pair.management.settings.database_url
    async with api_plane_at(url, vault.settings, Passwords(quick), checks=settings) as plane:
        yield Owned(plane.bearer(made.json()["token"]), plane, f"/api/keys/{scene.key_id}/check")


@pytest.fixture
async def holder(check: Checking, provisioned: Vault, quick_passwords: PasswordHasher) -> AsyncIterator[Owned]:
    async with bridge(check.scene) as address:
        settings = CheckSettings(address, Secret(check.token))
        async with owned(check, provisioned, quick_passwords, settings) as found:
            yield found


async def test_an_owner_checks_a_key_once_in_10_seconds(check: Checking, holder: Owned) -> None:
    before = await holder.client.get(holder.path.removesuffix("/check"))
    got = await holder.check()
    assert got.status_code == 200
    assert got.json() == {**before.json(), "check": got.json()["check"]}
    assert (got.json()["check"]["verdict"], got.json()["check"]["by"]) == ("accepted", "keyman")
    assert got.headers["etag"] == before.headers["etag"]
    again = await holder.check()
    problem(again, "rate-limited")
    assert 1 <= int(again.headers["retry-after"]) <= 10
    assert len(await check.entries()) == 1


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json", b'{"key_id": 999, "force": true}'),
        ("application/json", b"{"),
        ("text/plain", b"x" * 100_000),
        (None, b"x"),
    ],
)
async def test_a_check_takes_no_body_and_reads_none(
    check: Checking, holder: Owned, media_type: str | None, body: bytes
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    got = await holder.client.post(holder.path, content=body, headers=headers)
    assert got.status_code == 200, got.text
    assert (got.json()["id"], got.json()["check"]["verdict"]) == (check.scene.key_id, "accepted")
    assert "requestBody" not in documented(holder, "checkKey")


def documented(holder: Owned, operation: str) -> Any:
    assert holder.plane.document is not None
    return holder.plane.document.operations[operation]


async def test_the_client_checks_a_key(check: Checking, holder: Owned) -> None:
    token = holder.client.headers["authorization"].removeprefix("Bearer ")
    async with AsyncKeyman(ORIGIN, token, transport=httpx.ASGITransport(holder.plane.app)) as client:
        before = await client.get(check.scene.key_id)
        key = await client.check(before)
        assert key.check is not None
        assert (key.check.verdict, key.check.by, key.etag) == ("accepted", "keyman", before.etag)
        with pytest.raises(RateLimited):
            await client.check(key)


async def test_an_account_has_30_checks_an_hour_and_a_refused_one_does_not_count(
    check: Checking, holder: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CHECKS_PER_ACCOUNT", 2)
    assert (await holder.check()).status_code == 200
    for _ in range(5):
        assert (await holder.check()).status_code == 429
    for status in (200, 429):
        key_id = await check.scene.owner.key(value=VALUE)
        got = await holder.client.post(f"/api/keys/{key_id}/check")
        assert got.status_code == status
    assert int(got.headers["retry-after"]) > 3000


async def test_a_network_has_100_checks_an_hour(
    check: Checking, holder: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CHECKS_PER_NETWORK", 1)
    await check.forget_attempts()
    assert (await holder.check()).status_code == 200
    key_id = await check.scene.owner.key(value=VALUE)
    assert (await holder.client.post(f"/api/keys/{key_id}/check")).status_code == 429


async def test_the_limits_count_over_all_replicas(
    check: Checking, holder: Owned, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    assert (await holder.check()).status_code == 200
    async with (
        bridge(check.scene) as address,
        owned(check, provisioned, quick_passwords, CheckSettings(address, Secret(check.token))) as other,
    ):
        problem(await other.check(), "rate-limited")
    assert len(await check.entries()) == 1


async def test_keys_of_others_are_404_and_count_nothing(check: Checking, holder: Owned) -> None:
    other = await check.scene.pair.owner()
    key_id = await other.key(value=VALUE)
    problem(await holder.client.post(f"/api/keys/{key_id}/check"), "not-found")
    assert check.scene.provider.requests == []


async def test_an_undecryptable_key_is_409_for_its_owner(check: Checking, holder: Owned) -> None:
    await check.set(undecryptable=True)
    problem(await holder.check(), "undecryptable")


async def test_a_gateway_that_cannot_be_reached_or_refuses_the_token_is_503_and_nothing_is_stored(
    check: Checking, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with bridge(check.scene) as address:
        for settings in (
            CheckSettings("http://127.0.0.1:9", Secret(check.token)),
            CheckSettings(address, Secret("no")),
        ):
            async with owned(check, provisioned, quick_passwords, settings) as holder:
                got = await holder.check()
                problem(got, "gateway-unavailable")
                assert check.token not in got.text
            await check.forget_attempts()
    assert await check.shown() is None


async def test_doctor_says_whether_the_gateway_answers_and_takes_the_token(check: Checking) -> None:
    async def found(settings: CheckSettings | None) -> list[tuple[str, str, str]]:
        given = replace(check.scene.pair.management.settings, checks=settings)
        return [(one.check, str(one.state), one.found) async for one in doctor.examine(given)]

    assert await found(None) == []
    async with bridge(check.scene) as address:
        good = CheckSettings(address, Secret(check.token))
        assert await found(good) == [("live-checks", "ok", "the gateway answers, and takes the token")]
        for token in (check.scene.application.token, "km_nothing"):  # of another application, and of none
            ((_, state, text),) = await found(CheckSettings(address, Secret(token)))
            assert (state, "refuses the token" in text, token in text) == ("failed", True, False)
        named = CheckSettings(address.replace("127.0.0.1", "gateway.example.com"), Secret(check.token))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("keyman.doctor.checks.Gateway", lambda _: Gateway(good))
            ((_, state, text),) = await found(named)
        assert (state, "without TLS" in text) == ("warning", True)
    ((_, state, text),) = await found(good)
    assert (state, "cannot be reached" in text) == ("failed", True)
    assert check.scene.provider.requests == []
    assert await check.entries() == []


async def test_without_a_gateway_a_check_is_409(
    check: Checking, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    async with owned(check, provisioned, quick_passwords, None) as holder:
        problem(await holder.check(), "conflict")
