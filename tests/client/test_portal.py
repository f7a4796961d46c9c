"""Portal links and subjects through the client: against the real plane, and against servers that answer nonsense."""

from __future__ import annotations

from typing import Any

import pytest

from keyman.client import BadAnswer, Forbidden, InvalidRequest, NotFound, PortalLink
from keyman.identity.applications import Users
from keyman.identity.return_urls import ReturnUrl
from keyman.testing import AsyncFakeResolver, FakeResolver, PortalCall
from tests.client.asking import GIVEN, VALUE, Kind, given, resolver
from tests.client.test_resolver import asking
from tests.planes.resolver.pair import Pair
from tests.support.http import answer, faulty_server

pytestmark = pytest.mark.anyio

PORTAL = Users(return_urls=(ReturnUrl("https://shop.example.com/"),))
LINK = {"url": "https://keys.example.com/portal/c0de", "expires_at": "2030-01-31T00:05:00Z", "user_id": 7}


async def test_a_link_comes_from_the_real_plane(pair: Pair) -> None:
    shop, plain = await pair.app(users=PORTAL), await pair.app()
    async with asking(pair, shop) as client:
        link = await client("portal_link", subject="user-42", return_url="https://shop.example.com/keys", name="Ada")
        assert "/portal/" in link.url
        assert link.url not in repr(link)
        assert (await client("portal_link", subject="user-42")).user_id == link.user_id
        with pytest.raises(InvalidRequest):
            await client("portal_link", subject="user-42", return_url="https://evil.example/")
        with pytest.raises(NotFound):
            await client.resolve(subject="user-42", service="OPENAI")
    async with asking(pair, plain) as client:
        with pytest.raises(Forbidden):
            await client("portal_link", subject="user-42")


async def test_a_key_by_a_subject_must_be_the_one_that_was_asked_for(kind: Kind) -> None:
    replies = [given(subject="user-42"), given(subject="other"), answer(GIVEN)]
    async with faulty_server(replies) as server, resolver(kind, server.address) as client:
        resolved = await client.resolve(subject="user-42", service="OPENAI", issuer="keyman:app:shop")
        assert (resolved.reveal(), resolved.subject) == (VALUE, "user-42")
        for _ in range(2):
            with pytest.raises(BadAnswer):
                await client.resolve(subject="user-42", service="OPENAI")


@pytest.mark.parametrize(
    "changed",
    [{"url": "javascript:alert(1)"}, {"url": "https://a b"}, {"expires_at": "2030-01-31T00:05:00"}, {"url": 7}],
)
async def test_a_link_that_is_none_is_refused(kind: Kind, changed: dict[str, Any]) -> None:
    replies = [answer(LINK, 201), answer({**LINK, **changed}, 201)]
    async with faulty_server(replies) as server, resolver(kind, server.address) as client:
        assert isinstance(await client("portal_link", subject="user-42"), PortalLink)
        with pytest.raises(BadAnswer):
            await client("portal_link", subject="user-42")


@pytest.mark.parametrize(
    "which",
    [
        {"subject": "a"},
        {"subject": "a", "service": "OPENAI", "user_id": 7},
        {"subject": "a", "key_id": 1},
        {"user_id": 7, "service": "OPENAI", "issuer": "i"},
        {"key_id": 1, "issuer": "i"},
    ],
)
async def test_a_key_is_named_in_one_way(which: dict[str, Any]) -> None:
    async with resolver("async", "http://127.0.0.1:1") as client:
        with pytest.raises(TypeError):
            await client.resolve(**which)
    with pytest.raises(TypeError):
        FakeResolver().resolve(**which)


async def test_the_fakes_know_subjects_and_make_links() -> None:
    fake = FakeResolver()
    link = fake.portal_link(subject="user-42", name="Ada")
    assert fake.portal_calls == [PortalCall("user-42", None, None, "Ada")]
    with pytest.raises(NotFound):
        fake.resolve(subject="user-42", service="OPENAI")
    fake.add("sk-made-up", user_id=link.user_id, service="OPENAI")
    resolved = fake.resolve(subject="user-42", service="OPENAI")
    assert (resolved.reveal(), resolved.subject) == ("sk-made-up", "user-42")
    assert fake.resolve(user_id=link.user_id, service="OPENAI").subject is None
    other = AsyncFakeResolver()
    other.name("user-7", user_id=7)
    other.add("sk-made-up", user_id=7, service="OPENAI")
    assert (await other.resolve(subject="user-7", service="OPENAI")).user_id == 7
    assert (await other.portal_link(subject="user-7")).user_id == 7
