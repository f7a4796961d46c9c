"""The cross-site rule: a page of another site cannot make a browser change anything."""

from __future__ import annotations

import pytest

from keyman.keys.tables import api_keys
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, problem, store

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
async def test_an_unsafe_method_passes_only_from_here_or_from_no_page(shared: ApiPlane, method: str) -> None:
    for site in SITES:
        for origin in ORIGINS:
            answer = await shared.wire(method, b"/api/keys/1", headers(site, origin))
            if is_allowed(site, origin):
                assert answer.status_code in (401, 405), (site, origin)
            else:
                problem(answer, "forbidden")
                assert not answer.headers.get("set-cookie")


@pytest.mark.parametrize("method", SAFE)
async def test_a_safe_method_passes_from_everywhere(shared: ApiPlane, method: str) -> None:
    for site in SITES:
        for origin in ORIGINS:
            answer = await shared.wire(method, b"/api/keys", headers(site, origin))
            assert answer.status_code == (204 if method == "OPTIONS" else 401)
            assert "access-control-allow-origin" not in answer.headers
            assert "access-control-allow-credentials" not in answer.headers


async def test_it_holds_for_every_unsafe_route_with_every_proof_and_changes_nothing(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada)
    script = await shared.token(ada, "keys:read", "keys:write", "tokens:manage")
    rows = await shared.rows(api_keys)
    assert shared.document is not None
    for operation in shared.document.operations.values():
        if operation["method"] not in UNSAFE:
            continue
        path = operation["path"].replace("{key_id}", str(key["id"])).replace("{token_id}", "1")
        for client in (ada, script, shared.client()):
            for sent in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
                answer = await client.request(operation["method"], path, json={}, headers=sent)
                problem(answer, "forbidden")
    assert await shared.rows(api_keys) == rows
    assert (await ada.get("/api/auth/me")).status_code == 200


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
