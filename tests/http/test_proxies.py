"""keyman behind the real nginx and HAProxy, as `docs/guide/proxy.md` tells operators to set them up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright
from sqlalchemy.engine import URL

from tests.planes.management.web.moves import fill, press, rows, save, sign_in
from tests.support.browser import DESKTOP, NOTE_SCRIPTS, QUIET, WATCH_POLICY, Person, chromium_absence, chromium_path
from tests.support.cli import Service, serve, variables
from tests.support.database import copied
from tests.support.http import NO_TLS, sign_up
from tests.support.needs import require
from tests.support.planes import PASSWORD, Vault
from tests.support.proxies import haproxy, nginx, require_proxies
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "proxy.md"
KEY = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJodHRwczovL3Nzby5leGFtcGxlLmNvbSIsInN1YiI6ImFkYSJ9.c2lnbmF0dXJl"
OWN = ("proxy_pass", "proxy_http_version", "proxy_set_header Connection")
"""What `nginx` of tests.support.proxies says itself."""


def recommended_nginx() -> str:
    """The lines that the guide puts into a location of nginx."""
    block = re.search(r"```nginx\nlocation / \{\n(.*?)\n\}\n```", GUIDE.read_text(), re.DOTALL)
    assert block is not None
    return "\n".join(line for line in block[1].splitlines() if not line.strip().startswith(OWN))


def recommended_haproxy(section: str) -> str:
    """The lines that the guide puts into a section of HAProxy, without addresses."""
    block = re.search(rf"^{section}\n(.*?)(?:\n\n|\n```)", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    own = ("bind", "server", "default_backend")
    return "\n".join(line for line in block[1].splitlines() if not line.strip().startswith(own))


@pytest.fixture(scope="module")
def proxied_env(provisioned: Vault, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `keyman serve` needs, with a database of this module's own. Skips without the proxies."""
    require_proxies()
    database = URL.create("sqlite+aiosqlite", database=str(tmp_path_factory.mktemp("proxied") / "keyman.db"))
    copied(migrated_sqlite, Path(str(database.database)))
    return variables(provisioned.settings, database)


@pytest.fixture(scope="module")
def proxied(proxied_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One management plane that trusts the proxies of this machine."""
    directory = tmp_path_factory.mktemp("service")
    with serve({**proxied_env, "KEYMAN_TRUSTED_PROXIES": "127.0.0.1"}, directory) as service:
        yield service


def token_of(ada: httpx.Client, *scopes: str) -> str:
    made = ada.post("/api/tokens", json={"name": "x", **({"scopes": scopes} if scopes else {})})
    assert made.status_code == 201, made.text
    return str(made.json()["token"])


def store(client: httpx.Client, **fields: str) -> httpx.Response:
    answer = client.post("/api/keys", json={"service": "OPENAI", "api_key": KEY, **fields})
    assert answer.status_code == 201, answer.text
    return answer


def test_a_plane_answers_through_nginx_and_through_haproxy(proxied: Service, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", proxied.url) as front, haproxy(tmp_path / "haproxy", front.url) as outer:
        assert httpx.get(f"{outer.url}/livez", verify=NO_TLS).json() == {"status": "ok"}


def test_what_the_guide_recommends_works(proxied: Service, tmp_path: Path) -> None:
    inner = nginx(tmp_path / "nginx", proxied.url, location=recommended_nginx())
    outer = haproxy(
        tmp_path / "haproxy",
        proxied.url,
        frontend=recommended_haproxy("frontend keys"),
        backend=recommended_haproxy("backend keyman"),
    )
    with inner as one, outer as two:
        for front, email in ((one, "nginx@example.com"), (two, "haproxy@example.com")):
            ada = sign_up(front.url, email)
            ada.headers["Origin"] = front.url  # as an old browser, which does not send Sec-Fetch-Site
            stored = store(ada)
            path, etag = stored.headers["location"], stored.headers["etag"]
            ada.headers["Origin"] = "https://evil.example"
            assert ada.delete(path).status_code == 403
            script = httpx.Client(
                base_url=front.url,
                headers={"Authorization": f"Bearer {token_of(sign_in_at(front.url, email))}"},
                verify=NO_TLS,
            )
            with script:
                assert script.delete(path, headers={"If-Match": etag}).status_code == 204


def sign_in_at(url: str, email: str) -> httpx.Client:
    client = httpx.Client(
        base_url=url, timeout=PATIENCE, verify=NO_TLS, limits=httpx.Limits(max_keepalive_connections=0)
    )
    assert client.post("/api/auth/login", json={"email": email, "password": PASSWORD}).status_code == 200
    return client


def test_a_proxy_that_asks_for_a_password_leaves_the_session_alone(proxied: Service, tmp_path: Path) -> None:
    """nginx passes the browser's Basic credentials on to keyman."""
    tmp_path.joinpath("passwords").write_text("gate:{PLAIN}open\n")
    gate = f'auth_basic "gate"; auth_basic_user_file {tmp_path}/passwords;'
    with nginx(tmp_path / "nginx", proxied.url, location=gate) as front:
        assert httpx.get(f"{front.url}/api/keys", verify=NO_TLS).text.count("nginx") > 0, "nginx refuses"
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=front.url, auth=("gate", "open"), verify=NO_TLS, limits=limits) as ada:
            assert ada.get("/api/keys").headers["www-authenticate"] == "Bearer"
            body = {"email": "gate@example.com", "password": PASSWORD}
            assert ada.post("/api/auth/signup", json=body).status_code == 201
            store(ada)
            assert len(ada.get("/api/keys").json()) == 1


def test_a_proxy_that_adds_a_jwt_leaves_the_session_alone(proxied: Service, tmp_path: Path) -> None:
    added = f"http-request set-header Authorization 'Bearer {JWT}'"
    with haproxy(tmp_path / "haproxy", proxied.url, frontend=added) as front:
        ada = sign_up(front.url, "jwt@example.com")
        store(ada)
        refused = ada.post("/api/keys", json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403, "an ignored header excuses nothing"
        ada.cookies.clear()
        answer = ada.get("/api/keys")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_proxy_that_adds_a_second_authorization_is_noticed(proxied: Service, tmp_path: Path) -> None:
    token = token_of(sign_up(proxied.url, "second@example.com"))
    added = f"http-request add-header Authorization 'Bearer {JWT}'"
    with haproxy(tmp_path / "haproxy", proxied.url, frontend=added) as front:
        answer = httpx.get(f"{front.url}/api/keys", headers={"Authorization": f"Bearer {token}"}, verify=NO_TLS)
        assert answer.status_code == 400
        assert "more than one Authorization header" in answer.json()["detail"]


def test_a_proxy_that_compresses_may_weaken_the_etag(proxied: Service, tmp_path: Path) -> None:
    compressing = "gzip on; gzip_min_length 1; gzip_proxied any; gzip_types application/json;"
    with nginx(tmp_path / "nginx", proxied.url, http=compressing) as front:
        ada = sign_up(front.url, "gzip@example.com")
        path = store(ada).headers["location"]
        shown = ada.get(path)
        assert shown.headers["content-encoding"] == "gzip"
        assert shown.headers["etag"].startswith("W/")
        condition = {"If-Match": shown.headers["etag"]}
        assert ada.patch(path, json={"name": "mine"}, headers=condition).status_code == 200
        assert ada.patch(path, json={"name": "late"}, headers=condition).status_code == 412


def test_a_proxy_may_rewrite_the_host_where_the_public_url_is_set(proxied_env: dict[str, str], tmp_path: Path) -> None:
    public = "http://127.0.0.1:9"
    given = {**proxied_env, "KEYMAN_PUBLIC_URL": public}
    rewrite = "proxy_set_header Host internal.example; proxy_set_header X-Forwarded-Host evil.example;"
    with (
        serve(given, tmp_path / "service") as service,
        nginx(tmp_path / "nginx", service.url, location=rewrite) as front,
    ):
        ada = sign_up(front.url, "host@example.com")
        for origin, status in (
            (public, 201),
            ("https://evil.example", 403),
            ("http://evil.example", 403),
            ("null", 403),
        ):
            answer = ada.post("/api/keys", json={"service": "OPENAI", "api_key": KEY}, headers={"Origin": origin})
            assert answer.status_code == status, origin


def test_the_address_of_a_client_comes_through_two_proxies_with_ports_and_lines(
    proxied: Service, tmp_path: Path
) -> None:
    """The outer one appends the port, as Azure's gateways do; the inner one adds a line of its own."""
    with_port = "http-request set-header X-Forwarded-For '%[req.hdr(X-Forwarded-For)], %[src]:%[src_port]'"
    inner = haproxy(tmp_path / "inner", proxied.url, frontend="option forwardfor")
    with inner as second, haproxy(tmp_path / "outer", second.url, frontend=with_port) as first:
        transport = httpx.HTTPTransport(local_address="127.0.0.2", verify=NO_TLS)
        with httpx.Client(base_url=first.url, transport=transport, timeout=PATIENCE) as ada:
            ada.headers["X-Forwarded-For"] = "203.0.113.66"  # what a client invents counts for nothing
            body = {"email": "address@example.com", "password": PASSWORD}
            assert ada.post("/api/auth/signup", json=body).status_code == 201
            assert [entry["address"] for entry in ada.get("/api/audit").json()] == ["127.0.0.2"]


def test_with_the_lines_of_the_guide_no_body_reaches_the_proxys_disk(proxied: Service, tmp_path: Path) -> None:
    """By default nginx writes a body of more than 16 KiB to a file, with the API key in it."""
    token = token_of(sign_up(proxied.url, "disk@example.com"))
    long = b'{"service": "OPENAI", "api_key": "' + b"x" * 60_000 + b'"}'
    for location, buffers in (("", True), (recommended_nginx(), False)):
        with nginx(tmp_path / f"nginx-{buffers}", proxied.url, location=location) as front:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            answer = httpx.post(f"{front.url}/api/keys", content=long, headers=headers, verify=NO_TLS)
            assert answer.status_code == 400
            assert ("buffered to a temporary file" in front.errors.read_text()) is buffers


def test_the_pages_work_below_a_path_behind_nginx(proxied_env: dict[str, str], tmp_path: Path) -> None:
    require("chromium", chromium_absence())
    elsewhere = 'location = / { return 200 "another application"; }'
    given = {**proxied_env, "KEYMAN_ROOT_PATH": "/keyman", "KEYMAN_PUBLIC_URL": "http://127.0.0.1:9"}
    with (
        serve(given, tmp_path / "service") as service,
        nginx(tmp_path / "nginx", service.url, server=elsewhere, location=recommended_nginx()) as front,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)
        context = browser.new_context(viewport=DESKTOP, locale="en-US", color_scheme="light")
        context.set_default_timeout(PATIENCE * 1000)
        context.add_init_script(WATCH_POLICY)
        context.add_init_script(NOTE_SCRIPTS)
        origin = f"{front.url}/keyman"
        ada = Person(origin, context, context.new_page(), "below@example.com")
        page = ada.watch(ada.page)
        ada.sign_up()
        press(page, "Add New Key")
        fill(page, service="OpenAI", label="Below a path", key=KEY)
        save(page)
        assert rows(page).count() == 1
        page.screenshot(path=tmp_path / "keys.png")
        (cookie,) = context.cookies()
        assert (cookie["name"], cookie["path"]) == ("keyman_session", "/keyman")
        for name in ("Access Tokens", "Activity", "Account"):
            page.get_by_role("link", name=name, exact=True).click()
            page.wait_for_url(f"{origin}/settings/{name.lower().replace(' ', '-')}")
        page.get_by_role("link", name="Access Tokens").click()
        opened = press(page, "New Token")
        page.get_by_label("Name", exact=True).fill("CI pipeline")
        opened.get_by_role("button", name="Create Token").click()
        line = page.get_by_label("Try it").input_value()
        assert line.endswith(" http://127.0.0.1:9/keyman/api/keys"), line
        page.screenshot(path=tmp_path / "token.png")
        opened.get_by_role("button", name="Done").click()
        # The session ends: a button asks for a new one over the page, and a link leads on after signing in.
        page.get_by_role("link", name="API Keys").click()
        context.clear_cookies()
        press(page, "Add New Key")
        with page.expect_navigation():
            sign_in(page, ada.email)
        press(page, "Add New Key")
        page.get_by_label("Service", exact=True).wait_for()
        page.keyboard.press("Escape")
        context.clear_cookies()
        page.get_by_role("link", name="Activity").click()
        sign_in(page, ada.email)
        page.wait_for_url(f"{origin}/settings/activity")
        page.get_by_role("link", name="API Keys").click()
        assert rows(page).count() == 1
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{origin}/sign-in")
        page.goto(f"{origin}/docs#/operations/createKey")
        page.get_by_role("heading", name="Store a key").wait_for()
        page.screenshot(path=tmp_path / "docs.png")
        assert not ada.troubles("Failed to load resource")
        assert [url for url in ada.asked if not url.startswith((f"{origin}/", "data:"))] == []
        browser.close()
