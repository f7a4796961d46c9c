"""`keyman.http.direct`: a route that is run directly answers as Litestar would, which gets everything unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from keyman.http.direct import Direct
from keyman.planes.management.app import create_app
from keyman.planes.resolver.app import create_resolver
from tests.http.test_edge import settings
from tests.support.planes import Plane

pytestmark = pytest.mark.anyio

LEFT = {("POST", "/api/auth/signup"), ("POST", "/api/auth/login")}
"""The routes of the API that Litestar runs: they need the device, which is found in a thread."""


def directly(edge: Any) -> set[tuple[str, str]]:
    direct = edge._app._app
    assert isinstance(direct, Direct)
    return direct.templates


def test_every_route_of_the_api_is_run_directly() -> None:
    direct = directly(create_app(settings()))
    described = create_app(settings())._app._application  # type: ignore[attr-defined]  # of `Starting`
    of_api = {
        (method, route.path_format)
        for route in described.routes
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
        if route.path.startswith("/api/") and method != "OPTIONS"
    }
    assert len(of_api) >= 16
    assert of_api - direct == LEFT
    assert ("GET", "/livez") in direct


def test_the_resolver_runs_its_routes_directly() -> None:
    direct = directly(create_resolver(settings()))
    assert {("POST", "/v1/resolve"), ("GET", "/problems/{slug}"), ("GET", "/livez"), ("GET", "/readyz")} <= direct


KEY = {"service": "OPENAI", "api_key": "sk-0123456789abcdef", "name": "first"}
FOREIGN = {"Sec-Fetch-Site": "cross-site"}

ASKED: list[tuple[str, str, Mapping[str, Any]]] = [
    ("GET", "/livez", {}),
    ("HEAD", "/livez", {}),
    ("GET", "/livez?x=1", {}),
    ("GET", "/readyz", {}),
    ("GET", "/api/auth/me", {}),
    ("HEAD", "/api/auth/me", {}),
    ("GET", "/api/auth/me?x=1", {}),
    ("GET", "/api/auth/me", {"headers": {"Authorization": "Bearer km_x"}}),
    ("GET", "/api/auth/me", {"headers": {"Host": "a_b"}}),
    ("GET", "/api/auth/me", {"headers": {"Host": "a b"}}),
    ("GET", "/api/keys", {}),
    ("GET", "/api/keys/", {}),
    ("GET", "//api//keys", {}),
    ("GET", "/api/keys?limit=1", {}),
    ("GET", "/api/keys?limit=1&service=OPENAI&q=i", {}),
    ("GET", "/api/keys?limit=1&limit=2", {}),
    ("GET", "/api/keys?limit=0", {}),
    ("GET", "/api/keys?limit=x&cursor=y&service=z", {}),
    ("GET", "/api/keys?q=null", {}),
    ("GET", "/api/keys?q=", {}),
    ("GET", "/api/keys?q=%C3%A9+%20a", {}),
    ("GET", "/api/keys?Limit=1", {}),
    ("GET", "/api/services", {}),
    ("GET", "/api/tokens", {}),
    ("GET", "/api/audit?limit=1&action=key.create", {}),
    ("GET", "/api/audit?since=now", {}),
    ("GET", "/api/keys/1", {}),
    ("GET", "/api/keys/2", {}),
    ("GET", "/api/keys/9", {}),
    ("GET", "/api/keys/01", {}),
    ("GET", "/api/keys/x", {}),
    ("GET", "/api/keys/1?x", {}),
    ("GET", "/api/keys/1/2", {}),
    ("OPTIONS", "/api/keys/1", {}),
    ("BREW", "/api/keys/1", {}),
    ("POST", "/api/keys/1", {}),
    ("PUT", "/api/keys", {}),
    ("POST", "/api/keys", {}),
    ("POST", "/api/keys", {"content": b"{"}),
    ("POST", "/api/keys", {"json": {}}),
    ("POST", "/api/keys", {"json": {**KEY, "more": 1}}),
    ("POST", "/api/keys", {"content": b" " * 70_000}),
    ("POST", "/api/keys", {"json": KEY, "headers": {"Idempotency-Key": ""}}),
    ("POST", "/api/keys", {"json": KEY, "headers": {"Idempotency-Key": "x" * 256}}),
    ("POST", "/api/keys", {"json": KEY, "headers": FOREIGN}),
    ("POST", "/api/keys", {"json": KEY, "headers": {**FOREIGN, "Authorization": "Bearer km_x"}}),
    ("PATCH", "/api/keys/1", {"json": {"disabled": 1}}),
    ("PATCH", "/api/keys/1", {"json": {"name": "x"}, "headers": {"If-Match": '"x"'}}),
    ("PATCH", "/api/keys/1", {"json": {"name": "x"}, "headers": {"If-Match": "x"}}),
    ("DELETE", "/api/keys/1", {"headers": {"If-Match": '"x"'}}),
    ("DELETE", "/api/keys/9", {}),
    ("DELETE", "/api/tokens/9", {}),
    ("GET", "/docs/openapi.json", {}),
    ("GET", "/nowhere", {}),
]


def shown(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], str]:
    """An answer without its request id, and its headers in order of their names."""
    request_id = answer.headers["x-request-id"]
    headers = sorted((name, value) for name, value in answer.headers.multi_items() if name != "x-request-id")
    return answer.status_code, headers, answer.text.replace(request_id, "-")


async def test_it_answers_what_litestar_would(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await plane.user()
    for _ in range(2):
        assert (await user.post("/api/keys", json=KEY)).status_code == 201
    direct = [shown(await user.request(method, path, **sent)) for method, path, sent in ASKED]
    monkeypatch.setattr(Direct, "_find", lambda *_: None)
    by_litestar = [shown(await user.request(method, path, **sent)) for method, path, sent in ASKED]
    for asked, one, other in zip(ASKED, direct, by_litestar, strict=True):
        assert one == other, asked


async def test_it_changes_what_litestar_would(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def change(user: httpx.AsyncClient) -> list[tuple[int, list[str]]]:
        made = await user.post("/api/keys", json=KEY, headers={"Idempotency-Key": "x"})
        again = await user.post("/api/keys", json=KEY, headers={"Idempotency-Key": "x"})
        assert made.json() == again.json()
        path = made.headers["location"]
        changed = await user.patch(path, json={"name": "x"}, headers={"If-Match": made.headers["etag"]})
        replaced = await user.put(path, json={"api_key": "sk-another-0123456789"})
        deleted = await user.delete(path, headers={"If-Match": replaced.headers["etag"]})
        token = await user.post("/api/tokens", json={"name": "x"})
        revoked = await user.delete(f"/api/tokens/{token.json()['id']}")
        left = await user.post("/api/auth/logout")
        answers = (made, again, changed, replaced, deleted, token, revoked, left)
        return [(answer.status_code, sorted(answer.headers)) for answer in answers]

    direct = await change(await plane.user())
    monkeypatch.setattr(Direct, "_find", lambda *_: None)
    assert direct == await change(await plane.user())
    assert [status for status, _ in direct] == [201, 201, 200, 200, 204, 201, 204, 204]
