"""The fake resolvers: they answer as the clients do and show no value."""

from __future__ import annotations

import asyncio
import doctest
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyman.client import (
    AsyncResolver,
    AsyncResolverProtocol,
    NotFound,
    Resolved,
    Resolver,
    ResolverProtocol,
    Undecryptable,
)
from keyman.testing import AsyncFakeResolver, FakeResolver, ResolveCall
from keyman.testing import resolver as module
from tests.client.asking import HERS, TOKEN, VALUE

Fake = FakeResolver | AsyncFakeResolver


@pytest.fixture(params=[FakeResolver, AsyncFakeResolver])
def fake(request: pytest.FixtureRequest) -> Fake:
    made: Fake = request.param()
    return made


def resolve(fake: Fake, **named: Any) -> Resolved:
    return fake.resolve(**named) if isinstance(fake, FakeResolver) else asyncio.run(fake.resolve(**named))


@pytest.mark.parametrize(("client", "stand_in"), [(Resolver, FakeResolver), (AsyncResolver, AsyncFakeResolver)])
def test_a_fake_has_every_method_of_its_client(client: type, stand_in: type) -> None:
    methods = {name for name, _ in inspect.getmembers(client, inspect.isfunction) if not name.startswith("_")}
    for name in methods | {
        name for name in vars(client) if name in ("__enter__", "__exit__", "__aenter__", "__aexit__")
    }:
        real, faked = getattr(client, name), getattr(stand_in, name)
        assert inspect.signature(faked) == inspect.signature(real), name
        assert inspect.iscoroutinefunction(faked) == inspect.iscoroutinefunction(real), name


def test_a_client_and_its_fake_are_what_the_protocol_asks_for() -> None:
    """The type checker compares the methods; here they run."""
    with Resolver("https://resolver.example.com", TOKEN) as client, FakeResolver() as fake:
        resolvers: list[ResolverProtocol] = [client, fake]
        for resolver in resolvers:
            resolver.forget(**HERS)
            resolver.close()

    async def close() -> None:
        async with AsyncResolver("https://resolver.example.com", TOKEN) as client, AsyncFakeResolver() as fake:
            resolvers: list[AsyncResolverProtocol] = [client, fake]
            for resolver in resolvers:
                resolver.forget(**HERS)
                await resolver.aclose()

    asyncio.run(close())


@pytest.mark.parametrize(
    ("protocol", "kinds"),
    [(ResolverProtocol, (Resolver, FakeResolver)), (AsyncResolverProtocol, (AsyncResolver, AsyncFakeResolver))],
)
def test_a_protocol_has_every_method_of_the_client(protocol: type, kinds: tuple[type, ...]) -> None:
    methods = {name for name, _ in inspect.getmembers(kinds[0], inspect.isfunction) if not name.startswith("_")}
    assert methods == {
        name for name in vars(protocol) if inspect.isfunction(getattr(protocol, name)) and name[0] != "_"
    }
    for name in methods - {"resolve"}:  # whose signature at run time is that of its last overload
        for kind in kinds:
            assert inspect.signature(getattr(kind, name)) == inspect.signature(getattr(protocol, name)), name


def test_the_examples_in_the_docstrings_run() -> None:
    found = doctest.testmod(module)
    assert found.attempted > 8
    assert found.failed == 0


def test_a_key_comes_by_its_user_and_service_or_by_its_id(fake: Fake) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    added = fake.add(VALUE, **HERS, expires_at=later)
    for which in (HERS, {"key_id": added.key_id}):
        resolved = resolve(fake, **which)
        assert resolved.reveal() == VALUE
        assert (resolved.user_id, resolved.service, resolved.expires_at) == (7, "OPENAI", later)


def test_the_newest_active_key_of_a_user_is_found(fake: Fake) -> None:
    fake.add("sk-the-older-one", **HERS)
    newer = fake.add(VALUE, **HERS)
    fake.add("sk-expired", **HERS, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    fake.add_undecryptable(**HERS)
    assert resolve(fake, **HERS).key_id == newer.key_id
    fake.remove(newer.key_id)
    assert resolve(fake, **HERS).reveal() == "sk-the-older-one"


@pytest.mark.parametrize(
    "which", [{"key_id": 99}, {"user_id": 8, "service": "OPENAI"}, {"user_id": 7, "service": "ANTHROPIC"}]
)
def test_an_unknown_key_is_not_found(fake: Fake, which: dict[str, Any]) -> None:
    fake.add(VALUE, **HERS)
    with pytest.raises(NotFound) as caught:
        resolve(fake, **which)
    assert (caught.value.status, caught.value.slug) == (404, "not-found")


def test_an_expired_or_removed_key_is_not_found(fake: Fake) -> None:
    expired = fake.add(VALUE, **HERS, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    removed = fake.add(VALUE, **HERS)
    fake.remove(removed.key_id)
    for which in ({"key_id": expired.key_id}, {"key_id": removed.key_id}, HERS):
        with pytest.raises(NotFound):
            resolve(fake, **which)


def test_an_undecryptable_key_has_the_clients_error(fake: Fake) -> None:
    key_id = fake.add_undecryptable(**HERS)
    for which in (HERS, {"key_id": key_id}):
        with pytest.raises(Undecryptable) as caught:
            resolve(fake, **which)
        assert (caught.value.status, caught.value.slug) == (409, "undecryptable")


@pytest.mark.parametrize("which", [{}, {"user_id": 7}, {"service": "OPENAI"}, {"key_id": 1, "user_id": 7}])
def test_what_names_no_key_is_refused_as_by_the_client(fake: Fake, which: dict[str, Any]) -> None:
    with Resolver("http://localhost", TOKEN) as client, pytest.raises(TypeError) as real:
        client.resolve(**which)
    with pytest.raises(TypeError) as faked:
        resolve(fake, **which)
    assert str(faked.value) == str(real.value)
    assert fake.calls == []


def test_calls_are_recorded_also_those_that_are_refused(fake: Fake) -> None:
    fake.add(VALUE, **HERS)
    resolve(fake, **HERS, purpose="Answer to a chat")
    with pytest.raises(NotFound):
        resolve(fake, key_id=99)
    assert fake.calls == [ResolveCall(None, 7, "OPENAI", "Answer to a chat"), ResolveCall(99, None, None, None)]


def test_no_value_is_shown(fake: Fake) -> None:
    added = fake.add(VALUE, **HERS)
    resolve(fake, **HERS)
    assert VALUE not in f"{fake!r} {fake} {fake.calls} {added!r} {vars(fake)}"


@pytest.mark.parametrize("value", ["short", f"{VALUE} {VALUE}", f"{VALUE}\n", "ключ-длинный", "x" * 8193, "{", '["x"]'])
def test_a_value_that_no_server_gives_is_refused_and_not_repeated(fake: Fake, value: str) -> None:
    with pytest.raises(ValueError, match="value must") as caught:
        fake.add(value, **HERS)
    assert value not in str(caught.value)


def test_an_expiry_without_a_time_zone_is_refused(fake: Fake) -> None:
    with pytest.raises(ValueError, match="time zone"):
        fake.add(VALUE, **HERS, expires_at=datetime(2030, 1, 1))  # noqa: DTZ001  # without a zone on purpose


def test_forgetting_keeps_the_keys(fake: Fake) -> None:
    fake.add(VALUE, **HERS)
    fake.forget()
    fake.forget(**HERS)
    assert resolve(fake, **HERS).reveal() == VALUE
    with pytest.raises(TypeError, match="either key_id"):
        fake.forget(user_id=7)


def test_leaving_the_block_closes_it() -> None:
    with FakeResolver() as fake:
        inside = fake.is_closed
    assert (inside, fake.is_closed) == (False, True)

    async def leave() -> AsyncFakeResolver:
        async with AsyncFakeResolver() as fake:
            assert not fake.is_closed
        return fake

    assert asyncio.run(leave()).is_closed
