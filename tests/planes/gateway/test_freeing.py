"""What a request to the gateway holds is freed at its end, without the garbage collector.

The server keeps a connection open for as long as somebody could read the body of its request.
"""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from keyman.http.exchange import Message, Scope
from keyman.identity import applications
from keyman.values import ApplicationName
from tests.planes.gateway.provider import GOOD, Incoming
from tests.planes.gateway.scene import CHAT, Scene
from tests.planes.gateway.talk import PATIENCE

pytestmark = pytest.mark.anyio


class Client:
    """Sends these parts of a body, and then stays, or leaves."""

    def __init__(self, *parts: bytes, is_whole: bool = True, leaves: bool = False) -> None:
        self._messages: list[Message] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if is_whole:
            self._messages.append({"type": "http.request", "body": b"", "more_body": False})
        self._leaves = leaves

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        if self._leaves:
            await asyncio.sleep(0.2)
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()  # type: ignore[return-value]  # it never returns


async def never(incoming: Incoming) -> None:
    await incoming.closed()


async def at_once(incoming: Incoming) -> None:
    """Answer before the body has arrived."""
    await incoming.send(GOOD)
    await incoming.closed()


async def broken(incoming: Incoming) -> None:
    incoming.writer.transport.abort()


async def in_the_middle(incoming: Incoming) -> None:
    await incoming.begin()
    await incoming.event(b"x")
    await incoming.closed()


async def cut(incoming: Incoming) -> None:
    await incoming.begin()
    await incoming.event(b"x")
    incoming.writer.transport.abort()


@pytest.mark.parametrize(
    ("outcome", "client"),
    [
        ("answered", Client(b"{}")),
        ("answered", Client(b"a", b"b", b"c")),
        ("unknown", Client(is_whole=False)),
        ("not allowed", Client(is_whole=False)),
        ("too large", Client(b"x" * 70_000_000, is_whole=False)),
        ("answered before the body", Client(b"a", is_whole=False)),
        ("left before the body", Client(b"a", is_whole=False, leaves=True)),
        ("left before the answer", Client(b"a", leaves=True)),
        ("left in the middle", Client(b"a", leaves=True)),
        ("left in the middle of both", Client(b"a", is_whole=False, leaves=True)),
        ("broken", Client(b"a")),
        ("broken before the body", Client(b"a", is_whole=False)),
        ("cut", Client(b"a")),
        ("revoked", Client(b"a")),
        ("revoked before the body", Client(b"a", is_whole=False)),
    ],
)
async def test_what_a_request_holds_is_freed_at_its_end(gateway: Scene, outcome: str, client: Client) -> None:
    handlers = {
        "answered before the body": at_once,
        "left before the body": never,
        "left before the answer": never,
        "left in the middle": in_the_middle,
        "left in the middle of both": in_the_middle,
        "broken": broken,
        "broken before the body": broken,
        "cut": cut,
        "revoked": never,
        "revoked before the body": never,
    }
    gateway.provider.handler = handlers.get(outcome, gateway.provider.handler)
    headers = {**gateway.headers, "transfer-encoding": "chunked"}
    if outcome == "unknown":
        headers["authorization"] = "Bearer km_wrong"
    path = "/openai/v1/files" if outcome == "not allowed" else CHAT
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("192.0.2.7", 1),
    }

    async def send(_message: Message) -> None:
        pass

    own = _Holder(client)
    freed = weakref.ref(own)
    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(gateway.app(scope, own.receive, send))
        del own
        if outcome.startswith("revoked"):
            while not gateway.provider.requests:
                await asyncio.sleep(0.01)
            database = gateway.pair.management.database
            await applications.revoke(database, ApplicationName(gateway.application.name))
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.done()
        assert task.exception() is None
        del task, scope
        for _ in range(100):  # tasks that were cancelled end soon
            if freed() is None:
                break
            await asyncio.sleep(0.01)
        assert freed() is None
    finally:
        gc.enable()


class _Holder:
    """What only the request refers to."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def receive(self) -> Message:
        return await self._client.receive()
