"""A relay in front of the real Vault: it passes everything on, and remembers what was asked and answered.

Vault's audit log would tell as much; OpenBao lets no API client switch that on. A relay can do two more things: hold
calls back, which makes "at the same time" certain, and change an answer into one that another version would give.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from tests.vault.fake import turns_of_the_loop


@dataclass
class Call:
    """One request as it arrived, and the status of its answer once there is one."""

    method: str
    path: str
    token: str | None
    namespace: str | None
    body: bytes
    status: int | None = None
    request_id: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Rewrite = Callable[[Call, int, bytes], tuple[int, bytes]]


class Relay:
    """Made by `relay` alone. Paths are named by any part of them."""

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self.address = ""
        self.calls: list[Call] = []
        self._target = target
        self._session = session
        self._gates: dict[str, asyncio.Event] = {}
        self._rewrites: dict[str, Rewrite] = {}
        self._delays: dict[str, float] = {}
        self._news = asyncio.Condition()
        self._transports: set[asyncio.BaseTransport] = set()

    def to(self, part: str) -> list[Call]:
        """The calls so far to paths that hold `part`."""
        return [call for call in self.calls if part in call.path]

    async def arrived(self, part: str, count: int) -> None:
        """Return when at least `count` calls to `part` have come."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: len(self.to(part)) >= count)

    async def answered(self, part: str, count: int) -> None:
        """Return when at least `count` calls to `part` have got their answer."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: sum(call.status is not None for call in self.to(part)) >= count)

    @contextmanager
    def holding(self, part: str) -> Iterator[None]:
        """Calls to `part` that come inside the block reach Vault when it ends."""
        gate = self._gates[part] = asyncio.Event()
        try:
            yield
        finally:
            del self._gates[part]
            gate.set()

    @contextmanager
    def slowing(self, part: str, seconds: float) -> Iterator[None]:
        """Each call to `part` takes that much longer inside the block."""
        self._delays[part] = seconds
        try:
            yield
        finally:
            del self._delays[part]

    @contextmanager
    def changing(self, part: str, rewrite: Rewrite) -> Iterator[None]:
        """Answers of calls to `part` pass through `rewrite` inside the block."""
        self._rewrites[part] = rewrite
        try:
            yield
        finally:
            del self._rewrites[part]

    async def handle(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        self._transports.add(request.transport)
        body = await request.read()
        headers = request.headers
        call = Call(request.method, request.path, headers.get("X-Vault-Token"), headers.get("X-Vault-Namespace"), body)
        call.request_id = headers.get("X-Request-ID")
        self.calls.append(call)
        await self._tell()
        for part, gate in list(self._gates.items()):
            if part in call.path:
                await gate.wait()
        await asyncio.sleep(sum(delay for part, delay in self._delays.items() if part in call.path))
        passed_on = {name: value for name, value in headers.items() if name.startswith("X-Vault-")}
        url = URL(self._target + request.raw_path, encoded=True)
        try:
            async with self._session.request(request.method, url, data=body, headers=passed_on) as answer:
                status, content = answer.status, await answer.read()
                kept = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
        except aiohttp.ClientError:
            if request.transport is not None:
                request.transport.abort()  # Vault is gone: its client sees just that
            raise
        for part, rewrite in list(self._rewrites.items()):
            if part in call.path:
                status, content = rewrite(call, status, content)
        call.status = status
        await self._tell()
        return web.Response(status=status, body=content, headers=kept, content_type="application/json")

    async def end(self) -> None:
        """Close what clients that gave up have left open."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        await turns_of_the_loop()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[Relay]:
    """Run a Relay on loopback to the Vault at `target`."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        running = Relay(target, session)
        runner = web.ServerRunner(web.Server(running.handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        running.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield running
        finally:
            await turns_of_the_loop()
            await runner.cleanup()
            await running.end()
