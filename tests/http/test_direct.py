"""`keyman.http.direct`: a route that is run directly answers as Litestar would, which gets everything unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import httpx
import pytest
from litestar import Litestar, Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, QueryParameter
from litestar.response import Redirect
from litestar.types import ControllerRouterHandler

from keyman.http.body import ValueSchemas
from keyman.http.direct import Direct
from keyman.http.edge import Edge
from keyman.http.guards import PUBLIC
from keyman.http.requests import EXCEPTION_HANDLERS
from keyman.metrics import Metrics
from keyman.planes.management.app import create_app
from keyman.planes.resolver.app import create_resolver
from keyman.storage.paging import Limit
from tests.http.test_edge import settings
from tests.support.logs import capture_logs
from tests.support.planes import Plane

pytestmark = pytest.mark.anyio

LEFT = {
    ("POST", "/api/auth/signup"),
    ("POST", "/api/auth/login"),
    ("POST", "/api/keys/{key_id}/check"),
    ("PUT", "/api/applications/{application_id}/block"),
    ("DELETE", "/api/applications/{application_id}/block"),
}
"""The routes of the API that Litestar runs: those that need the device, which is found in a thread, and those with a
parameter that is not the end of the path.
"""


def directly(edge: Any) -> set[tuple[str, str]]:
    layer = edge._app._app
    while not isinstance(layer, Direct):
        layer = layer._app
    return layer.templates


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
    ("GET", "/api/keys/batch", {}),
    ("DELETE", "/api/keys/batch", {}),
    ("POST", "/api/keys/batch", {}),
    ("POST", "/api/keys/batch/", {}),
    ("POST", "/api/keys/batch/check", {}),
    ("POST", "/api/keys/batch", {"json": {"keys": []}}),
    ("POST", "/api/keys/batch", {"json": {"keys": [{}]}}),
    ("POST", "/api/keys/batch", {"content": b" " * 70_000}),
    ("POST", "/api/keys/batch", {"content": b" " * 1_100_000}),
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


# --- what it leaves to Litestar, however a route is declared


def app_of(*routes: ControllerRouterHandler) -> Litestar:
    return Litestar(
        list(routes),
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        type_decoders=[(ValueSchemas.is_plugin_supported_type, lambda wanted, raw: wanted.parse(raw))],
    )


def run_directly(*routes: ControllerRouterHandler) -> set[tuple[str, str]]:
    return Direct(app_of(*routes)).templates


async def seen(app: Any, method: str, path: str, **sent: Any) -> tuple[int, list[tuple[str, str]], str]:
    transport = httpx.ASGITransport(Edge(app, settings(), Metrics()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return shown(await client.request(method, path, **sent))


async def _changed(response: Response[Any]) -> Response[Any]:
    return response


async def _noticed(_request: Request[Any, Any, Any]) -> None: ...


def _between(app: Any) -> Any:
    return app


class _OtherRequest(Request[Any, Any, Any]): ...


class _OtherResponse(Response[Any]): ...


@pytest.mark.parametrize(
    "declared",
    [
        {"after_request": _changed},
        {"after_response": _noticed},
        {"middleware": [_between]},
        {"exception_handlers": {ValueError: lambda *_: Response(None)}},
        {"request_class": _OtherRequest},
        {"response_class": _OtherResponse},
        {"response_cookies": {"name": "value"}},
        {"response_headers": {"name": "value"}},
        {"type_encoders": {bytes: str}},
    ],
    ids=lambda declared: next(iter(declared)),
)
def test_what_is_declared_for_a_route_or_above_it_is_not_left_out(declared: dict[str, Any]) -> None:
    @get("/plain", opt=PUBLIC)
    async def plain() -> None: ...

    @get("/above", opt=PUBLIC)
    async def above() -> None: ...

    @get("/itself", opt=PUBLIC, **declared)
    async def itself() -> None: ...

    routes = run_directly(plain, itself, Router("/", route_handlers=[above], **declared))
    assert routes == {("GET", "/plain")}


def test_an_answer_of_a_class_of_its_own_is_not_taken_for_a_plain_one() -> None:
    @get("/away", opt=PUBLIC, status_code=303)
    async def away() -> Redirect:
        return Redirect("/")

    @get("/typed", opt=PUBLIC)
    async def typed() -> Response[bytes]:
        return Response(b"")

    @get("/untyped", opt=PUBLIC)
    async def untyped() -> Response:  # type: ignore[type-arg]  # the case under test
        return Response(b"")

    assert run_directly(away, typed, untyped) == {("GET", "/typed"), ("GET", "/untyped")}


async def test_a_parameter_may_have_another_name_and_one_that_is_required_is_missed() -> None:
    @get("/named", opt=PUBLIC)
    async def named(most: Annotated[Limit | None, QueryParameter(name="limit")] = None) -> str:
        return f"{most}"

    @get("/needed", opt=PUBLIC)
    async def needed(limit: Annotated[Limit, QueryParameter()]) -> str:
        return f"{limit}"

    app = app_of(named, needed)
    assert Direct(app).templates == {("GET", "/named")}
    for path, status in {"/named": 200, "/named?limit=7": 200, "/needed": 400, "/needed?limit=7": 200}.items():
        answer = await seen(Direct(app), "GET", path)
        assert answer == await seen(app, "GET", path)
        assert answer[0] == status, path


async def test_a_fixed_part_of_a_path_goes_before_a_parameter() -> None:
    @get("/things/{name:str}", opt=PUBLIC)
    async def thing(name: FromPath[str]) -> str:
        return name

    @post("/things/new", opt=PUBLIC)
    async def new() -> str:
        return "made"

    @get("/others/{name:str}", opt=PUBLIC)
    async def other(name: FromPath[str]) -> str:
        return name

    @get("/others/known/{name:str}", opt=PUBLIC)
    async def known(name: FromPath[str]) -> str:
        return name

    app = app_of(thing, new, other, known)
    of_parameters = {("GET", "/things/{name}"), ("GET", "/others/{name}")}
    assert Direct(app).templates == {("POST", "/things/new"), ("GET", "/others/known/{name}")} | of_parameters
    expected = {
        ("GET", "/things/x"): 200,
        ("GET", "/things/new"): 405,
        ("POST", "/things/new"): 201,
        ("GET", "/others/x"): 200,
        ("GET", "/others/known"): 404,
        ("GET", "/others/known/x"): 200,
    }
    for (method, path), status in expected.items():
        answer = await seen(Direct(app), method, path)
        assert answer == await seen(app, method, path)
        assert answer[0] == status, path


async def test_a_page_of_another_site_learns_nothing_of_an_exception_either() -> None:
    async def breaks(_connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        raise RuntimeError

    @post("/broken", opt=PUBLIC, guards=[breaks])
    async def broken() -> None: ...

    app = app_of(broken)
    sent = {"headers": {**FOREIGN, "Authorization": "Bearer km_x"}}
    with capture_logs() as logs:
        answer = await seen(Direct(app), "POST", "/broken", **sent)
    assert answer == await seen(app, "POST", "/broken", **sent)
    assert answer[0] == 403
    assert [line["event"] for line in logs] == ["unhandled exception", "request"]
