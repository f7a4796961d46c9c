"""The management plane's clients, against the real plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from keyman.client import (
    Application,
    Forbidden,
    InvalidRequest,
    Key,
    NewKey,
    NotFound,
    PreconditionFailed,
    Secret,
    Unauthenticated,
)
from tests.client.asking import TOKEN, Asked, keyman
from tests.planes.management.api.harness import OPENAI_KEY, STATUSES
from tests.planes.resolver.pair import Pair
from tests.providers.pastes import BODY, PASTES
from tests.support.planes import ORIGIN

pytestmark = pytest.mark.anyio

OTHER_KEY = "sk-Zt81LqoPw5aYc3hVn6Xe9876"

ALL = ["keys:read", "keys:write", "audit:read"]


class Losing(httpx.AsyncBaseTransport):
    """Passes requests on to the plane, and loses the first answers on the way back."""

    def __init__(self, inner: httpx.AsyncBaseTransport, losses: int) -> None:
        self._inner = inner
        self._losses = losses
        self.answers: list[httpx.Response] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        self.answers.append(answer)
        if len(self.answers) <= self._losses:
            raise httpx.ReadError("lost")
        return answer


@asynccontextmanager
async def script(pair: Pair, *scopes: str, losses: int = 0) -> AsyncIterator[Asked]:
    """The client of a new user, with a token of theirs."""
    owner = await pair.management.user()
    made = await owner.post("/api/tokens", json={"name": "test", "scopes": list(scopes) or ALL})
    transport = Losing(httpx.ASGITransport(pair.management.app), losses)
    async with keyman("async", ORIGIN, made.json()["token"], transport=transport) as client:
        client.answers = transport.answers  # type: ignore[attr-defined]
        yield client


async def test_every_paste_is_stored_or_its_mistake_is_named(pair: Pair) -> None:
    async with script(pair) as client:
        for paste in PASTES:
            if paste.message is None:
                assert (await client("add", paste.service, paste.text)).status == "active"
                continue
            with pytest.raises(InvalidRequest) as refused:
                await client("add", paste.service, paste.text)
            assert refused.value.errors == (("api_key", paste.message),)
            assert BODY not in str(refused.value)


async def test_a_value_that_cannot_be_sent_is_refused_without_being_repeated(pair: Pair) -> None:
    async with script(pair) as client:
        with pytest.raises(ValueError, match="lone surrogate") as refused:
            await client("add", "OPENAI", f"{BODY}\ud800")
        assert BODY not in str(refused.value)
        assert refused.value.__context__ is None


async def test_a_key_is_stored_listed_replaced_paused_and_deleted(pair: Pair) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    async with script(pair) as client:
        key: Key = await client("add", "OPENAI", Secret(OPENAI_KEY), name="chat", expires_at=later)
        assert (key.last_4_chars, key.status, key.expires_at, key.name) == ("sk-...1234", "active", later, "chat")
        assert await client.all("keys") == [Key(**{**fields(key), "etag": None})]
        replaced: Key = await client("replace", key, OTHER_KEY)
        assert (replaced.last_4_chars, replaced.name, replaced.expires_at) == ("sk-...9876", "chat", later)
        paused: Key = await client("change", replaced, disabled=True, name=None)
        assert (paused.status, paused.name, paused.expires_at) == ("disabled", None, later)
        assert await client("get", key.id) == paused
        await client("delete", paused)
        with pytest.raises(NotFound):
            await client("get", key.id)
        actions = [entry.action for entry in await client.all("audit") if entry.key_id == key.id]
        assert actions == ["key.delete", "key.pause", "key.change", "key.replace", "key.create"]


def fields(key: Key) -> dict[str, Any]:
    return {name: getattr(key, name) for name in key.__struct_fields__}


async def test_a_key_that_has_changed_since_it_was_read_is_not_written(pair: Pair) -> None:
    async with script(pair) as client:
        read: Key = await client("add", "OPENAI", OPENAI_KEY)
        await client("change", read.id, name="by somebody else")
        for method, arguments, named in (
            ("replace", (read, OTHER_KEY), {}),
            ("change", (read,), {"disabled": True}),
            ("delete", (read,), {}),
        ):
            with pytest.raises(PreconditionFailed):
                await client(method, *arguments, **named)
        (listed,) = await client.all("keys")
        assert (listed.name, listed.last_4_chars) == ("by somebody else", "sk-...1234")
        await client("delete", listed)  # of a listing: the last write wins


async def test_a_key_whose_answer_was_lost_is_stored_once(pair: Pair) -> None:
    async with script(pair, losses=2) as client:
        key = await client("add", "OPENAI", OPENAI_KEY)
        assert await client.all("keys") == [Key(**{**fields(key), "etag": None})]
        assert [answer.headers.get("idempotent-replayed") for answer in client.answers[:3]] == [None, "true", "true"]  # type: ignore[attr-defined]
        await client("add", "OPENAI", OPENAI_KEY)
        assert len(await client.all("keys")) == 2


async def test_several_keys_are_stored_in_one_call_each_with_its_own_outcome(pair: Pair) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    keys = [
        NewKey("OPENAI", OPENAI_KEY, name="chat", expires_at=later),
        NewKey("OPENAI", "short"),
        NewKey("AWS_BEDROCK", Secret(f"ABSK{BODY}"), settings={"region": "us-east-1"}),
    ]
    async with script(pair, losses=1) as client:
        first, wrong, last = await client("add_all", keys)
        assert (first.name, first.expires_at, first.last_4_chars) == ("chat", later, "sk-...1234")
        assert last.settings == {"region": "us-east-1"}
        assert isinstance(wrong, InvalidRequest)
        assert [fault.field for fault in wrong.errors] == ["api_key"]
        assert await client.all("keys") == [last, first]
        assert [answer.headers.get("idempotent-replayed") for answer in client.answers[:2]] == [None, "true"]  # type: ignore[attr-defined]
        for number in (0, 51):
            with pytest.raises(InvalidRequest) as refused:
                await client("add_all", [NewKey("OPENAI", OPENAI_KEY)] * number)
            assert [fault.field for fault in refused.value.errors] == ["keys"]
        with pytest.raises(ValueError, match="lone surrogate") as odd:
            await client("add_all", [NewKey("OPENAI", f"{BODY}\ud800")])
        assert BODY not in repr(odd.value)


async def test_a_listing_goes_through_all_its_pages(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyman.client.calls.PAGE", 2)
    async with script(pair) as client:
        for service, name in (("OPENAI", "a"), ("MISTRAL", "b"), ("OPENAI", "c & d"), ("OPENAI", "e"), ("OPENAI", "f")):
            await client("add", service, OPENAI_KEY, name=name)
        assert [key.name for key in await client.all("keys")] == ["f", "e", "c & d", "b", "a"]
        assert [key.name for key in await client.all("keys", service="OPENAI")] == ["f", "e", "c & d", "a"]
        assert [key.name for key in await client.all("keys", q="&")] == ["c & d"]
        entries = await client.all("audit")
        assert [entry.id for entry in entries] == sorted({entry.id for entry in entries}, reverse=True)
        stored = [entry for entry in entries if entry.key_id]
        assert len(stored) == 5
        assert await client.all("audit", action="key.create") == stored
        assert await client.all("audit", action="key.create", since=stored[3].at, until=stored[0].at) == stored[1:4]


async def test_the_catalogue_is_read(pair: Pair) -> None:
    async with script(pair) as client:
        assert {"OPENAI": "OpenAI"}.items() <= {one.service: one.name for one in await client("services")}.items()


async def test_applications_are_listed_and_the_token_revokes_itself(pair: Pair) -> None:
    async with script(pair) as client:
        (openai, *_) = [one for one in await client("services") if one.service == "OPENAI"]
        assert openai.prefixes == ("sk-",)
        assert "sk-proj-" in openai.exclusive_prefixes
        await pair.app("OPENAI", "GROQ", name="chat-of-the-client")
        applications: list[Application] = await client("applications")
        (found,) = [one for one in applications if one.name == "chat-of-the-client"]
        assert (found.services, found.last_used_at, found.blocked) == (("OPENAI", "GROQ"), None, False)
        await client("revoke")
        with pytest.raises(Unauthenticated):
            await client("services")


async def test_what_the_plane_refuses_has_a_name(pair: Pair) -> None:
    async with script(pair, "keys:read") as client:
        with pytest.raises(Forbidden):
            await client("add", "OPENAI", OPENAI_KEY)
    async with script(pair) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client("add", "OPENAI", "short")
        assert [fault.field for fault in caught.value.errors] == ["api_key"]
        assert caught.value.status == STATUSES["invalid-request"]
        with pytest.raises(ValueError, match="lone surrogate") as odd:
            await client("add", "OPENAI", "sk-\ud800cAnArY")
        assert "cAnArY" not in repr(odd.value)
    async with keyman("async", ORIGIN, TOKEN, transport=httpx.ASGITransport(pair.management.app)) as stranger:
        with pytest.raises(Unauthenticated):
            await stranger("services")
