"""The resolver's clients: a user's key from the real plane, and the rules of the cache."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from keyman.client import (
    AsyncResolver,
    BadAnswer,
    DeadlineExceeded,
    NotFound,
    RateLimited,
    Resolved,
    Resolver,
    Unauthenticated,
    Unavailable,
    Undecryptable,
)
from keyman.identity import applications
from keyman.values import ApplicationName
from tests.client.asking import HERS, TOKEN, VALUE, Asked, Kind, given, problem, resolver
from tests.planes.management.api.harness import OPENAI_KEY
from tests.planes.resolver.pair import App, Pair, resolver_at
from tests.providers.pastes import ACCOUNT
from tests.support.http import HANG_UP, RESET, Reply, Request, faulty_server
from tests.support.planes import ORIGIN, Vault
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

REVOKED = problem(401, "unauthenticated")
GONE = problem(404, "not-found")
BROKEN = problem(409, "undecryptable")


@asynccontextmanager
async def asking(pair: Pair, app: App, **settings: Any) -> AsyncIterator[Asked]:
    """The client of an application of the real resolver."""
    transport = httpx.ASGITransport(pair.resolver.app)
    async with resolver("async", ORIGIN, app.token, transport=transport, **settings) as client:
        yield client


# --- the real plane


async def test_a_key_comes_by_its_user_and_service_or_by_its_id(pair: Pair) -> None:
    ada, app = await pair.owner(), await pair.app()
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    key_id = await ada.key(expires_at=later.isoformat())
    async with asking(pair, app) as client:
        for which in ({"user_id": ada.id, "service": "OPENAI"}, {"key_id": key_id}):
            resolved = await client.resolve(**which, purpose="Answer to a chat")
            assert resolved.reveal() == OPENAI_KEY
            assert (resolved.key_id, resolved.user_id, resolved.service) == (key_id, ada.id, "OPENAI")
            assert resolved.expires_at == later
    assert [entry["purpose"] for entry in await ada.trail()] == ["Answer to a chat"] * 2


async def test_a_long_key_and_a_credential_come_whole_and_nothing_longer(pair: Pair) -> None:
    ada, app = await pair.owner(), await pair.app("OPENAI", "GOOGLE_VERTEX")
    file = ACCOUNT + "\n" * (16 * 1024 - len(ACCOUNT.encode()))
    async with asking(pair, app) as client:
        for service, value in (("OPENAI", OPENAI_KEY.ljust(8192, "x")), ("GOOGLE_VERTEX", file)):
            resolved = await client.resolve(key_id=await ada.key(service, value))
            assert resolved.reveal() == value
    for value in ("x" * 8193, f"{file}\n"):
        async with faulty_server([given(api_key=value)]) as server, resolver("async", server.address) as client:
            with pytest.raises(BadAnswer):
                await client.resolve()


async def test_what_the_plane_refuses_has_a_name(pair: Pair) -> None:
    ada, app = await pair.owner(), await pair.app()
    key_id = await ada.key()
    async with asking(pair, app) as client:
        with pytest.raises(NotFound) as missing:
            await client.resolve(user_id=ada.id, service="ANTHROPIC")
        assert missing.value.slug == "not-found"
        assert missing.value.request_id
        await pair.change(key_id, encrypted_key="vault:v1:" + "A" * 80)
        with pytest.raises(Undecryptable):
            await client.resolve(key_id=key_id)
        await applications.revoke(pair.resolver.database, ApplicationName(app.name))
        with pytest.raises(Unauthenticated) as revoked:
            await client.resolve(key_id=key_id)
        assert app.token not in str(revoked.value)


async def test_a_limit_of_the_plane_is_raised_with_the_time_to_wait(pair: Pair, provisioned: Vault) -> None:
    ada, app = await pair.owner(), await pair.app()
    key_id = await ada.key()
    url = pair.resolver.settings.database_url
    async with (
        resolver_at(url, provisioned.resolver, resolve_rate=0.01) as slow,
        asking(Pair(pair.management, slow), app) as client,
    ):
        await client.resolve(key_id=key_id)
        with pytest.raises(RateLimited) as caught:
            await client.resolve(key_id=key_id)
    assert caught.value.retry_after
    assert caught.value.retry_after > 10


async def test_without_a_cache_the_audit_log_has_each_resolve_and_with_one_the_first(pair: Pair) -> None:
    ada, app = await pair.owner(), await pair.app()
    which = {"key_id": await ada.key()}
    async with asking(pair, app) as client:
        for _ in range(2):
            await client.resolve(**which)
    assert len(await ada.trail()) == 2
    async with asking(pair, app, cache_ttl=60) as client:
        for _ in range(3):
            assert (await client.resolve(**which)).reveal() == OPENAI_KEY
    assert len(await ada.trail()) == 3


# --- what is handed out


async def test_a_resolved_key_masks_itself(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address, cache_ttl=60) as client:
        resolved = await client.resolve()
        shown = [
            repr(resolved),
            str(resolved),
            f"{resolved}",
            f"{resolved:>40}",
            repr([resolved]),
            repr(vars(client.client)),
        ]
    assert not [text for text in shown if VALUE in text or TOKEN in text]
    for taken in (pickle.dumps, copy.deepcopy, msgspec.json.encode):
        with pytest.raises(TypeError):
            taken(resolved)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"user_id": 7}, {"service": "OPENAI"}, {"key_id": 1, "user_id": 7}, {"key_id": 1, **HERS}],
)
async def test_a_key_is_named_in_one_way_or_not_asked_for(kind: Kind, wrong: dict[str, Any]) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address) as client:
        with pytest.raises(TypeError):
            await client("resolve", **wrong)
    assert server.requests == []


# --- the cache


async def test_a_cache_asks_once_for_as_long_as_it_lives(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("keyman.client.cache.monotonic", lambda: now[0])
    async with faulty_server([given()]) as server, resolver(kind, server.address, cache_ttl=30) as client:
        for moment, asked in ((1000.0, 1), (1029.9, 1), (1030.0, 2), (1059.0, 2), (1061.0, 3)):
            now[0] = moment
            await client.resolve()
            assert len(server.requests) == asked


async def test_the_same_key_by_another_name_is_asked_for(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address, cache_ttl=30) as client:
        await client.resolve()
        await client.resolve(key_id=1)
        await client.resolve(key_id=1)
    assert len(server.requests) == 2


async def test_a_refused_token_forgets_every_value(kind: Kind) -> None:
    script = [given(), given(key_id=2), REVOKED, given(), given(key_id=2)]
    async with faulty_server(script) as server, resolver(kind, server.address, cache_ttl=60) as client:
        await client.resolve()
        await client.resolve(key_id=2)
        with pytest.raises(Unauthenticated):
            await client.resolve(key_id=3)
        await client.resolve()
        await client.resolve(key_id=2)
    assert len(server.requests) == 5


@pytest.mark.parametrize("refusal", [GONE, BROKEN])
async def test_a_key_that_is_gone_is_forgotten_by_all_its_names_and_no_other_is(kind: Kind, refusal: Reply) -> None:
    script = [given(), given(key_id=2, user_id=8), refusal, given()]
    async with faulty_server(script) as server, resolver(kind, server.address, cache_ttl=60) as client:
        await client.resolve()
        await client.resolve(user_id=8, service="OPENAI")
        with pytest.raises((NotFound, Undecryptable)):
            await client.resolve(key_id=1)
        await client.resolve(user_id=8, service="OPENAI")
        assert len(server.requests) == 3
        await client.resolve()
        assert len(server.requests) == 4


async def test_an_outage_forgets_nothing(kind: Kind) -> None:
    async with (
        faulty_server([given(), problem(503, "vault-unavailable")]) as server,
        resolver(kind, server.address, cache_ttl=60) as client,
    ):
        await client.resolve()
        with pytest.raises(Unavailable):
            await client.resolve(key_id=2)
        assert (await client.resolve()).reveal() == VALUE


async def test_a_key_that_a_provider_refuses_is_resolved_again(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address, cache_ttl=60) as client:
        await client.resolve()
        client.client.forget(**HERS)
        await client.resolve()
        client.client.forget(key_id=5)
        await client.resolve()
        assert len(server.requests) == 2
        client.client.forget()
        await client.resolve()
    assert len(server.requests) == 3


async def test_those_who_ask_at_once_ask_once_with_asyncio() -> None:
    async with (
        faulty_server([Reply(200, given().body, delay=0.1)]) as server,
        AsyncResolver(server.address, TOKEN, cache_ttl=60) as client,
    ):
        got = await asyncio.gather(*(client.resolve(**HERS) for _ in range(50)))
        assert {resolved.reveal() for resolved in got} == {VALUE}
    assert len(server.requests) == 1


async def test_those_who_ask_at_once_ask_once_in_threads() -> None:
    got, start = list[Resolved](), threading.Barrier(20)

    def ask(client: Resolver) -> None:
        start.wait(PATIENCE)
        got.append(client.resolve(user_id=7, service="OPENAI"))

    def all_ask(address: str) -> None:
        with Resolver(address, TOKEN, cache_ttl=60) as client:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async with faulty_server([Reply(200, given().body, delay=0.2)]) as server:
        await asyncio.to_thread(all_ask, server.address)
    assert [resolved.reveal() for resolved in got] == [VALUE] * 20
    assert len(server.requests) == 1


async def test_those_who_wait_share_a_refusal_each_with_an_error_of_their_own() -> None:
    late = Reply(404, GONE.body, delay=0.1)
    async with faulty_server([late]) as server, AsyncResolver(server.address, TOKEN, cache_ttl=60) as client:
        ends = await asyncio.gather(*(client.resolve(**HERS) for _ in range(10)), return_exceptions=True)
    assert {type(end) for end in ends} == {NotFound}
    assert len({id(end) for end in ends}) == 10
    assert len(server.requests) == 1


async def test_one_who_gives_up_takes_nobody_along() -> None:
    async with (
        faulty_server([Reply(200, given().body, delay=0.2)]) as server,
        AsyncResolver(server.address, TOKEN, cache_ttl=60) as client,
    ):
        first = asyncio.ensure_future(client.resolve(**HERS))
        while not server.requests:
            await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(client.resolve(**HERS)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert {resolved.reveal() for resolved in await asyncio.gather(*others)} == {VALUE}
    assert len(server.requests) == 2


class _Late(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The first request is under way until it is let go, and then too late; those after it are answered."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = threading.Event()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.asked == 1:
            self.go.wait(PATIENCE)
            raise httpx.ReadTimeout("late")
        return httpx.Response(200, stream=httpx.ByteStream(given().body))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(self.handle_request, request)


async def test_those_who_come_late_have_their_own_deadline(kind: Kind) -> None:
    """The call that they join is about to end; theirs is not."""
    transport = _Late()
    settings: dict[str, Any] = {"transport": transport, "timeout": PATIENCE, "cache_ttl": 60}
    async with resolver(kind, ORIGIN, **settings) as client:
        first = asyncio.ensure_future(client.resolve())
        while not transport.asked:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(client.resolve())
        await asyncio.sleep(0.1)  # it waits for the first one by now; if it does not, it asks for itself
        transport.go.set()
        with pytest.raises(DeadlineExceeded):
            await first
        assert (await second).reveal() == VALUE
    assert transport.asked == 2


async def test_a_value_asked_for_before_all_was_forgotten_is_not_kept(kind: Kind) -> None:
    """It was granted, and its token has been taken away since."""

    def slow(request: Request) -> Reply:
        return REVOKED if b'"key_id":3' in request.body else Reply(200, given().body, delay=0.3)

    async with faulty_server(slow) as server, resolver(kind, server.address, cache_ttl=60) as client:
        first = asyncio.ensure_future(client.resolve())
        while not server.requests:
            await asyncio.sleep(0.01)
        with pytest.raises(Unauthenticated):
            await client.resolve(key_id=3)
        await first
        await client.resolve()
    assert len(server.requests) == 3


async def test_what_was_retried_is_kept_as_well(kind: Kind) -> None:
    async with (
        faulty_server([RESET, HANG_UP, given()]) as server,
        resolver(kind, server.address, cache_ttl=60) as client,
    ):
        for _ in range(2):
            await client.resolve()
    assert len(server.requests) == 3


async def test_a_closed_client_holds_no_value(kind: Kind) -> None:
    async with faulty_server([given()]) as server, resolver(kind, server.address, cache_ttl=60) as client:
        await client.resolve()
        assert len(client.client._cache) == 1
    assert len(client.client._cache) == 0
