"""What stands in front of keyman: credentials that a proxy adds, cookies of neighbours, front ends on other origins."""

from __future__ import annotations

import html
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from argon2 import PasswordHasher
from sqlalchemy.engine import URL

from keyman.http.body import TAKES
from keyman.identity import applications
from keyman.identity.passwords import Passwords
from keyman.identity.tokens import Token
from keyman.planes.management.api.accounts import PASSWORD_ROUTES
from keyman.values import ApplicationName
from tests.planes.management.api.harness import (
    OPENAI_KEY,
    ApiPlane,
    api_plane_at,
    application_of,
    cookie_of,
    problem,
    store,
)
from tests.support.planes import PASSWORD, Vault

pytestmark = pytest.mark.anyio

HTTPS = "https://keys.example.com"
HOST_COOKIE = "__Host-keyman_session"

At = Callable[..., AbstractAsyncContextManager[ApiPlane]]


@pytest.fixture
def at(sqlite: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> At:
    """Start a plane with other settings."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[ApiPlane]:
        async with api_plane_at(sqlite, provisioned.settings, Passwords(quick_passwords), **settings) as plane:
            yield plane

    return start


def jwt(**claims: object) -> str:
    parts = ({"alg": "ES256", "typ": "JWT"}, {"iss": "https://sso.example.com", "sub": "ada", **claims})
    encoded = [urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


FOREIGN = ("Basic YWRhOnB3", "basic", f"Bearer {jwt()}", f"bearer  {jwt()}", "Bearer x", "Bearer", "", "Negotiate YII=")
"""What a proxy adds for its own use."""


def set_cookies(answer: httpx.Response) -> dict[str, tuple[str, dict[str, str]]]:
    """Each cookie that an answer sets, by its name: its value, and its attributes in lower case."""
    found = {}
    for header in answer.headers.get_list("set-cookie"):
        pair, *attributes = (part.strip() for part in header.split(";"))
        name, _, value = pair.partition("=")
        found[name] = (value.strip('"'), {k.lower(): v for k, _, v in (each.partition("=") for each in attributes)})
    return found


# --- credentials


async def test_what_a_proxy_adds_is_ignored_and_the_cookie_counts(shared: ApiPlane) -> None:
    ada = await shared.user()
    for authorization in FOREIGN:
        answer = await ada.get("/api/auth/me", headers={"Authorization": authorization})
        assert answer.status_code == 200, authorization
        made = await ada.post("/api/tokens", json={"name": "x"}, headers={"Authorization": authorization})
        assert made.status_code == 201


async def test_without_a_cookie_what_a_proxy_adds_is_no_credential(shared: ApiPlane) -> None:
    for client in (shared.client(), shared.with_cookie("ended")):
        for authorization in FOREIGN:
            answer = await client.get("/api/keys", headers={"Authorization": authorization})
            problem(answer, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_jwt_where_none_count_is_refused_with_the_reason(shared: ApiPlane) -> None:
    refused = problem(
        await shared.client(headers={"Authorization": f"Bearer {jwt()}"}).get("/api/keys"), "unauthenticated"
    )
    assert "this keyman accepts none" in refused["detail"]
    assert "KEYMAN_JWT_ISSUER" in refused["detail"]
    foreign = {"Authorization": "Bearer of-somebody-else"}
    other = problem(await shared.client(headers=foreign).get("/api/keys"), "unauthenticated")
    assert "JWT" not in other["detail"]


async def test_an_applications_token_is_refused_with_where_it_counts_whether_it_is_valid_or_not(
    shared: ApiPlane,
) -> None:
    valid = (await applications.create(shared.database, ApplicationName("of-the-resolver"), ["OPENAI"])).token
    told = set()
    for token in (valid, Token.generate()):
        answer = await shared.client(headers={"Authorization": f"Bearer {token.reveal()}"}).get("/api/keys")
        told.add(problem(answer, "unauthenticated")["detail"])
    (detail,) = told
    assert "The token of an application counts only at the resolver and the gateway." in detail


async def test_a_token_counts_with_any_spelling_of_the_scheme_and_only_it(shared: ApiPlane) -> None:
    ada = await shared.user()
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    for scheme in ("Bearer", "bearer", "BEARER", "bEaReR "):
        answer = await shared.client(headers={"Authorization": f"{scheme} {token}"}).get("/api/keys")
        assert answer.status_code == 200, scheme
    for bad in (f"Bearer {token}x", f"Bearer {token}, Basic YTpi", f"bearer {token} {token}", "Bearer km_"):
        problem(await ada.get("/api/keys", headers={"Authorization": bad}), "unauthenticated")


async def test_two_authorization_headers_are_a_bad_request(shared: ApiPlane) -> None:
    ada = await shared.user()
    token = (await ada.post("/api/tokens", json={"name": "x"})).json()["token"]
    cookie = (b"cookie", f"keyman_session={cookie_of(ada)}".encode())
    for first in (f"Bearer {token}", "Basic YTpi", ""):
        for second in (f"Bearer {token}", f"Bearer {jwt()}"):
            pair = [(b"authorization", first.encode()), (b"authorization", second.encode())]
            for path in (b"/api/keys", b"/livez"):
                problem(await shared.wire("GET", path, [*pair, cookie]), "invalid-request")


# --- the session cookie


async def test_over_https_no_neighbour_can_plant_the_session_cookie(at: At) -> None:
    async with at(public_url=HTTPS) as plane:
        body = {"email": "ada@example.com", "password": PASSWORD}
        answers = [await plane.client().post("/api/auth/signup", json=body)]
        answers.append(await plane.client().post("/api/auth/login", json=body))
        value, attributes = set_cookies(answers[-1])[HOST_COOKIE]
        assert "secure" in attributes
        assert attributes["path"] == "/"
        assert "domain" not in attributes
        for name, status in (
            (HOST_COOKIE, 200),
            ("keyman_session", 401),
            ("__Secure-keyman_session", 401),
            ("__host-keyman_session", 401),
            (f"{HOST_COOKIE}x", 401),
        ):
            answer = await plane.client(headers={"Cookie": f"{name}={value}"}).get("/api/auth/me")
            assert answer.status_code == status, name
        # The cookie of before the upgrade, or one that somebody planted, goes with the next answer that sets one.
        answers.append(await plane.client(headers={"Cookie": f"{HOST_COOKIE}={value}"}).post("/api/auth/logout"))
        for answer in answers:
            cookies = set_cookies(answer)
            assert cookies.keys() == {HOST_COOKIE, "keyman_session"}
            planted, attributes = cookies["keyman_session"]
            assert (planted, attributes["max-age"], attributes["path"]) == ("", "0", "/")
        assert plane.document is not None
        assert plane.document.document["components"]["securitySchemes"]["session"]["name"] == HOST_COOKIE


async def test_over_http_the_cookie_has_its_bare_name(at: At) -> None:
    for url in (None, "http://127.0.0.1:8000", "http://keys.example.com"):
        async with at(public_url=url, cookie_name="kk") as plane:
            email = f"{url or 'none'}@example.com".replace("/", "").replace(":", "")
            answer = await plane.client().post("/api/auth/signup", json={"email": email, "password": PASSWORD})
            assert set_cookies(answer).keys() == {"kk"}
            value = set_cookies(answer)["kk"][0]
            for name, status in (("kk", 200), ("keyman_session", 401), ("__Host-kk", 401)):
                answer = await plane.client(headers={"Cookie": f"{name}={value}"}).get("/api/auth/me")
                assert answer.status_code == status, name


async def test_two_instances_on_one_host_name_keep_their_sessions_apart(at: At) -> None:
    """Cookies know no port: a browser that signs in to one instance must not lose its session of the other."""
    body = {"email": "ada@example.com", "password": PASSWORD}
    async with at(public_url=HTTPS, cookie_name="one") as one, at(public_url=HTTPS, cookie_name="two") as two:
        kept = set_cookies(await one.client().post("/api/auth/signup", json=body))
        kept |= set_cookies(await two.client().post("/api/auth/login", json=body))
        jar = "; ".join(f"{name}={value}" for name, (value, _) in kept.items() if value)
        assert jar.count(";") == 1
        for plane in (one, two):
            assert (await plane.client(headers={"Cookie": jar}).get("/api/auth/me")).status_code == 200


@pytest.mark.parametrize("separate", [True, False])
async def test_the_same_cookie_twice_is_no_credential(shared: ApiPlane, separate: bool) -> None:
    """One of them was planted, and the order in which a browser sends them says nothing."""
    ada, eve = cookie_of(await shared.user()), cookie_of(await shared.user())
    for first, second in ((ada, eve), (ada, ada), ("", ada), (ada, "")):
        pairs = [f"keyman_session={first}", "a=b", f"keyman_session={second}"]
        lines = pairs if separate else ["; ".join(pairs)]
        sent = [(b"cookie", line.encode()) for line in lines]
        said = problem(await shared.wire("GET", b"/api/auth/me", sent), "unauthenticated")
        assert "two session cookies" in said["detail"]
        assert ada not in str(said)
        body = json.dumps({"email": "nobody@example.com", "password": PASSWORD}).encode()
        answer = await shared.wire("POST", b"/api/auth/login", [*sent, (b"content-type", b"application/json")], body)
        problem(answer, "unauthenticated")
    others = [(b"cookie", f"a=1; a=2; keyman_session={ada}; a=3; keyman_sessionx=1".encode()), (b"cookie", b"a=4")]
    assert (await shared.wire("GET", b"/api/auth/me", others)).status_code == 200


async def test_with_a_token_nobody_looks_at_the_cookies(shared: ApiPlane) -> None:
    script = await shared.token(await shared.user())
    answer = await script.get("/api/keys", headers={"Cookie": "keyman_session=a; keyman_session=b"})
    assert answer.status_code == 200


# --- below a root path


async def test_everything_is_below_the_root_path(at: At) -> None:
    async with at(root_path="/tools/keyman") as plane:
        visitor = plane.client(headers={"Accept": "text/html"})
        for path in (
            "/",
            "/api/keys",
            "/sign-in",
            "/docs",
            "/metrics",
            "/tools",
            "/tools/keymanx",
            "/tools/keyman2/livez",
        ):
            assert (await visitor.get(path)).status_code == 404, path
        for path, status in (("/livez", 200), ("/readyz", 200), ("/sign-in", 200), ("/docs", 200), ("/api/keys", 401)):
            assert (await visitor.get(f"/tools/keyman{path}")).status_code == status, path
        for path in ("/livez", "/readyz", "/problems", "/problems/not-found"):
            assert (await visitor.get(path)).status_code == 200, path
        for path in ("", "/", "/problems/not-found"):
            answer = await visitor.get(f"/tools/keyman{path}")
            assert answer.status_code == (200 if "problems" in path else 303)
        assert answer.headers.get("location", "/tools/keyman/sign-in") == "/tools/keyman/sign-in"
        missing = await plane.client().get("/tools/keyman/api/nothing")
        assert problem(missing, "not-found")["type"] == "/problems/not-found"
        assert (await plane.client().post("/tools/keyman/livez")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_every_address_in_a_header_has_the_root_path(at: At) -> None:
    async with at(root_path="/keyman", public_url=HTTPS) as plane:
        body = {"email": "ada@example.com", "password": PASSWORD}
        signed_up = await plane.client().post("/keyman/api/auth/signup", json=body)
        cookies = set_cookies(signed_up)
        value, attributes = cookies["__Secure-keyman_session"]
        assert attributes["path"] == "/keyman"
        assert "secure" in attributes
        ada = plane.client(headers={"Cookie": f"__Secure-keyman_session={value}"})
        for name in (HOST_COOKIE, "keyman_session"):
            other = await plane.client(headers={"Cookie": f"{name}={value}"}).get("/keyman/api/auth/me")
            assert other.status_code == 401, name
        for _ in range(2):
            sent = {"service": "OPENAI", "api_key": OPENAI_KEY}
            made = await ada.post("/keyman/api/keys", json=sent)
            assert made.headers["location"] == f"/keyman/api/keys/{made.json()['id']}"
            assert (await ada.get(made.headers["location"])).status_code == 200
        link = (await ada.get("/keyman/api/keys?limit=1")).headers["link"]
        assert link.startswith("</keyman/api/keys?")
        assert (await ada.get(link[1:].partition(">")[0])).status_code == 200
        for path, leads in (("/", "/settings/api-keys"), ("/settings", "/settings/api-keys")):
            assert (await ada.get(f"/keyman{path}")).headers["location"] == f"/keyman{leads}"
        document = (await ada.get("/keyman/docs/openapi.json")).json()
        assert document["servers"] == [{"url": "/keyman"}]
        assert document["components"]["securitySchemes"]["session"]["name"] == "__Secure-keyman_session"


ADDRESS = re.compile(r"""(?:href|src|action|formaction|hx-get|hx-post)="(/[^"]*)""")


async def test_every_address_on_a_page_has_the_root_path_and_leads_somewhere(at: At) -> None:
    """It follows every address from the first page on, as a crawler does."""
    async with at(root_path="/keyman") as plane:
        browser = plane.client(headers={"Accept": "text/html", "Sec-Fetch-Site": "same-origin"})
        waiting = ["/keyman/sign-in", "/keyman/sign-up", "/keyman/problems", "/keyman/docs"]
        seen: set[str] = set()
        for signs_up in (False, True):
            if signs_up:
                form = {"email": "ada@example.com", "password": PASSWORD}
                assert (await browser.post("/keyman/sign-up", data=form)).headers[
                    "location"
                ] == "/keyman/settings/api-keys"
                for _ in range(60):
                    sent = {"service": "OPENAI", "api_key": OPENAI_KEY}
                    assert (await browser.post("/keyman/api/keys", json=sent)).status_code == 201
                token = await browser.post("/keyman/settings/access-tokens", data={"name": "x", "scopes": "keys:read"})
                assert "/keyman/api/keys" in token.text
                waiting += ["/keyman/settings/api-keys", *ADDRESS.findall(token.text)]
            while waiting:
                address = html.unescape(waiting.pop())
                assert address.startswith("/keyman/"), address
                known = re.sub("[0-9]+", "1", address)
                if known in seen:
                    continue
                seen.add(known)
                page = await browser.get(address)
                assert page.status_code in (200, 303, 405), (address, page.status_code)
                if page.headers.get("content-type", "").startswith("text/html"):
                    waiting += ADDRESS.findall(page.text)
        assert {"/keyman/settings/activity", "/keyman/settings/account", "/keyman/settings/access-tokens"} <= seen
        assert any("/static/" in address for address in seen)
        assert any("cursor=" in address for address in seen)


async def test_a_sign_in_form_leads_back_to_the_page_below_the_root_path(at: At) -> None:
    async with at(root_path="/keyman") as plane:
        browser = plane.client(headers={"Accept": "text/html", "Sec-Fetch-Site": "same-origin"})
        await browser.post("/keyman/sign-up", data={"email": "ada@example.com", "password": PASSWORD})
        browser.cookies.clear()
        for sent in ({}, {"HX-Request": "true", "Referer": f"{plane.settings.public_url}/keyman/settings/activity"}):
            page = await browser.get("/keyman/settings/activity", headers=sent)
            assert page.status_code == 401
            assert 'name="back" value="/settings/activity"' in page.text
        form = {"email": "ada@example.com", "password": PASSWORD, "back": "/settings/activity"}
        answer = await browser.post("/keyman/sign-in", data=form)
        assert answer.headers["location"] == "/keyman/settings/activity"
        form["back"] = "//evil.example/settings"
        assert (await browser.post("/keyman/sign-in", data=form)).headers["location"] == "/keyman/settings/api-keys"


async def test_the_cross_site_rule_and_cors_hold_below_the_root_path(at: At) -> None:
    async with at(root_path="/keyman", cors_origins=frozenset({CHAT})) as plane:
        client = plane.client()
        answer = await client.options("/keyman/api/keys", headers={"Origin": CHAT, **ASKS})
        assert answer.headers["access-control-allow-origin"] == CHAT
        for path in ("/api/keys", "/keyman/api/auth/login", "/keyman/sign-in"):
            answer = await client.options(path, headers={"Origin": CHAT, **ASKS})
            assert "access-control-allow-origin" not in answer.headers, path
        for path in ("/keyman/api/auth/login", "/keyman/api/keys", "/api/keys", "/nothing"):
            problem(await client.post(path, json={}, headers={"Sec-Fetch-Site": "cross-site"}), "forbidden")


# --- CORS

CHAT = "https://chat.example.com"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


async def test_a_preflight_of_a_listed_origin_is_answered_without_credentials(at: At) -> None:
    async with at(public_url=HTTPS, cors_origins=frozenset({CHAT, "http://localhost:5173"})) as plane:
        for origin in (CHAT, "http://localhost:5173"):
            for path in ("/api/keys", "/api/keys/1", "/api/auth/me", "/api/nothing"):
                answer = await plane.client().options(path, headers={"Origin": origin, **ASKS})
                assert answer.status_code == 204
                expected = {
                    "access-control-allow-origin": origin,
                    "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
                    "access-control-allow-headers": "Authorization, Content-Type, If-Match, Idempotency-Key",
                    "access-control-max-age": "600",
                }
                assert expected.items() <= dict(answer.headers).items()
                assert answer.headers["vary"] == "Origin"
                assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        *((path, CHAT) for path in ("/livez", "/sign-in", "/", "/docs/openapi.json", "/api", "/apis/keys")),
        *((path, CHAT) for path in sorted(PASSWORD_ROUTES) if " " not in path),
        ("/api//auth/login", CHAT),
        ("/api/auth/login/", CHAT),
        *(
            ("/api/keys", origin)
            for origin in ("https://evil.example", "null", "*", "", f"{CHAT}, {CHAT}", f"{CHAT}:443", CHAT.upper())
        ),
    ],
)
async def test_no_other_origin_and_no_other_path_has_cors(at: At, path: str, origin: str) -> None:
    async with at(public_url=HTTPS, cors_origins=frozenset({CHAT})) as plane:
        for method, extra in (("OPTIONS", ASKS), ("GET", {}), ("POST", {})):
            answer = await plane.client().request(method, path, headers={"Origin": origin, **extra})
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert answer.headers.get("vary") == ("Origin" if path.startswith("/api/") else None)


async def test_every_route_that_takes_a_password_is_without_cors(shared: ApiPlane) -> None:
    application = application_of(shared)  # routes are not part of what a plane shares
    taking = set()
    for route in application.routes:
        for handler in getattr(route, "route_handlers", []):
            body = handler.opt.get(TAKES)
            if body is not None and any("password" in field.name for field in msgspec.structs.fields(body)):
                (method,) = handler.http_methods
                taking.add((method, route.path))
    excluded = [entry.rpartition(" ")[::2] for entry in PASSWORD_ROUTES]
    assert {path for _, path in taking} == {path for _, path in excluded}
    assert all((method, path) in taking for method, path in excluded if method)


async def test_an_account_can_be_read_from_another_origin_and_not_deleted(at: At) -> None:
    async with at(public_url=HTTPS, cors_origins=frozenset({CHAT})) as plane:
        for method, allowed in (("GET", True), ("DELETE", False)):
            ask = {"Origin": CHAT, "Access-Control-Request-Method": method}
            answers = [
                await plane.client().options("/api/auth/me", headers=ask),
                await plane.client().request(method, "/api/auth/me", headers={"Origin": CHAT}),
            ]
            assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [
                CHAT if allowed else None
            ] * 2


async def test_a_page_of_a_listed_origin_works_with_a_token(at: At) -> None:
    async with at(public_url=HTTPS, cors_origins=frozenset({CHAT})) as plane:
        body = {"email": "ada@example.com", "password": PASSWORD}
        signed_up = await plane.client().post("/api/auth/signup", json=body)
        cookie = f"{HOST_COOKIE}={set_cookies(signed_up)[HOST_COOKIE][0]}"
        ada = plane.client(headers={"Cookie": cookie})
        token = (await ada.post("/api/tokens", json={"name": "chat"})).json()["token"]
        page = {"Origin": CHAT, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
        script = plane.client(headers={"Authorization": f"Bearer {token}", **page})
        key = await store(script)
        answers = [
            await script.get("/api/keys"),
            await script.patch(f"/api/keys/{key['id']}", json={"disabled": True}),
            await script.put(f"/api/keys/{key['id']}", json={"api_key": OPENAI_KEY}, headers={"If-Match": '"old"'}),
            await script.get("/api/nothing"),
            await script.post("/api/keys", content=b"{"),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 412, 404, 415]
        # No cookie counts on a request of another origin, not even its own site's.
        answers += [await ada.get("/api/keys", headers=page), await ada.post("/api/tokens", json={}, headers=page)]
        assert [answer.status_code for answer in answers[5:]] == [401, 403]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == CHAT
            assert answer.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in answer.headers
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            assert exposed == {
                *("ETag", "Link", "Location", "Retry-After", "X-Request-ID", "Idempotent-Replayed"),
                *("WWW-Authenticate", "Keyman-Total-Count"),
            }


async def test_without_origins_there_is_no_cors(shared: ApiPlane) -> None:
    answer = await shared.client().options("/api/keys", headers={"Origin": CHAT, **ASKS})
    assert answer.headers["allow"] == "GET, HEAD, POST, OPTIONS"
    for name in ("vary", "access-control-allow-origin", "access-control-allow-methods"):
        assert name not in answer.headers


# --- ETags that a proxy has changed


@pytest.mark.parametrize("changed", ['W/"{}"', '"{}-gzip"', '"{}-br"', 'W/"{}-gzip"', '"x", W/"{}-br"'])
async def test_an_etag_that_a_proxy_weakened_or_suffixed_still_matches(shared: ApiPlane, changed: str) -> None:
    ada = await shared.user()
    path = f"/api/keys/{(await store(ada))['id']}"
    for name in ("one", "two"):
        etag = (await ada.get(path)).headers["etag"]
        sent = {"If-Match": changed.format(etag.strip('"'))}
        assert (await ada.patch(path, json={"name": name}, headers=sent)).status_code == 200
        problem(await ada.delete(path, headers=sent), "precondition-failed")
    etag = (await ada.get(path)).headers["etag"].strip('"')
    for bad in (f'w/"{etag}"', f'W/ "{etag}"', f'"{etag}"-gzip', f'"{etag}-gzip-br"', f'"{etag}-zip"', f"W/{etag}"):
        problem(await ada.delete(path, headers={"If-Match": bad}), "precondition-failed")


async def test_no_header_of_a_proxy_says_what_the_host_or_the_scheme_is(shared: ApiPlane) -> None:
    ada = await shared.user()
    sent = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.example"}
    for _ in range(2):
        await store(ada)
    answer = await ada.get("/api/keys?limit=1", headers=sent)
    assert "evil.example" not in str(answer.headers)
    page = await ada.post("/settings/access-tokens", data={"name": "x", "scopes": "keys:read"}, headers=sent)
    assert page.status_code == 200
    assert "evil.example" not in page.text
    problem(await ada.post("/api/keys", json={}, headers={"Origin": "https://evil.example", **sent}), "forbidden")
