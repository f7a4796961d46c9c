"""Requests that stand still at a chosen point, until the test lets them go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any
from urllib.parse import unquote

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.storage.group import Work
from keyman.storage.together import SharedAuthority
from keyman.storage.transactions import Authority, Database
from tests.planes.management.api.harness import state_of
from tests.support.planes import Plane
from tests.support.waiting import PATIENCE, becomes


class Point(Enum):
    """Where a request stands still."""

    BODY = "its head has arrived, and its body has not"
    TRANSACTION = "just before a transaction that writes begins"
    CHECKED = "in a transaction that has checked the caller and has not written yet"
    COMMIT = "in a transaction that has written, just before it is committed"


_HELD: ContextVar[Held | None] = ContextVar("_HELD", default=None)


class Held:
    """One request to a plane. `begin` returns when it stands still at `point`, or has ended without getting there.

    With `skipped`, it passes that many transactions before.
    """

    def __init__(
        self,
        plane: Plane,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        point: Point = Point.BODY,
        skipped: int = 0,
    ) -> None:
        self.point = point
        self._plane, self._body, self._skipped = plane, body, skipped
        sent = {"host": "127.0.0.1:8000", "content-length": str(len(body)), **headers}
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": ("10.9.9.9", 40000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        self._stands, self._goes_on = asyncio.Event(), asyncio.Event()
        self._outbox: list[Any] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        return self._task is not None and self._task.done()

    async def begin(self) -> None:
        self._task = asyncio.create_task(self._run())
        stands = asyncio.create_task(self._stands.wait())
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({self._task, stands}, return_when=asyncio.FIRST_COMPLETED)
        stands.cancel()

    async def finish(self) -> httpx.Response:
        """Let it go on, and return the answer."""
        assert self._task is not None
        self._goes_on.set()
        async with asyncio.timeout(PATIENCE):
            await self._task
        start, *rest = self._outbox
        content = b"".join(message.get("body", b"") for message in rest)
        return httpx.Response(start["status"], headers=start["headers"], content=content)

    async def stand(self, point: Point) -> None:
        """Stand still if this is the point."""
        if point is not self.point or self._stands.is_set():
            return
        if self._skipped:
            self._skipped -= 1
            return
        self._stands.set()
        await self._goes_on.wait()

    async def _run(self) -> None:
        _HELD.set(self)
        await self._plane.app(self._scope, self._receive, self._send)

    async def _receive(self) -> Any:
        await self.stand(Point.BODY)
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Any) -> None:
        self._outbox.append(message)


@asynccontextmanager
async def stoppable(plane: Plane) -> AsyncIterator[None]:
    """Let requests to this plane stand still at its transactions."""
    db: Database = state_of(plane).db
    write, together = db.write, db.together

    @asynccontextmanager
    async def writing(by: Authority, *, patience: float | None = None) -> AsyncIterator[AsyncConnection]:
        held = _HELD.get() if patience is None else None  # not where a last use is noted
        if held is not None:
            await held.stand(Point.TRANSACTION)
        async with write(by, patience=patience) as connection:
            if held is not None:
                await held.stand(Point.CHECKED)
            yield connection
            if held is not None:
                await held.stand(Point.COMMIT)

    async def sharing(by: SharedAuthority, work: Work[Any], *, about: int | None = None) -> Any:
        held = _HELD.get()
        if held is None:
            return await together(by, work, about=about)
        if db.is_sqlite and held.point in (Point.CHECKED, Point.COMMIT):  # there, a group waits for statements only
            async with writing(by) as connection:
                return await work(connection)

        async def standing(connection: AsyncConnection) -> Any:
            await held.stand(Point.CHECKED)
            result = await work(connection)
            await held.stand(Point.COMMIT)
            return result

        await held.stand(Point.TRANSACTION)
        return await together(by, standing if held.point is not Point.TRANSACTION else work, about=about)

    db.write, db.together = writing, sharing  # type: ignore[method-assign]  # for as long as the block
    try:
        yield
    finally:
        del db.write, db.together


_WAITING = text(
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
    " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())"
)


async def has_to_wait(db: Database, revocation: asyncio.Future[None]) -> None:
    """Return once it waits for a lock. It must not end while a request stands still."""

    async def waits() -> bool:
        async with db.read() as connection:
            return revocation.done() or bool((await connection.execute(_WAITING)).scalar_one())

    if db.is_sqlite:  # which does not show who waits
        await asyncio.wait({revocation}, timeout=0.1)
    else:
        await becomes(waits, "a wait for the request")
    assert not revocation.done()
