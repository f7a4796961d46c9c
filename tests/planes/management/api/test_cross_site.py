"""The cross-site rule: a page of another site cannot make a browser change anything."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy.engine import URL

from keyman.config.settings import Settings
from keyman.identity.tokens import Token
from keyman.keys.tables import api_keys
from keyman.planes.management.app import create_app
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, problem, store
from tests.support.needs import quick_on
from tests.support.planes import Vault, lifespan

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1:8000"
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
ODD = ("TRACE", "CONNECT", "PROPFIND", "post", "QUERY")
SAFE = ("GET", "HEAD", "OPTIONS")

NOTHING = None
SITES = (NOTHING, "same-origin", "none", "same-site", "cross-site", "", "Same-Origin", "same-origin, none", "x" * 300)
ORIGINS = (
    NOTHING,
    f"http://{HOST}",
    f"https://{HOST}",
    f"HTTP://{HOST}",
    "http://127.0.0.1",
    "http://127.0.0.1:80",
    "http://127.0.0.1:8001",
    "http://localhost:8000",
    f"http://evil.example/{HOST}",
    f"http://{HOST}.evil.example",
    f"http://user@{HOST}",
    "https://evil.example",
    "null",
    "",
    HOST,
    "file://",
)


def is_allowed(site: str | None, origin: str | None, host: str = HOST) -> bool:
    """The rule in docs/reference/api.md, word by word."""
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:
        return origin.lower() in (f"http://{host}", f"https://{host}")
    return True


def headers(site: str | None, origin: str | None) -> list[tuple[bytes, bytes]]:
    sent = {b"sec-fetch-site": site, b"origin": origin}
    return [(name, value.encode()) for name, value in sent.items() if value is not None]


@pytest.mark.parametrize("method", [*UNSAFE, *ODD])
async def test_an_unsafe_method_passes_only_from_here_or_from_no_page(sqlite_plane: ApiPlane, method: str) -> None:
    for site in SITES:
        for origin in ORIGINS:
            answer = await sqlite_plane.wire(method, b"/api/keys/1", headers(site, origin))
            if is_allowed(site, origin):
                assert answer.status_code in (401, 405), (site, origin)
            else:
                problem(answer, "forbidden")
                assert not answer.headers.get("set-cookie")


@pytest.mark.parametrize("method", SAFE)
async def test_a_safe_method_passes_from_everywhere(sqlite_plane: ApiPlane, method: str) -> None:
    for site in SITES:
        for origin in ORIGINS:
            answer = await sqlite_plane.wire(method, b"/api/keys", headers(site, origin))
            assert answer.status_code == (204 if method == "OPTIONS" else 401)
            assert "access-control-allow-origin" not in answer.headers
            assert "access-control-allow-credentials" not in answer.headers


FROM_ELSEWHERE = ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"})

IGNORED = (
    "Basic YWRhOng=",
    "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.",
    "Bearer",
    "",
    "Bearer KM_x",
    "Negotiate abc",
)
"""What a proxy may add. None is an access token of keyman."""

UNTRUE = (f"Bearer {Token.generate().reveal()}", "bearer km_x", "Bearer km_")
"""What claims to be an access token of keyman, and is none."""


def unsafe_routes(shared: ApiPlane, key_id: int) -> list[tuple[str, str]]:
    assert shared.document is not None
    return [
        (operation["method"], operation["path"].replace("{key_id}", str(key_id)).replace("{token_id}", "1"))
        for operation in shared.document.operations.values()
        if operation["method"] in UNSAFE
    ]


@quick_on("sqlite", "shared")
async def test_it_holds_for_every_unsafe_route_that_no_token_authenticated_and_changes_nothing(
    shared: ApiPlane,
) -> None:
    """The headers that are there do not matter: an ignored one, or one that will be answered 401, excuses nothing."""
    ada = await shared.user()
    key = await store(ada)
    rows = await shared.rows(api_keys)
    for method, path in [*unsafe_routes(shared, key["id"]), ("POST", "/api/nothing"), ("POST", "/sign-in")]:
        for sent in FROM_ELSEWHERE:
            for authorization in (None, *IGNORED, *UNTRUE):
                extra = {} if authorization is None else {"Authorization": authorization}
                for client in (ada, shared.client()):
                    answer = await client.request(method, path, json={}, headers={**sent, **extra})
                    problem(answer, "forbidden")
                    assert "set-cookie" not in answer.headers
    assert await shared.rows(api_keys) == rows
    assert (await ada.get("/api/auth/me")).status_code == 200


async def test_a_request_that_a_token_authenticated_passes_from_any_site(shared: ApiPlane) -> None:
    """A bearer token is not ambient: a page that sends one knows it."""
    ada = await shared.user()
    key = await store(ada)
    script = await shared.token(ada, "keys:read", "keys:write", "tokens:manage")
    script.cookies = ada.cookies  # the token counts, the cookie does not
    for sent in FROM_ELSEWHERE:
        made = await script.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY}, headers=sent)
        assert made.status_code == 201
        path = f"/api/keys/{made.json()['id']}"
        assert (await script.patch(path, json={"name": "new"}, headers=sent)).status_code == 200
        assert (await script.delete(path, headers=sent)).status_code == 204
        problem(await script.put("/api/keys/9", json={}, headers=sent), "invalid-request")
    reader = await shared.token(ada, "keys:read")
    answer = await reader.delete(f"/api/keys/{key['id']}", headers={"Sec-Fetch-Site": "cross-site"})
    assert "keys:write" in problem(answer, "forbidden")["detail"]


async def test_a_token_excuses_nothing_on_a_route_that_asks_for_none(shared: ApiPlane) -> None:
    script = await shared.token(await shared.user(), "keys:read")
    for sent in FROM_ELSEWHERE:
        for path in ("/api/auth/login", "/api/auth/signup", "/api/nothing", "/livez"):
            body = {"email": "mallory@example.com", "password": "mallory's password"}
            answer = await script.post(path, json=body, headers=sent)
            problem(answer, "forbidden")
            assert "set-cookie" not in answer.headers


@quick_on("sqlite")
async def test_the_origin_may_be_the_public_url_where_a_proxy_rewrites_the_host(
    database: URL, provisioned: Vault
) -> None:
    for public, origin, passes in (
        ("https://keys.example.com", "https://keys.example.com", True),
        ("https://keys.example.com", "https://KEYS.example.com", True),
        ("https://keys.example.com:443", "https://keys.example.com", True),
        ("https://keys.example.com:8443", "https://keys.example.com:8443", True),
        ("https://keys.example.com:8443", "https://keys.example.com", False),
        ("https://keys.example.com", "http://keys.example.com", False),
        ("https://keys.example.com", "https://keys.example.com.evil.example", False),
        ("https://keys.example.com", "null", False),
    ):
        edge = create_app(Settings(database, provisioned.settings, public_url=public))
        transport = httpx.ASGITransport(edge)
        async with lifespan(edge), httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:8000") as client:
            answer = await client.post("/nothing", headers={"Origin": origin})
        assert answer.status_code == (404 if passes else 403), (public, origin)


async def test_a_cookie_does_not_count_on_a_request_of_another_origin(shared: ApiPlane) -> None:
    """A page on a neighbouring host name is of the same site, so the browser sends the cookie along."""
    ada = await shared.user()
    for sent in (
        {"Origin": "https://chat.example.com", "Sec-Fetch-Site": "same-site"},
        {"Origin": "https://chat.example.com"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    ):
        problem(await ada.get("/api/keys", headers=sent), "unauthenticated")
    for sent in ({"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "cross-site"}):
        assert (await ada.get("/api/keys", headers=sent)).status_code == 200, "a link of another site leads here"


async def test_a_page_of_keyman_itself_and_a_script_may_write(shared: ApiPlane) -> None:
    ada = await shared.user()
    for sent in (
        {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{HOST}"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": f"http://{HOST}"},
        # The browser's own word counts before the older header.
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {},
    ):
        answer = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": OPENAI_KEY}, headers=sent)
        assert answer.status_code == 201


async def test_the_host_asked_is_the_one_of_the_request(shared: ApiPlane) -> None:
    """Behind a proxy that keeps `Host`, the origin of the public address is the right one."""
    for host, origin, status in (
        (b"keys.example.com", b"https://keys.example.com", 401),
        (b"keys.example.com", b"https://evil.example", 403),
        (b"KEYS.example.com", b"https://keys.EXAMPLE.com", 401),
        (b"", b"null", 403),
        (b"", b"", 403),
        (b"", b"https://", 403),
    ):
        sent = [(b"host", host), (b"origin", origin)]
        answer = await shared.wire("DELETE", b"/api/keys/1", sent)
        assert answer.status_code == status, (host, origin)


async def test_signing_in_is_protected_too(shared: ApiPlane) -> None:
    """Otherwise a page could sign its visitor in as somebody else, and have them leave their keys there."""
    for name in ("login", "signup"):
        answer = await shared.client().post(
            f"/api/auth/{name}",
            json={"email": "mallory@example.com", "password": "mallory's password"},
            headers={"Sec-Fetch-Site": "cross-site"},
        )
        problem(answer, "forbidden")
        assert "set-cookie" not in answer.headers
