"""Answers that stop being answers: a provider that goes on for ever, says nothing more, or sends what is not HTTP."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import make_url

from keyman import migrations
from keyman.http.connections import AT_ONCE
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import VALUE, Scene, scene_at
from tests.planes.gateway.test_checks import checking
from tests.support.logs import capture_logs
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"


TIME_OUT = 3.0
"""Seconds for which the provider of `impatient_gateway` may send nothing."""


@pytest.fixture
async def impatient_gateway(
    tmp_path: Path, provisioned: Vault, quick_passwords: PasswordHasher
) -> AsyncIterator[Scene]:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path}/keyman.db")
    await migrations.upgrade(url)
    async with scene_at(url, provisioned, quick_passwords, tmp_path, timeout=TIME_OUT) as scene:
        yield scene


class Endless:
    """A provider that begins each answer in one of several ways, and then sends the same again and again.

    A request says which way by its header `x-way`. `gone` has one for each request whose connection has ended.
    """

    def __init__(self, scene: Scene, ways: Mapping[str, tuple[bytes, bytes]]) -> None:
        self.gone = asyncio.Semaphore(0)
        self._ways = ways
        scene.provider.handler = self

    async def __call__(self, incoming: Incoming) -> None:
        await incoming.rest()
        beginning, more = self._ways[incoming.all_of("x-way")[0]]
        try:
            await incoming.send(beginning)
            while more:
                await incoming.send(more * 20)
                await asyncio.sleep(0.01)
            await incoming.closed()
        finally:
            self.gone.release()


HEADS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x-a: y\r\n"),
    "the value of a header": (b"HTTP/1.1 200 OK\r\nx-a: ", b"y" * 100),
    "the name of a header": (b"HTTP/1.1 200 OK\r\n", b"y" * 100),
    "the first line": (b"HTTP/1.1 200 ", b"y" * 100),
    "empty lines": (b"", b"\r\n"),
    "hints": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


async def test_a_head_without_end_is_given_up(impatient_gateway: Scene) -> None:
    provider = Endless(impatient_gateway, HEADS)
    async with asyncio.timeout(10 * TIME_OUT):
        answers = await asyncio.gather(*(impatient_gateway.post(x_way=way) for way in HEADS))
        for _ in HEADS:
            await provider.gone.acquire()
    assert [answer.status for answer in answers] == [502] * 4 + [504] * 3
    assert not [answer.body for answer in answers if b"yyyy" in answer.body]


BODIES = {
    "nothing": (BEGUN, b""),
    "an extension of a chunk": (BEGUN + b"5;a=", b"y" * 100),
    "the size of a chunk": (BEGUN, b"0"),
    "a trailer": (BEGUN + b"0\r\n", b"x-a: y\r\n"),
    "the value of a trailer": (BEGUN + b"0\r\nx-a: ", b"y" * 100),
}


async def test_an_answer_of_which_nothing_more_comes_is_cut_whatever_else_arrives(impatient_gateway: Scene) -> None:
    """Only bytes of the answer count. aiohttp would wait as long as any come."""
    provider = Endless(impatient_gateway, BODIES)
    with capture_logs() as lines:
        talks = [impatient_gateway.talk(x_way=way) for way in BODIES]
        for talk in talks:
            talk.give(b"")
            assert await talk.begun() == 200
        async with asyncio.timeout(10 * TIME_OUT):
            for talk in talks:
                assert await talk.was_cut()
            for _ in talks:
                await provider.gone.acquire()
    cut = [line["cut"] for line in lines if line["event"] == "request"]
    assert sorted(cut) == ["provider-answer-refused"] * 2 + ["provider-timeout"] * 3


async def test_an_answer_may_take_longer_than_the_time_between_two_of_its_parts(impatient_gateway: Scene) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        for _ in range(8):
            await asyncio.sleep(TIME_OUT / 7)
            await incoming.event(b"x")
        await incoming.event(b"")

    impatient_gateway.provider.handler = handler
    answer = await impatient_gateway.post()
    assert (answer.status, answer.body, answer.is_whole) == (200, b"xxxxxxxx", True)


@pytest.mark.parametrize(
    "broken",
    [
        b"zz\r\n",
        b"f" * 19 + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"x-a: y\r\n" * 300,
        b"0\r\nx: " + b"y" * 300_000,
    ],
    ids=["no size", "a size beyond all numbers", "a trailer without a colon", "many trailers", "a long trailer"],
)
async def test_an_answer_that_is_no_longer_http_is_cut_at_once(gateway: Scene, broken: bytes) -> None:
    """aiohttp closes the connection, and leaves the reader of the answer waiting, without a time-out."""
    has_read = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(BEGUN)
        await has_read.wait()
        await incoming.send(broken)
        await incoming.closed()

    gateway.provider.handler = handler
    with capture_logs() as lines:
        talk = gateway.talk()
        talk.give(b"")
        assert await talk.begun() == 200
        assert await talk.part() == b"hello"
        has_read.set()
        assert await talk.was_cut()
    assert [line["cut"] for line in lines if line["event"] == "request"] == ["provider-answer-refused"]
    assert "no colon" not in str(lines)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_answer_without_a_length_is_whole_if_the_provider_closes_and_not_if_it_resets(
    gateway: Scene, is_whole: bool
) -> None:
    has_read = asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await has_read.wait()
        if not is_whole:
            incoming.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        incoming.writer.close()

    gateway.provider.handler = handler
    talk = gateway.talk()
    talk.give(b"")
    assert await talk.begun() == 200
    assert await talk.part() == b"hello"
    has_read.set()
    assert await talk.was_cut() is not is_whole


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "chunked, gzip", "GZIP", "deflate, chunked", "xchunked"])
async def test_an_answer_that_is_compressed_on_its_way_is_refused(gateway: Scene, coding: str) -> None:
    """Nothing could be found in it, and a client does not know that it is compressed: the header is of one hop."""
    body = gzip.compress(VALUE.encode())
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    gateway.provider.answers(f"HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n".encode() + chunks)
    answer = await gateway.post()
    assert (answer.status, answer.header("keyman-error")) == (502, "provider-answer-refused")


async def test_a_check_of_which_the_answer_breaks_off_is_unreachable(gateway: Scene) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.send(BEGUN)
        await asyncio.sleep(0.2)  # so that it is not one part with the head. Less would only make the test weaker
        await incoming.send(b"zz\r\n")
        await incoming.closed()

    gateway.provider.handler = handler
    assert (await (await checking(gateway)).ask()).json["verdict"] == "unreachable"
