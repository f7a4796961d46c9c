"""Every method on every route: an answer, never a 500, and a correct `Allow`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.planes.management.web.static import static_url
from tests.planes.management.api.harness import ApiPlane, application_of, headers_of, problem
from tests.support.fast import examples
from tests.support.needs import quick_on

pytestmark = pytest.mark.anyio

METHODS = (
    "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "QUERY", "PROPFIND", "get", "Post",
    "X" * 200, "GET\u00e9", "*", "G-E_T.1",
)  # fmt: skip


def routes_of(plane: ApiPlane) -> dict[str, set[str]]:
    """Every path of the application with an example for each parameter, and the methods that it was given."""
    application = application_of(plane)
    found: dict[str, set[str]] = {}
    for route in application.routes:
        path = re.sub(r"\{[a-z_]+:path\}", static_url("keyman.css").removeprefix("/static/"), route.path)
        path = re.sub(r"\{session_id:str\}", "999999999", path)
        path = re.sub(r"\{slug:str\}", "internal", path)
        found[re.sub(r"\{[a-z_]+:str\}", "1", path)] = set(route.methods)
    return found


@quick_on("sqlite", "shared")
async def test_every_method_on_every_route_gets_a_documented_answer(shared: ApiPlane) -> None:
    ada = await shared.user()
    routes = routes_of(shared)
    assert len(routes) > 15
    for path, defined in routes.items():
        known = defined - {"HEAD", "OPTIONS"} | {"OPTIONS"} | ({"HEAD"} if "GET" in defined else set())
        for method in METHODS:
            for proof in ([], headers_of(ada)):
                if path in ("/api/auth/logout", "/sign-out") and proof:
                    continue
                answer = await shared.wire(method, path.encode(), proof)
                assert answer.status_code < 500, (method, path)
                if method in known:
                    assert answer.status_code != 405, (method, path)
                else:
                    assert answer.status_code == 405, (method, path)
                if answer.status_code == 405 or method == "OPTIONS":
                    allowed = answer.headers["allow"].split(", ")
                    assert len(allowed) == len(set(allowed))
                    assert set(allowed) == known, (method, path)
                if answer.status_code == 405 and method != "HEAD":
                    problem(answer, "method-not-allowed")
    assert (await ada.get("/api/auth/me")).status_code == 200


async def test_head_is_get_without_the_body(shared: ApiPlane) -> None:
    ada = await shared.user()
    for path, methods in routes_of(shared).items():
        if "GET" not in methods or path in ("/metrics", "/api/keys/1"):
            continue
        got = await shared.wire("GET", path.encode(), headers_of(ada))
        head = await shared.wire("HEAD", path.encode(), headers_of(ada))
        assert (head.status_code, head.content) == (got.status_code, b"")
        ignored = {"x-request-id", "date", "content-security-policy"}  # of a page: it holds a nonce
        assert {k: v for k, v in head.headers.items() if k not in ignored} == {
            k: v for k, v in got.headers.items() if k not in ignored
        }


@pytest.mark.parametrize("path", ["/api/keys/", "//api/keys", "/api//keys", "/problems/", "/livez/", "/api/keys/1/"])
async def test_a_path_with_a_slash_too_many_has_the_methods_that_it_has_without(
    sqlite_plane: ApiPlane, path: str
) -> None:
    plain = re.sub("/+", "/", path).rstrip("/")
    for method in ("TRACE", "OPTIONS"):
        one, other = [await sqlite_plane.wire(method, target.encode()) for target in (plain, path)]
        assert one.status_code == other.status_code
        assert one.headers["allow"] == other.headers["allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/auth",
        "/api/nothing",
        "/nothing",
        "/favicon.ico",
        "/v1/resolve",
        "/schema",
        "/-/openapi",
    ],
)
async def test_every_method_where_there_is_nothing_gets_404(sqlite_plane: ApiPlane, path: str) -> None:
    for method in METHODS:
        answer = await sqlite_plane.wire(method, path.encode())
        assert answer.status_code == 404
        assert "allow" not in answer.headers
        if method != "HEAD":
            problem(answer, "not-found")


@settings(max_examples=examples(200))
@given(
    path=st.binary(max_size=40).map(lambda raw: b"/" + raw.replace(b"?", b""))
    | st.lists(
        st.sampled_from(
            [
                "api",
                "keys",
                "tokens",
                "auth",
                "login",
                "static",
                "problems",
                "docs",
                "..",
                ".",
                "",
                "1",
                "%2e%2e",
                "%00",
                "%ff",
                "%",
            ]
        ),
        max_size=6,
    ).map(lambda parts: ("/" + "/".join(parts)).encode()),
    method=st.sampled_from(METHODS),
)
async def test_any_path_gets_an_answer_and_never_a_500(sqlite_plane: ApiPlane, path: bytes, method: str) -> None:
    answer = await sqlite_plane.wire(method, path)
    assert answer.status_code < 500
