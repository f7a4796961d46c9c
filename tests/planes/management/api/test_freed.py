"""The server keeps a connection open for as long as somebody could read the body of its request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from keyman.http import passage
from tests.planes.management.api.harness import ApiPlane

pytestmark = pytest.mark.anyio


class Incoming:
    """A client that announces a body and sends none."""

    async def receive(self) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/signup", "/sign-in", "/api/keys", "/settings/api-keys"])
async def test_a_body_that_never_comes_is_freed_with_its_request(
    sqlite_plane: ApiPlane, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Without the garbage collector, which may not run for minutes."""
    monkeypatch.setattr(passage, "BODY_TIMEOUT", 0.05)
    owner = await sqlite_plane.user()
    kind = "application/json" if path.startswith("/api/") else "application/x-www-form-urlencoded"
    headers = {
        "host": "127.0.0.1:8000",
        "content-type": kind,
        "content-length": "50",
        "cookie": f"keyman_session={owner.cookies['keyman_session']}",
        "sec-fetch-site": "same-origin",
    }
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("10.9.8.7", 40000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    incoming = Incoming()
    freed = weakref.ref(incoming)
    gc.disable()
    try:
        await sqlite_plane.app(scope, incoming.receive, send)
        del incoming, scope
        await asyncio.sleep(0)  # the loop forgets what it has cancelled
        assert sent[0]["status"] == 400
        assert freed() is None
    finally:
        gc.enable()
