"""Tests of your own code, without a server: your function takes a resolver, and the tests give it a fake one."""

import asyncio

from keyman.client import AsyncResolverProtocol, NotFound, ResolverProtocol
from keyman.testing import AsyncFakeResolver, FakeResolver


def headers(resolver: ResolverProtocol, user_id: int) -> dict[str, str]:
    try:
        key = resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
    except NotFound:
        return {}
    return {"Authorization": f"Bearer {key.reveal()}"}


async def headers_async(resolver: AsyncResolverProtocol, user_id: int) -> dict[str, str]:
    key = await resolver.resolve(user_id=user_id, service="OPENAI", purpose="Answer to a chat")
    return {"Authorization": f"Bearer {key.reveal()}"}


def test_the_users_key_is_sent() -> None:
    resolver = FakeResolver()
    resolver.add("sk-made-up", user_id=7, service="OPENAI")
    assert headers(resolver, user_id=7) == {"Authorization": "Bearer sk-made-up"}
    assert [call.purpose for call in resolver.calls] == ["Answer to a chat"]


def test_a_user_without_a_key_sends_nothing() -> None:
    assert headers(FakeResolver(), user_id=8) == {}


def test_the_users_key_is_sent_with_asyncio() -> None:
    resolver = AsyncFakeResolver()
    resolver.add("sk-made-up", user_id=7, service="OPENAI")
    assert asyncio.run(headers_async(resolver, user_id=7)) == {"Authorization": "Bearer sk-made-up"}


if __name__ == "__main__":  # pytest finds the functions by their names; this runs them without it
    for test in (
        test_the_users_key_is_sent,
        test_a_user_without_a_key_sends_nothing,
        test_the_users_key_is_sent_with_asyncio,
    ):
        test()
        print("passed", test.__name__)
