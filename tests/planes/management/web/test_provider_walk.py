"""Sign-in with OpenID Connect in Chromium: to OpenBao's own provider, on another site than keyman, and back."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from keyman.identity.provider import PAUSE, TIMEOUT
from tests.planes.management.web.conftest import people
from tests.planes.management.web.moves import ACCOUNT, ACTIVITY, KEYS, REFUSED, join, narrow_places
from tests.support.browser import DESKTOP, PHONE, Arrive, Person, chromium_absence
from tests.support.cli import serve, variables
from tests.support.database import copied
from tests.support.needs import quick, require
from tests.support.openid import BaoProvider, Change, bao_provider, members
from tests.support.planes import PASSWORD, Vault
from tests.support.waiting import PATIENCE

CONNECTED = f"{ACCOUNT}/sign-ins"
DELETE = f"{ACCOUNT}/delete"
BUTTON = "Sign in with Company"

PICTURES = os.environ.get("PICTURES")
"""A directory for pictures of the pages."""

NAMES = itertools.count()


@dataclass(frozen=True)
class Stage:
    """A plane, and the provider where its users sign in."""

    origin: str
    bao: BaoProvider
    database: Path

    def employee(self) -> str:
        """Add somebody who can log in at the provider, and return their name there."""
        name = f"{self.bao.name}{next(NAMES)}"
        self.bao.add(name, f"{name}@company.example")
        return name


def staged(name: str, directory: Path, migrated: Path, vault: Vault, change: Change | None = None) -> Iterator[Stage]:
    require("chromium", chromium_absence())
    server = vault.server
    database = copied(migrated, directory / "keyman.db")
    with bao_provider(
        server.address, server.root_token.reveal(), name=name, host="localhost", has_page=True
    ) as provider:
        end_session = members(end_session_endpoint=f"{provider.origin}/logout")
        provider.changes["openid-configuration"] = change or end_session
        provider.set_up("http://127.0.0.1/later")
        given = {
            **variables(vault.settings, database),
            "KEYMAN_OIDC_ISSUER": provider.issuer,
            "KEYMAN_OIDC_CLIENT_ID": provider.client_id,
            "KEYMAN_OIDC_CLIENT_SECRET": provider.client_secret,
            "KEYMAN_OIDC_NAME": "Company",
        }
        with serve(given, directory / "plane") as service:
            provider.set_up(f"{service.url}/auth/oidc/callback")
            yield Stage(service.url, provider, directory / "keyman.db")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, provisioned: Vault) -> Iterator[Stage]:
    yield from staged("company", tmp_path_factory.mktemp("stage"), migrated_sqlite, provisioned)


@pytest.fixture
def come(stage: Stage, browser: Browser) -> Iterator[Arrive]:
    with people(browser, stage.origin) as arrive:
        yield arrive


def log_in(page: Page, name: str) -> None:
    """Log in on the provider's page."""
    page.get_by_role("heading", name="Log in at the provider").wait_for()
    page.get_by_label("User").fill(name)
    page.get_by_role("button", name="Log in").click()


def look(page: Page, name: str) -> None:
    """Check that the page fits a desk and a phone, and take its picture if somebody wants to see it."""
    for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(viewport)
        assert narrow_places(page) == [], size
        for scheme in ("light", "dark") if PICTURES else ():
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=f"{PICTURES}/{name}-{size}-{scheme}.png", full_page=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESKTOP)


def signed_in(come: Arrive, stage: Stage, **options: object) -> tuple[Person, str]:
    """Somebody new comes by way of the provider, without a password at keyman."""
    person, name = come(signed_up=False, **options), stage.employee()
    person.open(KEYS)
    person.page.get_by_role("link", name=BUTTON).click()
    log_in(person.page, name)
    person.page.wait_for_url(f"{stage.origin}{KEYS}")
    return person, name


def me(person: Person) -> dict[str, object]:
    answer = person.context.request.get(f"{person.origin}/api/auth/me")
    assert answer.status == 200
    found: dict[str, object] = answer.json()
    return found


@pytest.mark.parametrize(
    "options",
    quick([{}], [{"java_script_enabled": False}, {"viewport": PHONE, "color_scheme": "dark"}]),
    ids=["desk", "without scripts", "dark phone"],
)
def test_the_button_leads_to_the_provider_and_back_and_signing_out_signs_out_there(
    come: Arrive, stage: Stage, options: dict[str, object]
) -> None:
    person, name = come(signed_up=False, **options), stage.employee()
    page = person.page
    person.open(ACCOUNT)
    if not options:
        look(page, "sign-in")
    page.get_by_role("link", name=BUTTON).click()
    assert page.url.startswith(stage.bao.origin)
    log_in(page, name)
    page.wait_for_url(f"{stage.origin}{ACCOUNT}")
    expect(page.get_by_role("heading", name="Account", exact=True)).to_be_visible()
    expect(page.get_by_role("definition").first).to_have_text(f"{name}@company.example")
    assert narrow_places(page) == []
    person.context.clear_cookies(domain="127.0.0.1")  # the session at keyman, not that at the provider
    person.open("/sign-in")
    page.get_by_role("link", name=BUTTON).click()
    page.wait_for_url(f"{stage.origin}{KEYS}")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{stage.origin}/sign-in")
    page.get_by_role("link", name=BUTTON).click()
    expect(page.get_by_role("heading", name="Log in at the provider")).to_be_visible()
    assert person.troubles(REFUSED) == []


@pytest.mark.slow
def test_a_sign_in_is_connected_and_disconnected(come: Arrive, stage: Stage) -> None:
    person, name = come(), stage.employee()
    number, page = me(person)["id"], person.page
    person.open(ACCOUNT)
    look(page, "account")
    page.get_by_role("link", name="Show and change how you sign in").click()
    look(page, "connected-none")
    connect(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("The sign-in was cancelled at the provider.")).to_be_visible()
    look(page, "cancelled")
    page.get_by_role("link", name="Try again").click()
    expect(page).to_have_url(f"{stage.origin}{CONNECTED}")  # and not a sign-in, which would make another account
    connect(page)
    log_in(page, name)
    expect(page.get_by_role("status")).to_have_text("The sign-in is connected.")
    expect(page.locator("tbody .label")).to_have_text(f"Company · {name}@company.example")
    look(page, "connected")
    other = come(signed_up=False)
    other.open("/sign-in")
    other.page.get_by_role("link", name=BUTTON).click()
    log_in(other.page, name)
    other.page.wait_for_url(f"{stage.origin}{KEYS}")
    assert me(other)["id"] == number
    page.get_by_role("link", name="Disconnect").click()
    look(page, "disconnecting")
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_role("button", name="Disconnect").click()
    expect(page.get_by_role("status")).to_have_text("The sign-in is disconnected.")
    other.open(KEYS)
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert person.troubles(REFUSED) == []


def connect(page: Page) -> None:
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_role("button", name="Connect", exact=True).click()
    page.get_by_role("heading", name="Log in at the provider").wait_for()


@pytest.mark.slow
def test_a_link_from_another_site_does_not_say_that_something_is_connected(come: Arrive, stage: Stage) -> None:
    person = come(signed_up=False)
    join(person)
    person.page.goto(f"{stage.bao.origin}/ui/vault/{stage.bao.path}/authorize")
    person.page.evaluate(f"location.assign('{stage.origin}{CONNECTED}?done=linked')")
    expect(person.page.get_by_role("heading", name="Connected Sign-Ins")).to_be_visible()
    expect(person.page.get_by_role("status")).to_have_text("")


@pytest.mark.slow
@pytest.mark.parametrize("has_scripts", [True, False])
def test_without_a_password_the_provider_asks_again_before_the_account_is_deleted(
    come: Arrive, stage: Stage, has_scripts: bool
) -> None:
    person, name = signed_in(come, stage, java_script_enabled=has_scripts)
    page = person.page
    person.open(ACCOUNT)
    page.get_by_role("link", name="Delete Account").click()
    expect(page).to_have_url(f"{stage.origin}{DELETE}")
    if has_scripts:
        look(page, "delete-without-password")
    page.get_by_role("button", name="Sign in again with Company").click()
    stranger = stage.employee()
    log_in(page, stranger)
    log_in(page, stranger)  # OpenBao has refused `max_age=0`
    expect(page.get_by_text("You signed in as somebody else.")).to_be_visible()
    if has_scripts:
        look(page, "somebody-else")
    page.get_by_role("link", name="Try again").click()
    expect(page).to_have_url(f"{stage.origin}{DELETE}")
    page.get_by_role("button", name="Sign in again with Company").click()
    log_in(page, name)
    log_in(page, name)
    expect(page).to_have_url(f"{stage.origin}{DELETE}")
    if has_scripts:
        look(page, "delete-proved")
    page.get_by_role("button", name="Delete Account").click()
    expect(page.get_by_text("Your account and all its keys are deleted.")).to_be_visible()
    if has_scripts:
        look(page, "deleted")
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert person.troubles(REFUSED) == []


@pytest.mark.slow
def test_with_a_password_the_page_asks_for_it_before_the_account_is_deleted(come: Arrive, stage: Stage) -> None:
    person = join(come(signed_up=False))
    page = person.page
    person.open(DELETE)
    look(page, "delete")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("heading", name="Account", exact=True)).to_be_visible()
    expect(page).to_have_url(f"{stage.origin}{ACCOUNT}")
    page.get_by_role("link", name="Delete Account").click()
    page.get_by_label("Current password").fill("not this one")
    page.get_by_role("button", name="Delete Account").click()
    expect(page.get_by_text("The current password is wrong.")).to_be_visible()
    look(page, "delete-refused")
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_role("button", name="Delete Account").click()
    expect(page.get_by_text("Your account and all its keys are deleted.")).to_be_visible()
    person.open(KEYS)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.mark.slow
def test_the_owner_of_an_address_chooses_to_link_or_to_begin_a_new_account(come: Arrive, stage: Stage) -> None:
    name = stage.employee()
    owner = come(signed_up=False)
    owner.email = f"{name}@company.example"
    join(owner)
    number, page = me(owner)["id"], come(signed_up=False).page
    page.goto(f"{stage.origin}/sign-in")
    page.get_by_role("link", name=BUTTON).click()
    log_in(page, name)
    expect(page.get_by_role("heading", name="Link Your Sign-In")).to_be_visible()
    look(page, "choice")
    page.get_by_label("Password of that account").fill("not this one")
    page.get_by_role("button", name="Link", exact=True).click()
    expect(page.get_by_text("is wrong")).to_be_visible()
    look(page, "choice-refused")
    page.get_by_label("Password of that account").fill(PASSWORD)
    page.get_by_role("button", name="Link", exact=True).click()
    page.wait_for_url(f"{stage.origin}{KEYS}")
    assert page.request.get(f"{stage.origin}/api/auth/me").json()["id"] == number


@pytest.mark.slow
def test_two_tabs_sign_in_at_once_and_each_comes_to_its_own_page(come: Arrive, stage: Stage) -> None:
    person, name = come(signed_up=False), stage.employee()
    tabs = [person.page, person.watch(person.context.new_page())]
    places = (ACCOUNT, ACTIVITY)
    for tab, place in zip(tabs, places, strict=True):
        tab.goto(f"{stage.origin}{place}")
        tab.get_by_role("link", name=BUTTON).click()
    for tab in reversed(tabs):
        log_in(tab, name)
    for tab, place in zip(tabs, places, strict=True):
        tab.wait_for_url(f"{stage.origin}{place}")
        tab.reload()  # the second sign-in has replaced the session of the first
        expect(tab.locator("nav [aria-current=page]")).to_be_visible()
    assert person.troubles(REFUSED) == []


@pytest.mark.slow
def test_going_back_after_the_sign_in_harms_nothing_and_a_code_works_once(come: Arrive, stage: Stage) -> None:
    person, _ = signed_in(come, stage)
    page = person.page
    (used,) = [url for url in person.asked if "/auth/oidc/callback" in url]
    page.go_back()  # to the provider, which knows its user and answers with the state of the visit that is over
    page.wait_for_url(f"{stage.origin}{KEYS}")  # still signed in
    page.goto(used)
    page.wait_for_url(f"{stage.origin}{KEYS}")
    page.get_by_role("button", name="Sign out").click()
    thief = come(signed_up=False)
    for browser in (page, thief.page):
        browser.goto(used)
        expect(browser.get_by_text("This sign-in has ended")).to_be_visible()
    look(page, "ended")
    page.get_by_role("link", name="Try again").click()


@pytest.mark.slow
def test_who_takes_longer_than_ten_minutes_begins_again_and_comes_to_the_same_page(come: Arrive, stage: Stage) -> None:
    person, name = come(signed_up=False), stage.employee()
    page = person.page
    person.open(ACTIVITY)
    page.get_by_role("link", name=BUTTON).click()
    with sqlite3.connect(stage.database, timeout=PATIENCE) as connection:
        connection.execute("UPDATE provider_visits SET expires_at = '2000-01-01 00:00:00.000000'")
    log_in(page, name)
    expect(page.get_by_text("This sign-in has ended")).to_be_visible()
    page.get_by_role("link", name="Try again").click()
    page.wait_for_url(f"{stage.origin}{KEYS}")


# --- a provider in trouble


def hang_up(_status: int, _content: bytes) -> tuple[int, bytes]:
    raise ConnectionResetError


def nonsense(_status: int, _content: bytes) -> tuple[int, bytes]:
    return 200, b"<html>" + b"[" * 5000


def too_late(status: int, content: bytes) -> tuple[int, bytes]:
    time.sleep(TIMEOUT + 1)
    return status, content


def forged(_status: int, content: bytes) -> tuple[int, bytes]:
    tokens = json.loads(content)
    tokens["id_token"] = tokens["id_token"][:-8] + "AAAAAAAA"
    return 200, json.dumps(tokens).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hang_up, "The identity provider cannot be reached at the moment"),
        (nonsense, "The identity provider cannot be reached at the moment"),
        (too_late, "The identity provider cannot be reached at the moment"),
        (forged, "The answer of the provider is refused. This is wrong: its signature"),
    ],
    ids=["down", "nonsense", "slow", "forged"],
)
def test_a_provider_that_fails_on_the_way_back_gets_a_page_and_works_again_afterwards(
    come: Arrive, stage: Stage, change: Change, words: str
) -> None:
    person, name = come(signed_up=False), stage.employee()
    page = person.page
    person.open(ACTIVITY)
    page.get_by_role("link", name=BUTTON).click()
    with stage.bao.changing(f"{stage.bao.path}/token", change):
        log_in(page, name)
        expect(page.get_by_text(words)).to_be_visible()
    look(page, f"fault-{change.__name__}")
    assert [cookie["name"] for cookie in person.context.cookies(stage.origin)] == []
    page.get_by_role("link", name="Try again").click()
    page.wait_for_url(f"{stage.origin}{ACTIVITY}")
    assert person.troubles(REFUSED) == []


@pytest.mark.slow
def test_a_provider_that_is_away_from_the_start_is_found_once_it_is_there(
    browser: Browser, tmp_path: Path, migrated_sqlite: Path, provisioned: Vault
) -> None:
    for late in staged("late", tmp_path, migrated_sqlite, provisioned, hang_up):
        with people(browser, late.origin) as come:
            person = come()
            visitor, name = come(signed_up=False), late.employee()
            for change in (hang_up, nonsense):
                late.bao.changes["openid-configuration"] = change
                time.sleep(PAUSE)
                visitor.open(ACTIVITY)
                visitor.page.get_by_role("link", name=BUTTON).click()
                expect(visitor.page.get_by_text("The identity provider cannot be reached")).to_be_visible()
            look(visitor.page, "away")
            person.open(CONNECTED)
            person.page.get_by_label("Current password").fill(PASSWORD)
            person.page.get_by_role("button", name="Connect", exact=True).click()
            expect(person.page.get_by_text("The identity provider cannot be reached")).to_be_visible()
            look(person.page, "connected-away")
            del late.bao.changes["openid-configuration"]
            time.sleep(PAUSE)
            visitor.page.get_by_role("link", name="Try again").click()
            log_in(visitor.page, name)
            visitor.page.wait_for_url(f"{late.origin}{ACTIVITY}")


# --- the policy of the pages


@pytest.fixture(scope="module")
def foreign() -> Iterator[tuple[str, list[str]]]:
    """Another site, and what was sent to it."""
    sent: list[str] = []

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(f"{self.command} {self.path}")
            self.send_error(404)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    yield f"http://localhost:{server.server_address[1]}", sent
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_form_leads_to_the_provider_and_nowhere_else(
    come: Arrive, stage: Stage, foreign: tuple[str, list[str]]
) -> None:
    elsewhere, sent = foreign
    person = come()
    page = person.page
    person.open(CONNECTED)
    connect(page)  # Chromium lets the redirect after the form through
    assert page.url.startswith(stage.bao.origin)
    assert person.complaints == []
    stage.bao.detour = f"{elsewhere}/stolen"
    try:
        person.open(CONNECTED)
        page.get_by_label("Current password").fill(PASSWORD)
        with page.expect_console_message(lambda line: "form-action" in line.text):
            page.get_by_role("button", name="Connect", exact=True).click()
    finally:
        stage.bao.detour = None
    for target in (elsewhere, f"{stage.bao.origin.rpartition(':')[0]}:1", "https://evil.example"):
        person.open(CONNECTED)
        with page.expect_console_message(lambda line: "form-action" in line.text):
            page.evaluate(
                """(url) => { const form = document.createElement("form");
                  Object.assign(form, {action: url, method: "post"}); document.body.append(form); form.submit(); }""",
                target,
            )
        assert page.url == f"{stage.origin}{CONNECTED}"
    assert sent == []
    person.context.clear_cookies()
    person.open("/sign-in")  # a page without a form that leads to the provider
    with page.expect_console_message(lambda line: "form-action" in line.text):
        page.evaluate(
            """(url) => { const form = document.querySelector("form"); form.action = url; form.submit(); }""",
            f"{stage.bao.origin}/",
        )
    assert page.url == f"{stage.origin}/sign-in"
