"""Checks, reports and counts through the client: against the real planes, and against servers that answer nonsense."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyman.client import BadAnswer, Conflict, Key, NewKey, NotFound, RateLimited, Unreachable
from keyman.testing import AsyncFakeResolver, FakeResolver, ReportCall
from tests.client.asking import Kind, keyman, resolver
from tests.client.test_management import script
from tests.client.test_resolver import asking
from tests.planes.management.api.harness import OPENAI_KEY
from tests.planes.resolver.pair import Pair
from tests.support.http import Reply, answer, faulty_server

pytestmark = pytest.mark.anyio

CHECK = {
    "verdict": "refused",
    "checked_at": "2023-10-27T10:00:00Z",
    "detail": "The provider says that this key is not valid. Replace it.",
    "by": "keyman",
}
KEY: dict[str, Any] = {
    "id": 3,
    "service": "OPENAI",
    "name": None,
    "last_4_chars": "sk-...1234",
    "status": "active",
    "created_at": "2023-10-27T10:00:00Z",
    "updated_at": "2023-10-27T10:00:00Z",
    "check": CHECK,
}


async def test_an_application_reports_on_a_key_and_its_owner_sees_it(pair: Pair) -> None:
    owner, app = await pair.owner(), await pair.app()
    key_id = await owner.key()
    async with asking(pair, app) as client:
        with pytest.raises(NotFound):
            await client("report", key_id, "refused")  # it has not got the key
        key = await client.resolve(key_id=key_id)
        assert await client("report", key, "no-credit") is None
        with pytest.raises(RateLimited):
            await client("report", key_id, "refused")
    shown = (await owner.client.get(f"/api/keys/{key_id}")).json()["check"]
    assert (shown["verdict"], shown["by"]) == ("no-credit", app.name)


async def test_an_entry_of_a_batch_that_came_too_soon_says_when_to_send_it_again(kind: Kind) -> None:
    problem = {
        "type": "/problems/rate-limited",
        "status": 429,
        "detail": "There are too many changes.",
        "request_id": "9f3c",
        "retry_after": 17,
    }
    added = [{"status": 201, "key": KEY}, {"status": 429, "problem": problem}]
    async with faulty_server([answer(added)]) as server, keyman(kind, server.address) as client:
        key, refused = await client("add_all", [NewKey("OPENAI", OPENAI_KEY)] * 2)
    assert isinstance(key, Key)
    assert isinstance(refused, RateLimited)
    assert refused.retry_after == 17


async def test_keys_are_counted_and_listed_by_their_verdict(pair: Pair) -> None:
    async with script(pair) as client:
        for service in ("OPENAI", "OPENAI", "MISTRAL"):
            key: Key = await client("add", service, OPENAI_KEY)
        assert (await client("count"), await client("count", service="OPENAI")) == (3, 2)
        assert await client("count", check="refused") == 0
        await pair.change(key.id, check_verdict="refused", checked_at=key.created_at, checked_by="use")
        assert await client("count", check="refused", status="active", q="Mistral") == 1
        (listed,) = await client.all("keys", check="refused")
        assert listed.id == key.id
        assert listed.check.verdict == "refused"


async def test_a_check_where_there_are_none_is_a_conflict(pair: Pair) -> None:
    async with script(pair) as client:
        key = await client("add", "OPENAI", OPENAI_KEY)
        with pytest.raises(Conflict):
            await client("check", key)


async def test_a_check_returns_the_key_and_is_sent_once(kind: Kind) -> None:
    async with (
        faulty_server([Reply(200, json.dumps(KEY).encode(), {"ETag": '"abc"'})]) as server,
        keyman(kind, server.address) as client,
    ):
        key = await client("check", 3)
        assert (key.check.verdict, key.check.by, key.etag) == ("refused", "keyman", '"abc"')
        assert [(one.method, one.target) for one in server.requests] == [("POST", "/api/keys/3/check")]


async def test_a_check_and_a_report_are_not_repeated_when_their_answer_is_lost(kind: Kind) -> None:
    for make, method, arguments in ((keyman, "check", (3,)), (resolver, "report", (3, "refused"))):
        async with faulty_server([Reply(raw=b"", then="close")]) as server, make(kind, server.address) as client:
            with pytest.raises(Unreachable):
                await client(method, *arguments)
            assert len(server.requests) == 1


@pytest.mark.parametrize("count", [None, "", "-1", "1.5", "x", "9" * 19])
async def test_an_answer_without_a_count_is_refused(kind: Kind, count: str | None) -> None:
    fields = {} if count is None else {"Keyman-Total-Count": count}
    async with faulty_server([Reply(200, b"[]", fields)]) as server, keyman(kind, server.address) as client:
        with pytest.raises(BadAnswer):
            await client("count")


async def test_an_id_that_is_none_is_sent_nowhere() -> None:
    async with resolver("async", "http://127.0.0.1:1") as client:
        with pytest.raises(TypeError):
            await client("report", "1", "refused")


async def test_the_fakes_remember_reports() -> None:
    fake, other = FakeResolver(), AsyncFakeResolver()
    key = fake.add("sk-made-up", user_id=7, service="OPENAI")
    fake.report(key, "refused")
    fake.report(key.key_id, "accepted")
    with pytest.raises(NotFound):
        fake.report(99, "refused")
    assert fake.reports == [ReportCall(1, "refused"), ReportCall(1, "accepted"), ReportCall(99, "refused")]
    await other.report(other.add("sk-made-up", user_id=7, service="OPENAI"), "no-credit")
    assert other.reports == [ReportCall(1, "no-credit")]
