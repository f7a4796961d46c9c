"""Clients in several event loops, and in a process that was forked from the one that made them."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from keyman.client import AsyncKeyman, AsyncResolver
from tests.client.asking import HERS, TOKEN, VALUE, given
from tests.support.http import FaultyServer, Reply, answer, faulty_server
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.anyio

BEFORE = """
import asyncio, os, sys, threading
from keyman.client import AsyncResolver, ClientError, Resolver
url, token = sys.argv[1:]
hers = dict(user_id=7, service="OPENAI")

def in_child(work):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as fault:
            sys.stdout.write(f"child: {type(fault).__name__}: {fault}\\n")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


async def _output(code: str, server: FaultyServer, requests: int = 0) -> list[str]:
    """Run code after BEFORE in a process that has no other threads, and return the lines that it wrote.

    Its standard input ends once the server got that many requests.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        BEFORE + code,
        server.address,
        TOKEN,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    async with asyncio.timeout(PATIENCE):
        while len(server.requests) < requests:
            await asyncio.sleep(0.01)
        out, _ = await process.communicate(b"go")
    return out.decode().splitlines()


# --- event loops


async def test_a_second_event_loop_after_the_first_has_connections_of_its_own() -> None:
    code = """
client = AsyncResolver(url, token)
for _ in range(3):
    print(asyncio.run(client.resolve(**hers)).reveal(), len(client._wire._pools))
"""
    async with faulty_server([given()]) as server:
        assert await _output(code, server) == [f"{VALUE} 1"] * 3
        assert server.connections == 3


async def test_event_loops_in_threads_share_a_client_and_its_cache() -> None:
    async with faulty_server([given()]) as server:
        client = AsyncResolver(server.address, TOKEN, cache_ttl=60)

        async def elsewhere() -> None:
            await client.resolve(**HERS)
            client.forget()
            await client.resolve(**HERS)
            await client.aclose()

        await client.resolve(**HERS)
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert server.connections == 2
        assert len(server.requests) == 2
        await client.resolve(**HERS)
        assert (server.connections, len(server.requests)) == (2, 3)  # the connection of this loop is still open
        await client.aclose()


async def test_a_call_of_another_loop_for_the_same_key_is_not_waited_for() -> None:
    async with faulty_server([Reply(200, given().body, given().headers, delay=0.2), given()]) as server:
        client = AsyncResolver(server.address, TOKEN, cache_ttl=60)

        async def elsewhere() -> str:
            try:
                return (await client.resolve(**HERS)).reveal()
            finally:
                await client.aclose()

        mine = asyncio.create_task(client.resolve(**HERS))
        while not server.requests:
            await asyncio.sleep(0)
        assert await asyncio.to_thread(asyncio.run, elsewhere()) == VALUE
        assert (await mine).reveal() == VALUE
        await client.aclose()


async def test_the_client_of_the_management_plane_does_the_same() -> None:
    async with faulty_server([answer([])]) as server:
        client = AsyncKeyman(server.address, TOKEN)

        async def elsewhere() -> None:
            assert await client.services() == []
            await client.aclose()

        assert await client.services() == []
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert await client.services() == []
        await client.aclose()
        assert server.connections == 2


# --- forks


async def test_a_forked_process_opens_its_own_connections() -> None:
    code = """
client = Resolver(url, token)
print("parent", client.resolve(**hers).reveal())
in_child(lambda: print("child", client.resolve(**hers).reveal()))
print("parent", client.resolve(**hers).reveal())
"""
    async with faulty_server([given()]) as server:
        assert await _output(code, server) == [f"parent {VALUE}", f"child {VALUE}", f"parent {VALUE}"]
        assert server.connections == 2


async def test_a_forked_process_with_an_event_loop_opens_its_own_connections() -> None:
    code = """
client = AsyncResolver(url, token)
with asyncio.Runner() as runner:
    print("parent", runner.run(client.resolve(**hers)).reveal())
    in_child(lambda: print("child", asyncio.run(client.resolve(**hers)).reveal()))
    print("parent", runner.run(client.resolve(**hers)).reveal())
    runner.run(client.aclose())
"""
    async with faulty_server([given()]) as server:
        assert await _output(code, server) == [f"parent {VALUE}", f"child {VALUE}", f"parent {VALUE}"]
        assert server.connections == 2


async def test_a_forked_process_that_goes_on_with_the_event_loop_of_its_parent_opens_its_own_connections() -> None:
    """As in a server that makes its loop and its clients before it forks."""
    code = """
client = AsyncResolver(url, token)
with asyncio.Runner() as runner:
    print("parent", runner.run(client.resolve(**hers)).reveal())
    in_child(lambda: print("child", runner.run(client.resolve(**hers)).reveal()))
    print("parent", runner.run(client.resolve(**hers)).reveal())
    runner.run(client.aclose())
"""
    async with faulty_server([given()]) as server:
        assert await _output(code, server) == [f"parent {VALUE}", f"child {VALUE}", f"parent {VALUE}"]
        assert server.connections == 2


async def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent() -> None:
    """At the fork, a thread asks for the same key and another holds the lock; neither exists in the new process."""
    code = """
client = Resolver(url, token, cache_ttl=60, timeout=30)
client.resolve(key_id=1)
asking = threading.Thread(target=client.resolve, kwargs=hers)
asking.start()
sys.stdin.read()  # only our own locks are held then: those of an import, for example, nobody can release for us
with client._lock:
    in_child(lambda: print("child", client.resolve(**hers).reveal()))
asking.join()
print("parent", client.resolve(**hers).reveal())
"""
    late = Reply(200, given().body, given().headers, delay=1)
    async with faulty_server([given(), late, given()]) as server:
        assert await _output(code, server, requests=2) == [f"child {VALUE}", f"parent {VALUE}"]


@pytest.mark.parametrize("kind", ["", "Async"])
async def test_a_forked_process_does_not_use_the_callers_transport(kind: str) -> None:
    code = f"""
import httpx
client = {kind}Resolver(url, token, transport=httpx.{kind}HTTPTransport())
resolve = client.resolve if {not kind} else lambda **given: asyncio.run(client.resolve(**given))
in_child(lambda: print("child", resolve(**hers).reveal()))
"""
    async with faulty_server([given()]) as server:
        (line,) = await _output(code, server)
        assert line.startswith("child: RuntimeError: a transport that you pass works only in the process")
        assert server.connections == 0
