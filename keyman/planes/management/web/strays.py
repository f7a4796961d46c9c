"""Finds out who asks for a page that does not exist.

No guard runs for an address without a route. But a signed-in person keeps the
frame of the settings on the page about such an address, and with it the way back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import cast

from litestar import Litestar, Request
from litestar.exceptions import HTTPException
from litestar.types import Scope as LitestarScope
from litestar.utils import normalize_path

from keyman.errors import Problem
from keyman.http.exchange import ASGIApp, Receive, Scope, Send, exchange_of
from keyman.http.guards import identify
from keyman.http.requests import AnyRequest


class Strays:
    """Passes each request on. Before, it identifies the caller of a page that has no route."""

    def __init__(self, litestar: Litestar, app: ASGIApp) -> None:
        self._litestar = litestar
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and exchange_of(scope).page is not None and not self._has_route(scope):
            scope["app"] = scope["litestar_app"] = self._litestar
            request: AnyRequest = Request(cast("LitestarScope", scope), receive, send)  # type: ignore[arg-type]  # wider
            with suppress(Problem):  # nobody, or nobody can tell: the page has no frame
                await identify(request)
        await self._app(scope, receive, send)

    def _has_route(self, scope: Scope) -> bool:
        try:
            self._litestar.asgi_router.handle_routing(normalize_path(scope["path"]), scope["method"])
        except HTTPException:
            return False
        return True
