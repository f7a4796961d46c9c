"""Bodies and answers pass through as they arrive, and end when they must. The tests assert the order, not the time."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.clock import now
from keyman.errors import DatabaseUnavailable
from keyman.identity import applications, standing, users
from keyman.planes.gateway import streams
from keyman.storage.statements import Query
from keyman.values import ApplicationName, EmailAddress
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import CHAT, Scene, renewed, scene_at
from tests.planes.gateway.talk import Talk
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

EVENT = b"data: {}\n\n"

MEGABYTE = 1024 * 1024


class Steps:
    """A provider that begins an answer, and sends an event each time that `go` is released."""

    def __init__(self, scene: Scene) -> None:
        self.asked, self.go, self.gone = asyncio.Event(), asyncio.Semaphore(0), asyncio.Event()
        scene.provider.handler = self

    async def __call__(self, incoming: Incoming) -> None:
        await incoming.rest()
        self.asked.set()
        await incoming.begin("content-type: text/event-stream")
        watching = asyncio.create_task(incoming.closed())
        watching.add_done_callback(lambda _: self.gone.set())
        try:
            while True:
                await self.go.acquire()
                await incoming.event(EVENT)
        finally:
            watching.cancel()


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):  # ten times the second within which it must happen
        await event.wait()


async def test_event_n_plus_1_is_sent_after_event_n_was_read(gateway: Scene) -> None:
    steps = Steps(gateway)
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    for _ in range(20):
        steps.go.release()
        assert await talk.part() == EVENT
        assert talk.outbox.empty()
    talk.leave()
    await soon(steps.gone)


async def test_the_headers_are_sent_before_the_body_arrives(gateway: Scene) -> None:
    """The server sends them with the first part of the body, so that is an empty one."""
    steps = Steps(gateway)
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    async with asyncio.timeout(10):
        first = await talk.outbox.get()
    assert (first["body"], first["more_body"]) == (b"", True)
    steps.go.release()
    assert await talk.part() == EVENT
    talk.leave()
    await soon(steps.gone)


async def test_a_short_answer_is_one_part(gateway: Scene) -> None:
    """It costs a message less."""
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    assert await talk.ended() is None
    assert [message["body"] for message in (talk.outbox.get_nowait() for _ in range(talk.outbox.qsize()))] == [
        b'{"ok":true}'
    ]


async def test_an_end_that_arrives_while_a_part_waits_for_the_client_is_passed_on(gateway: Scene) -> None:
    go, end = asyncio.Event(), asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin("content-type: text/event-stream")
        await go.wait()
        await incoming.event(EVENT)
        await end.wait()
        await incoming.event(b"")

    gateway.provider.handler = handler
    talk = gateway.talk(most=1)
    talk.give(b"")
    assert await talk.begun() == 200
    go.set()
    await asyncio.sleep(0.1)  # the event arrives, and waits: the client has not read the part before it
    end.set()
    await asyncio.sleep(0.1)  # and so does the end. Less would only make the test weaker
    assert await talk.part() == EVENT
    assert await talk.part() is None


async def test_the_first_byte_of_a_body_arrives_before_the_last_is_sent(gateway: Scene) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(incoming: Incoming) -> None:
        while part := await incoming.chunk():
            arrived.put_nowait(part)
        await incoming.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    gateway.provider.handler = handler
    talk = gateway.talk(transfer_encoding="chunked")
    for number in range(10):
        talk.give(b"part %d" % number, more=True)
        async with asyncio.timeout(10):
            assert await arrived.get() == b"part %d" % number
    talk.give(b"")
    assert await talk.begun() == 204


async def test_a_provider_may_answer_before_the_body_is_whole(gateway: Scene) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.chunk()
        await incoming.begin("content-type: text/event-stream")
        while part := await incoming.chunk():
            await incoming.event(part)
        await incoming.send(b"0\r\n\r\n")

    gateway.provider.handler = handler
    talk = gateway.talk(transfer_encoding="chunked")
    talk.give(b"first", more=True)
    assert await talk.begun() == 200
    for number in range(3):
        talk.give(b"part %d" % number, more=True)
        assert await talk.part() == b"part %d" % number
    talk.give(b"")
    assert await talk.part() is None


async def test_a_body_with_a_length_keeps_it(gateway: Scene) -> None:
    talk = gateway.talk(content_length="10")
    talk.give(b"01234", more=True)
    talk.give(b"56789")
    assert await talk.begun() == 200
    (sent,) = gateway.provider.requests
    assert (sent.all_of("content-length"), sent.all_of("transfer-encoding")) == (["10"], [])
    assert sent.body == b"0123456789"


async def test_a_slow_reader_slows_the_provider_down(gateway: Scene) -> None:
    """The provider can send no more than what the buffers between the two hold."""
    sent = 0

    async def handler(incoming: Incoming) -> None:
        nonlocal sent
        await incoming.rest()
        await incoming.begin()
        while True:
            await incoming.event(b"x" * 65536)
            sent += 65536

    gateway.provider.handler = handler
    talk = gateway.talk(most=1)
    talk.give(b"")
    await talk.begun()
    before = -1
    async with asyncio.timeout(30):
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
    assert sent < 20 * 1024 * 1024
    for _ in range(20):
        await talk.part()
    talk.leave()
    await talk.part()
    talk.task.cancel()
    await asyncio.wait({talk.task})


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_leaves_closes_the_connection_to_the_provider(gateway: Scene, has_begun: bool) -> None:
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        if has_begun:
            await incoming.begin()
            await incoming.event(EVENT)
        await incoming.closed()
        gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk()
    talk.give(b"")
    if has_begun:
        await talk.begun()
        assert await talk.part() == EVENT
    else:
        while not gateway.provider.requests:
            await asyncio.sleep(0.01)
    talk.leave()
    await soon(gone)
    assert await talk.ended() is None


async def test_a_client_that_leaves_in_the_middle_of_its_body_does_so_too(gateway: Scene) -> None:
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.chunk()
        await incoming.closed()
        gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk(transfer_encoding="chunked")
    talk.give(b"x", more=True)
    while not gateway.provider.requests:
        await asyncio.sleep(0.01)
    talk.leave()
    await soon(gone)
    assert await talk.begun() == 400


async def test_a_client_that_leaves_while_the_provider_takes_nothing_does_so_too(gateway: Scene) -> None:
    """Nobody reads the body then. The worker looks at the connection."""
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        incoming.takes_nothing()
        await incoming.reset()
        gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk(transfer_encoding="chunked")
    for _ in range(48):
        talk.give(b"x" * MEGABYTE, more=True)
    while not gateway.provider.requests:
        await asyncio.sleep(0.01)
    before = -1
    while talk.inbox.qsize() != before:
        before = talk.inbox.qsize()
        await asyncio.sleep(0.3)
    gateway.app.clients_left({("192.0.2.7", 2)})
    await asyncio.sleep(0)
    assert not gone.is_set()
    assert not talk.task.done()
    gateway.app.clients_left({("192.0.2.7", 1)})
    await soon(gone)
    assert await talk.ended() is None
    assert talk.inbox.qsize() > 0


@pytest.mark.parametrize("leaves", [True, False])
async def test_an_answer_that_has_begun_ends_with_a_body_that_does_not(gateway: Scene, leaves: bool) -> None:
    """Also if the provider waits for the rest of the body and sends nothing."""
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.chunk()
        await incoming.begin()
        await incoming.event(EVENT)
        await incoming.closed()
        gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk(transfer_encoding="chunked")
    talk.give(b"x", more=True)
    assert await talk.begun() == 200
    assert await talk.part() == EVENT
    if leaves:
        talk.leave()
    else:
        talk.give(b"x" * 70_000_000, more=True)  # more than a body may have
    await soon(gone)
    assert await talk.was_cut()


@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_answer_before_the_end_of_the_body_says_that_it_ends_the_connection(
    gateway: Scene, is_whole: bool
) -> None:
    """Otherwise an SDK sends its next request on a connection that has ended."""

    async def at_once(incoming: Incoming) -> None:
        await (incoming.rest() if is_whole else incoming.chunk())
        await incoming.send(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
        incoming.writer.close()

    gateway.provider.handler = at_once
    talk = gateway.talk(transfer_encoding="chunked")
    talk.give(b"x", more=True)
    if is_whole:
        talk.give(b"")
    assert await talk.begun() == 413
    assert talk.header("connection") == (None if is_whole else "close")
    assert await talk.ended() is None


async def revoke_application(scene: Scene) -> None:
    await applications.revoke(scene.pair.management.database, ApplicationName(scene.application.name))


async def disable_owner(scene: Scene) -> None:
    email = (await scene.owner.client.get("/api/auth/me")).json()["email"]
    await users.disable(scene.pair.management.database, EmailAddress(email))


async def delete_owner(scene: Scene) -> None:
    from_page = await scene.owner.client.request(
        "DELETE", "/api/auth/me", json={"current_password": "correct horse battery staple"}
    )
    assert from_page.status_code == 204, from_page.text


async def block_application(scene: Scene) -> None:
    assert (await scene.owner.client.put(await scene.pair.block_of(scene.application))).status_code == 204


@pytest.mark.parametrize("end", [revoke_application, disable_owner, delete_owner, block_application])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_an_answer_ends_when_its_caller_or_the_owner_may_no_longer_act(
    gateway: Scene, end: object, has_begun: bool
) -> None:
    assert callable(end)
    gone = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        if has_begun:
            await incoming.begin()
            await incoming.event(EVENT)
        await incoming.closed()
        gone.set()

    gateway.provider.handler = handler
    talk = gateway.talk()
    talk.give(b"")
    if has_begun:
        await talk.begun()
        assert await talk.part() == EVENT
    else:
        while not gateway.provider.requests:
            await asyncio.sleep(0.01)
    await end(gateway)
    await soon(gone)
    if has_begun:
        assert await talk.was_cut()
    else:
        assert await talk.begun() == (404 if end is block_application else 401)


async def test_an_answer_for_a_personal_token_ends_with_it(gateway: Scene) -> None:
    made = await gateway.owner.client.post("/api/tokens", json={"name": "editor", "scopes": ["keys:use"]})
    steps = Steps(gateway)
    talk = Talk(gateway.app, "POST", CHAT, {"authorization": f"Bearer {made.json()['token']}"})
    talk.give(b"")
    await talk.begun()
    assert (await gateway.owner.client.delete(f"/api/tokens/{made.json()['id']}")).status_code == 204
    await soon(steps.gone)
    assert await talk.was_cut()


async def test_an_answer_for_a_personal_token_ends_when_the_token_expires(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = now() + timedelta(hours=1)
    wanted = {"name": "editor", "scopes": ["keys:use"], "expires_at": expires_at.isoformat()}
    made = await gateway.owner.client.post("/api/tokens", json=wanted)
    assert made.status_code == 201, made.text
    steps = Steps(gateway)
    talk = Talk(gateway.app, "POST", CHAT, {"authorization": f"Bearer {made.json()['token']}"})
    talk.give(b"")
    assert await talk.begun() == 200
    assert not steps.gone.is_set()
    monkeypatch.setattr(standing, "now", lambda: expires_at)
    await soon(steps.gone)
    assert await talk.was_cut()


async def test_an_answer_for_a_token_that_was_rotated_ends_with_the_overlap(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(gateway)
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    name = ApplicationName(gateway.application.name)
    await applications.rotate(gateway.pair.management.database, name, timedelta(hours=1))
    await asyncio.sleep(2 * streams.INTERVAL)  # it was checked by then. Less would only make the test weaker
    assert not steps.gone.is_set()
    monkeypatch.setattr(standing, "now", lambda: now() + timedelta(hours=1))
    await soon(steps.gone)
    assert await talk.was_cut()


async def test_an_answer_that_breaks_off_is_cut(gateway: Scene) -> None:
    for content in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ):
        gateway.provider.answers(content)
        answer = await gateway.post()
        assert answer.status == 200
        assert not answer.is_whole


async def test_answers_may_go_on_for_a_while_after_sigterm_and_then_end(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, drain=2.0) as scene:
        steps = Steps(scene)
        talk = scene.talk()
        talk.give(b"")
        assert await talk.begun() == 200
        scene.app.is_draining = True
        steps.go.release()
        assert await talk.part() == EVENT
        assert not steps.gone.is_set()
        await asyncio.wait_for(steps.gone.wait(), 70)
        assert await talk.was_cut()


@pytest.mark.parametrize("fault", [DatabaseUnavailable, ValueError])
async def test_answers_end_if_nobody_knows_whether_their_callers_may_still_act(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    monkeypatch.setattr(streams, "GRACE", 0.5)
    steps = Steps(gateway)
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200

    async def away(*_arguments: object) -> None:
        raise fault

    monkeypatch.setattr(streams, "_check", away)
    await soon(steps.gone)
    assert await talk.was_cut()


async def test_the_callers_of_all_answers_are_checked_by_one_query_of_a_kind(
    gateway: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[tuple[int, int]] = []
    queries: ContextVar[list[object] | None] = ContextVar("queries", default=None)
    check, all_rows = streams._check, Query.all

    async def counted_check(db: Any, opened: Any) -> None:
        mine: list[object] = []
        queries.set(mine)
        await check(db, opened)
        queries.set(None)
        counts.append((len(opened), len(mine)))

    async def counted_query(self: Query[Any], *arguments: Any, **named: Any) -> Any:
        if (mine := queries.get()) is not None:
            mine.append(self)
        return await all_rows(self, *arguments, **named)

    monkeypatch.setattr(streams, "_check", counted_check)
    monkeypatch.setattr(Query, "all", counted_query)
    several = [await renewed(gateway) for _ in range(8)]
    Steps(gateway)
    talks = []
    for scene in several:
        talks.append(scene.talk())
        talks[-1].give(b"")
        assert await talks[-1].begun() == 200
    async with asyncio.timeout(10):
        while not counts or counts[-1][0] != len(talks):
            await asyncio.sleep(0.05)
    last = counts[-1]  # while they leave, another check counts fewer
    for talk in talks:
        talk.leave()
        await talk.ended()
    assert last == (8, 3)  # applications, accounts of the owners, and what these have blocked
