"""Every route with every set of scopes, with a session, and without credentials."""

from __future__ import annotations

from itertools import chain, combinations
from typing import NamedTuple

import httpx
import pytest

from keyman.identity.tokens import Scope
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, problem, store
from tests.support.needs import quick_on

pytestmark = pytest.mark.anyio

SESSION = "a session"
ANYBODY = "anybody who is known"


class Route(NamedTuple):
    method: str
    path: str
    needs: str
    body: dict[str, object] | None = None


ROUTES = (
    Route("GET", "/api/auth/me", ANYBODY),
    Route("POST", "/api/auth/logout", SESSION),
    Route("DELETE", "/api/auth/me", SESSION, {"unknown": "x"}),
    Route("PUT", "/api/auth/password", SESSION, {"current_password": "x", "new_password": "long enough for it"}),
    Route("POST", "/api/tokens", "tokens:manage", {"name": "x", "scopes": ["tokens:manage"]}),
    Route("GET", "/api/tokens", "tokens:manage"),
    Route("DELETE", "/api/tokens/999999", "tokens:manage"),
    Route("POST", "/api/keys", "keys:write", {"service": "OPENAI", "api_key": OPENAI_KEY}),
    Route("POST", "/api/keys/batch", "keys:write", {"keys": [{"service": "OPENAI", "api_key": OPENAI_KEY}]}),
    Route("GET", "/api/keys", "keys:read"),
    Route("GET", "/api/keys/{id}", "keys:read"),
    Route("PUT", "/api/keys/{id}", "keys:write", {"api_key": OPENAI_KEY}),
    Route("PATCH", "/api/keys/{id}", "keys:write", {"name": "x"}),
    Route("POST", "/api/keys/999999/check", "keys:write"),
    Route("DELETE", "/api/keys/999999", "keys:write"),
    Route("GET", "/api/applications", "keys:read"),
    Route("PUT", "/api/applications/999999/block", "keys:write"),
    Route("DELETE", "/api/applications/999999/block", "keys:write"),
    Route("GET", "/api/services", "keys:read"),
    Route("GET", "/api/audit", "audit:read"),
)

OF_NO_SCOPE = {("DELETE", "/api/tokens/current")}
"""It ends the token that asks, so `test_tokens` tries it."""

PUBLIC = ("/livez", "/readyz", "/metrics", "/docs", "/docs/openapi.json", "/problems", "/problems/internal")


async def call(client: httpx.AsyncClient, route: Route, key_id: int) -> httpx.Response:
    return await client.request(route.method, route.path.format(id=key_id), json=route.body)


def every_set_of_scopes() -> list[tuple[Scope, ...]]:
    return list(chain.from_iterable(combinations(Scope, size) for size in range(1, len(Scope) + 1)))


async def test_the_table_of_these_tests_has_every_route_of_the_api(shared: ApiPlane) -> None:
    assert shared.document is not None
    documented = {(operation["method"], operation["path"]) for operation in shared.document.operations.values()}
    tested = {
        (
            route.method,
            route.path.replace("{id}", "{key_id}")
            .replace("keys/999999", "keys/{key_id}")
            .replace("applications/999999", "applications/{application_id}"),
        )
        for route in ROUTES
    }
    tested = {(method, path.replace("999999", "{token_id}")) for method, path in tested}
    public = {("GET", path) for path in ("/livez", "/readyz")}
    public |= {("POST", f"/api/auth/{name}") for name in ("signup", "login")}
    assert documented == tested | public | OF_NO_SCOPE


@quick_on("sqlite", "shared")
async def test_a_token_may_do_what_its_scopes_say_and_nothing_else(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    for scopes in every_set_of_scopes():
        script = await shared.token(ada, *scopes)
        for route in ROUTES:
            answer = await call(script, route, key["id"])
            if route.needs == ANYBODY or route.needs in scopes:
                assert answer.status_code < 400 or "999999" in route.path, (scopes, route, answer.text)
                assert answer.status_code not in (401, 403)
            else:
                problem(answer, "forbidden")


async def test_a_session_may_do_everything(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    for route in sorted(ROUTES, key=lambda route: route.path == "/api/auth/logout"):
        answer = await call(ada, route, key["id"])
        assert answer.status_code not in (401, 403), route


async def test_without_a_proof_every_route_of_the_api_answers_401(shared: ApiPlane) -> None:
    visitor = shared.client()
    for route in ROUTES:
        problem(await call(visitor, route, 1), "unauthenticated")


async def test_a_missing_scope_is_said_before_anything_is_looked_at(shared: ApiPlane) -> None:
    """A caller without the scope learns neither whether an id exists nor whether a body is valid."""
    ada = await shared.user()
    key = await store(ada)
    script = await shared.token(ada, "audit:read")
    details = set()
    for path in (f"/api/keys/{key['id']}", "/api/keys/999999", "/api/keys/x"):
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            answer = await script.request(method, path, content=b"{", headers={"Content-Type": "text/plain"})
            details.add((method == "GET", problem(answer, "forbidden")["detail"]))
    assert len(details) == 2
    problem(await shared.client().put("/api/keys/x", content=b"{" * 100_000), "unauthenticated")


async def test_what_is_public_needs_no_proof_and_minds_no_bad_one(shared: ApiPlane) -> None:
    bad = shared.client(headers={"Authorization": "Bearer km_x", "Cookie": "keyman_session=x"})
    for path in PUBLIC:
        for client in (shared.client(), bad):
            assert (await client.get(path)).status_code == 200


async def test_a_bad_session_cookie_is_no_proof(shared: ApiPlane) -> None:
    for cookie in ("", "x", "x" * 43, '""', "%00", "a=b", "é"):
        headers = [(b"cookie", b"keyman_session=" + cookie.encode())]
        problem(await shared.wire("GET", b"/api/keys", headers), "unauthenticated")
