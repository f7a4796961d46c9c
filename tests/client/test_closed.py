"""A client that is closed sends nothing."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

from keyman.client import (
    AsyncKeyman,
    AsyncResolver,
    ClientClosed,
    ClientError,
    Keyman,
    KeyStatus,
    NewKey,
    Sort,
    Verdict,
)
from keyman.keys.schemas import Status
from keyman.keys.sorting import Sort as Order
from keyman.providers import verdicts
from keyman.testing import AsyncFakeResolver, FakeResolver
from tests.client.asking import TOKEN, VALUE, Kind, given, keyman, resolver
from tests.client.test_verdicts import CHECK, KEY
from tests.support.http import RESET, Reply, answer, faulty_server

pytestmark = pytest.mark.anyio


async def test_a_closed_client_raises_and_sends_nothing(kind: Kind) -> None:
    async with faulty_server([given()]) as server:
        async with resolver(kind, server.address) as client:
            await client.resolve()
        for method, arguments in (
            ("resolve", {"key_id": 1}),
            ("report", {"key": 1, "outcome": "refused"}),
            ("portal_link", {"subject": "user-42"}),
        ):
            with pytest.raises(ClientClosed, match="client is closed"):
                await client(method, **arguments)
    assert len(server.requests) == 1


async def test_a_closed_client_of_the_management_plane_raises_at_every_method(kind: Kind) -> None:
    async with faulty_server([answer([])]) as server:
        async with keyman(kind, server.address) as client:
            pass
        for method, arguments in (
            ("get", (1,)),
            ("add", ("OPENAI", VALUE)),
            ("add_all", ([NewKey("OPENAI", VALUE)],)),
            ("replace", (1, VALUE)),
            ("change", (1,)),
            ("check", (1,)),
            ("delete", (1,)),
            ("count", ()),
            ("services", ()),
        ):
            with pytest.raises(ClientClosed):
                await client(method, *arguments)
        for listing in ("keys", "audit"):
            with pytest.raises(ClientClosed):
                await client.all(listing)
    assert not server.requests


async def test_the_error_is_one_of_the_clients_and_repeats_no_secret(kind: Kind) -> None:
    async with faulty_server([given()]) as server, keyman(kind, server.address) as client:
        pass
    with pytest.raises(ClientError) as caught:
        await client("add", "OPENAI", VALUE)
    assert type(caught.value) is ClientClosed
    assert VALUE not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_loop_that_closes_a_shared_client_leaves_it_to_the_other_loops() -> None:
    async def get(client: AsyncKeyman) -> None:
        await client.services()
        await client.aclose()

    async def shared() -> None:
        async with faulty_server([answer([])]) as server:
            client = AsyncKeyman(server.address, TOKEN)
            await client.aclose()
            await asyncio.to_thread(asyncio.run, get(client))
            with pytest.raises(ClientClosed):
                await client.services()

    asyncio.run(shared())


def test_a_value_that_another_loop_keeps_is_not_given_to_one_that_has_closed() -> None:
    async def resolve(client: AsyncResolver) -> None:
        await client.resolve(key_id=1)
        await client._wire.aclose()  # the connections only: the value stays

    async def shared() -> None:
        async with faulty_server([given()]) as server:
            client = AsyncResolver(server.address, TOKEN, cache_ttl=60)
            await client.aclose()
            await asyncio.to_thread(asyncio.run, resolve(client))
            with pytest.raises(ClientClosed):
                await client.resolve(key_id=1)

    asyncio.run(shared())


async def test_a_close_during_a_call_ends_its_retries() -> None:
    def closing(_request: object) -> Reply:
        client.close()
        return RESET

    async with faulty_server(closing) as server:
        client = Keyman(server.address, TOKEN)
        with pytest.raises(ClientClosed):
            await asyncio.to_thread(client.services)
    assert len(server.requests) == 1


async def test_a_closed_fake_raises_as_well() -> None:
    fake, other = FakeResolver(), AsyncFakeResolver()
    key_id = fake.add(VALUE, user_id=7, service="OPENAI").key_id
    fake.close()
    await other.aclose()
    with pytest.raises(ClientClosed):
        fake.resolve(key_id=key_id)
    with pytest.raises(ClientClosed):
        fake.report(key_id, "refused")
    with pytest.raises(ClientClosed):
        await other.portal_link(subject="user-42")


# --- words that a type checker knows


def test_the_literals_are_the_servers_words() -> None:
    assert get_args(KeyStatus) == tuple(Status)
    assert get_args(Verdict) == tuple(verdicts.Verdict)
    assert set(get_args(Sort)) == set(Order)


async def test_words_of_a_newer_server_leave_a_listing_readable(kind: Kind) -> None:
    newer = {**KEY, "status": "suspended", "check": {**CHECK, "verdict": "leaked"}}
    async with faulty_server([answer([newer])]) as server, keyman(kind, server.address) as client:
        (key,) = await client.all("keys")
    assert (key.status, key.check.verdict) == ("suspended", "leaked")
