"""Live checks and "Use it" in Chromium: what a person sees from saving a key to its verdict.

The gateway is a stub, which stores the verdicts that a test names, as the real one does.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from keyman.providers.verdicts import DETAILS, RESTRICTED, Verdict
from tests.planes.management.web.conftest import people
from tests.planes.management.web.moves import (
    KEYS,
    OPENAI_KEY,
    act,
    dialog,
    fill,
    join,
    keys_of,
    narrow_places,
    plant,
    press,
    rows,
    settled,
)
from tests.providers.pastes import BODY
from tests.support.browser import DESKTOP, PHONE, Arrive, Person, chromium_absence
from tests.support.cli import serve, variables
from tests.support.database import copied
from tests.support.needs import require
from tests.support.planes import Vault
from tests.support.waiting import PATIENCE

PICTURES = os.environ.get("PICTURES")
"""A directory for pictures of the pages."""

GATEWAY = "https://gateway.example.com"
LONG = "OF_AN_OPERATOR_WITH_A_LONG_NAME_OF_SIXTY_FOUR_CHARACTERS_IN_ALL_"


@dataclass
class StubGateway:
    """Checks keys as the test says. It waits while `may_answer` is not set."""

    database: Path
    verdict: Verdict = Verdict.ACCEPTED
    status: int = 200
    detail: str = ""
    asked: list[int] = field(default_factory=list)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def says(self, verdict: Verdict, detail: str = "") -> None:
        self.status, self.verdict, self.detail = 200, verdict, detail
        self.may_answer.set()

    def check(self, key_id: int) -> tuple[int, bytes]:
        self.asked.append(key_id)
        assert self.may_answer.wait(PATIENCE)
        if self.status != 200:
            return self.status, b"{}"
        store_verdict(self.database, key_id, self.verdict, self.detail)
        return 200, b"{}"


def store_verdict(database: Path, key_id: int, verdict: Verdict, detail: str = "", by: str = "keyman") -> None:
    """Store a verdict, as the gateway and the resolver do."""
    with sqlite3.connect(database, timeout=PATIENCE) as connection:
        connection.execute(
            "UPDATE api_keys SET checked_at = strftime('%Y-%m-%d %H:%M:%f000', 'now', '-125 seconds'),"
            " check_verdict = ?, check_detail = ?, checked_by = ? WHERE id = ?",
            (verdict.value, detail or DETAILS[verdict], by, key_id),
        )


@dataclass(frozen=True)
class Stage:
    """A plane, and its gateway."""

    origin: str
    home: Path
    gateway: StubGateway


@pytest.fixture(scope="module")
def checks_stage(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, provisioned: Vault
) -> Iterator[Stage]:
    require("chromium", chromium_absence())
    directory = tmp_path_factory.mktemp("checks")
    database = copied(migrated_sqlite, directory / "keyman.db")
    stub = StubGateway(directory / "keyman.db")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/check"
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = stub.check(body["key_id"])
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = {
        **variables(provisioned.settings, database),
        "KEYMAN_GATEWAY_URL": f"http://127.0.0.1:{server.server_port}",
        "KEYMAN_GATEWAY_TOKEN": "of-the-stub",
        "KEYMAN_GATEWAY_PUBLIC_URL": GATEWAY,
    }
    with serve(given, directory / "plane") as service:
        yield Stage(service.url, directory, stub)
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit_checks(checks_stage: Stage, browser: Browser) -> Iterator[Arrive]:
    checks_stage.gateway.may_answer.clear()
    checks_stage.gateway.asked.clear()
    with people(browser, checks_stage.origin) as arrive:
        yield arrive
    checks_stage.gateway.may_answer.set()


def look(page: Page, name: str) -> None:
    """Check that the page fits a desk and a phone, and take its picture if somebody wants to see it."""
    for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        page.set_viewport_size(viewport)
        assert narrow_places(page) == [], (name, size)
        for scheme in ("light", "dark") if PICTURES else ():
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=f"{PICTURES}/{name}-{size}-{scheme}.png", full_page=dialog(page).count() == 0)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(DESKTOP)


def add_key(person: Person) -> None:
    person.open(KEYS)
    press(person.page, "Add New Key")
    fill(person.page, "OpenAI", OPENAI_KEY, "Chat")
    person.page.get_by_role("button", name="Save", exact=True).click()
    expect(rows(person.page)).to_have_count(1)


def test_a_new_key_appears_is_checked_and_gets_its_verdict(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False, reduced_motion="reduce"))
    page = person.page
    add_key(person)
    expect(page.locator(".busy")).to_be_visible()  # the row is there before the verdict
    expect(page.locator(".busy")).to_have_text("Checking…")
    look(page, "checking")
    above = page.locator(".check").bounding_box()
    checks_stage.gateway.says(Verdict.REFUSED)
    expect(page.locator(".verdict")).to_have_text("OpenAI refused this key 2 minutes ago. Replace it.")
    expect(page.get_by_role("status")).to_have_text("OpenAI · Chat is stored.")
    expect(page.locator("#heard")).to_have_text("OpenAI refused this key 2 minutes ago. Replace it.")
    after = page.locator(".check").bounding_box()
    assert above is not None
    assert after is not None
    assert after["height"] == above["height"]  # what is below does not move
    expect(page.locator(".state .badge")).to_have_text("Active")  # a verdict changes no status
    look(page, "refused")
    page.reload()
    expect(page.locator(".verdict")).to_contain_text("OpenAI refused this key")
    settled(page)
    assert len(checks_stage.gateway.asked) == 1  # not again
    assert person.troubles() == []


def test_a_refusal_is_whole_on_a_phone_and_leads_to_a_new_value(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False, viewport=PHONE, has_touch=True, is_mobile=True))
    page = person.page
    checks_stage.gateway.says(Verdict.REFUSED)
    add_key(person)
    refused = page.get_by_role("link", name="Refused", exact=True)
    refused.wait_for()
    expect(page.locator(".verdict")).to_be_hidden()  # a card has no place for a sentence
    refused.tap()
    expect(page.locator(".facts .verdict")).to_have_text("OpenAI refused this key 2 minutes ago. Replace it.")
    page.go_back()
    page.get_by_role("button", name="Actions").tap()
    expect(page.locator(".menu .hint")).to_have_text("OpenAI refused this key 2 minutes ago. Replace it.")
    page.get_by_role("button", name="Replace key").tap()
    expect(dialog(page).get_by_role("heading", name="Replace Key")).to_be_visible()
    expect(page.get_by_label("API key", exact=True)).to_have_attribute("required", "")


def test_the_actions_follow_the_verdict_and_nothing_else_of_the_row_changes(
    visit_checks: Arrive, checks_stage: Stage
) -> None:
    person = join(visit_checks(signed_up=False))
    page = person.page
    checks_stage.gateway.says(Verdict.REFUSED)
    plant(checks_stage.home, person, {"name": "good"}, {"name": "bad"})
    good, bad = rows(page).filter(has_text="good"), rows(page).filter(has_text="bad")
    person.open(KEYS)
    store_verdict(checks_stage.gateway.database, keys_of(person)[1]["id"], Verdict.REFUSED)
    page.reload()
    replaces = [row.get_by_role("button", name="Replace key") for row in (good, bad)]
    expect(replaces[0]).to_be_visible()
    expect(replaces[1]).to_have_count(0)
    bad.get_by_role("checkbox").check()
    act(bad, "Check now")
    expect(replaces[1]).to_be_visible()
    expect(bad.get_by_role("checkbox")).to_be_checked()
    expect(bad.get_by_role("button", name="Check now")).to_be_focused()
    checks_stage.gateway.says(Verdict.ACCEPTED)
    act(good, "Check now")
    expect(replaces[0]).to_have_count(0)
    opened = press(page, "Replace key", bad)
    expect(opened).to_have_accessible_name("Replace Key")
    assert person.troubles() == []


def test_a_menu_that_is_open_while_the_verdict_comes_stays_open_and_has_it(
    visit_checks: Arrive, checks_stage: Stage
) -> None:
    person = join(visit_checks(signed_up=False, viewport=PHONE))
    page = person.page
    add_key(person)
    page.get_by_role("button", name="Actions").click()
    expect(page.get_by_role("button", name="Replace key")).to_have_count(0)
    page.get_by_role("button", name="Edit").focus()
    checks_stage.gateway.says(Verdict.REFUSED)
    expect(page.get_by_role("button", name="Replace key")).to_be_visible()
    expect(page.locator(".menu .hint")).to_contain_text("OpenAI refused this key")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    assert person.troubles() == []


def test_a_key_that_leaves_the_list_with_its_verdict_is_named(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False))
    page = person.page
    plant(checks_stage.home, person, {"name": "Chat"}, {"name": "gone"})
    for key in keys_of(person):
        store_verdict(checks_stage.gateway.database, key["id"], Verdict.ACCEPTED)
    person.open(f"{KEYS}?check=accepted")
    checks_stage.gateway.says(Verdict.REFUSED)
    act(rows(page).filter(has_text="Chat"), "Check now")
    expect(page.get_by_role("status")).to_have_text("OpenAI · Chat is checked: Refused.")
    expect(rows(page)).to_have_count(1)
    person.context.request.delete(f"{person.origin}/api/keys/{keys_of(person)[0]['id']}")
    act(rows(page), "Check now")  # another window has deleted it
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()
    assert [each for each in person.troubles() if "404" not in each] == []


def test_a_key_is_checked_on_its_own_page_with_or_without_scripts(visit_checks: Arrive, checks_stage: Stage) -> None:
    for scripts in (True, False):
        person = visit_checks(signed_up=False, java_script_enabled=scripts)
        page = join(person).page
        plant(checks_stage.home, person, {"name": "Chat"})
        person.open(f"{KEYS}/{keys_of(person)[0]['id']}?q=chat")
        checks_stage.gateway.says(Verdict.REFUSED)
        page.get_by_role("button", name="Check now").click()
        verdict, status = page.locator(".facts .verdict"), page.get_by_role("status")
        expect(verdict).to_have_text("OpenAI refused this key 2 minutes ago. Replace it.")
        expect(status).to_have_text("OpenAI · Chat is checked: Refused.")
        expect(page.get_by_role("button", name="Replace key")).to_be_visible()
        if scripts:
            expect(page.get_by_role("button", name="Check now")).to_be_focused()
            look(page, "key-checked")
        page.get_by_role("button", name="Check now").click()  # too soon
        expect(verdict).to_have_text("Not checked: too many checks. Wait a moment.")
        page.get_by_role("link", name="All keys", exact=True).click()
        expect(rows(page)).to_have_count(1)
        assert page.url == f"{checks_stage.origin}{KEYS}?q=chat"
        assert person.troubles() == []


def test_keys_that_are_stored_together_are_checked_when_their_rows_appear(
    visit_checks: Arrive, checks_stage: Stage
) -> None:
    person = join(visit_checks(signed_up=False))
    page = person.page
    checks_stage.gateway.says(Verdict.ACCEPTED)
    person.open(KEYS)
    press(page, "Add New Key")
    page.get_by_role("button", name="Add Several Keys").click()
    page.get_by_label("Lines with keys").fill("\n".join(f"KEY_{number}=sk-{BODY}{number:04}" for number in range(12)))
    page.get_by_role("button", name="Show the keys").click()
    for number in range(12):
        page.get_by_label(f"Service of KEY_{number}", exact=True).select_option(label="OpenAI")
        page.get_by_role("checkbox", name=f"Store KEY_{number}", exact=True).check()
    page.get_by_role("button", name="Store the chosen keys").click()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("status")).to_have_text("12 keys are stored.")
    expect(page.locator(".verdict")).to_have_count(10)  # the others take no more of the hour's checks
    settled(page)
    assert len(set(checks_stage.gateway.asked)) == len(checks_stage.gateway.asked) == 10
    assert person.troubles() == []


def test_a_person_can_check_again_with_the_keyboard(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False))
    page = person.page
    checks_stage.gateway.says(Verdict.ACCEPTED)
    plant(checks_stage.home, person, {"name": "Chat"})
    person.open(KEYS)
    assert checks_stage.gateway.asked == []  # only what was just stored is checked without being asked
    button = page.get_by_role("button", name="Check now")
    expect(button).to_have_accessible_name("Check now OpenAI Chat sk-...1234")
    button.focus()
    checks_stage.gateway.may_answer.clear()
    page.keyboard.press("Enter")
    expect(page.locator("#heard")).to_have_text("Checking…")
    page.keyboard.press("Enter")  # too soon
    checks_stage.gateway.says(Verdict.NO_CREDIT)
    expect(page.locator(".verdict")).to_contain_text("The account behind this key has no credit.")
    expect(page.get_by_role("button", name="Check now")).to_be_focused()
    assert len(checks_stage.gateway.asked) == 1
    page.keyboard.press("Enter")  # within ten seconds
    expect(page.locator(".verdict")).to_contain_text("Not checked: too many checks.")
    expect(page.locator("#heard")).to_contain_text("Not checked")
    look(page, "too-many")
    assert person.troubles() == []


def test_a_gateway_that_is_away_is_said_and_the_key_stays(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False))
    checks_stage.gateway.status = 502
    checks_stage.gateway.may_answer.set()
    add_key(person)
    expect(person.page.locator(".verdict")).to_contain_text("Not checked: the gateway cannot be reached.")
    look(person.page, "no-gateway")
    assert person.troubles() == []


def test_a_key_that_turns_out_to_be_unreadable_is_said(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False))
    page = person.page
    for place in (KEYS, f"{KEYS}/{{id}}"):
        plant(checks_stage.home, person, {"name": "Chat"})
        key_id = keys_of(person)[0]["id"]
        person.open(place.format(id=key_id))
        with sqlite3.connect(checks_stage.home / "keyman.db", timeout=PATIENCE) as connection:
            connection.execute("UPDATE api_keys SET undecryptable = 1 WHERE id = ?", (key_id,))
        page.get_by_role("button", name="Check now").first.press("Enter")
        expect(page.get_by_role("status")).to_have_text("OpenAI · Chat is checked: Cannot be opened.")
        expect(page.get_by_role("button", name="Replace key").first).to_be_visible()
        assert place != KEYS or page.evaluate("document.activeElement.textContent").startswith("Replace key")
    assert checks_stage.gateway.asked == []
    assert person.troubles() == []


def test_without_scripts_a_button_checks(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = visit_checks(signed_up=False, java_script_enabled=False)
    join(person)
    page = person.page
    checks_stage.gateway.says(Verdict.ACCEPTED, RESTRICTED)
    person.open(f"{KEYS}/new")
    fill(page, "OpenAI", OPENAI_KEY, "Chat")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator(".busy")).to_be_hidden()
    assert checks_stage.gateway.asked == []
    page.get_by_role("button", name="Check now").click()
    expect(page.locator(".verdict")).to_contain_text("OpenAI accepted this key 2 minutes ago.")
    expect(page.locator(".verdict")).to_contain_text("which is restricted")
    expect(page.get_by_role("status")).to_have_text("OpenAI · Chat is checked: Accepted.")


def test_verdicts_from_use_and_from_reports_look_the_same(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False))
    plant(checks_stage.home, person, *({"name": f"key {verdict}"} for verdict in Verdict), {"service": "PERPLEXITY"})
    ids = [key["id"] for key in person.context.request.get(f"{checks_stage.origin}/api/keys").json()][1:]
    shown = []
    for by in ("keyman", "use", "chat-backend"):
        for key_id, verdict in zip(reversed(ids), Verdict, strict=True):
            store_verdict(checks_stage.gateway.database, key_id, verdict, by=by)
        person.open(KEYS)
        shown.append(person.page.locator(".verdict").all_inner_texts())
    assert len(shown[0]) == len(Verdict)
    assert shown[1:] == [shown[0]] * 2
    look(person.page, "verdicts")
    expect(rows(person.page).first.get_by_role("button", name="Check now")).to_have_count(0)  # not supported


def test_long_names_fit_in_both_languages(visit_checks: Arrive, checks_stage: Stage) -> None:
    for locale in ("en-US", "de-DE"):
        person = join(visit_checks(signed_up=False, locale=locale))
        plant(
            checks_stage.home,
            person,
            {"service": LONG, "name": "W" * 100},
            {"service": "AWS_BEDROCK", "name": "x" * 100, "value": f"bedrock-api-key-{BODY}AbCd"},
            {"service": "HUGGINGFACE", "name": "word " * 20, "last_used_by": "a" * 64},
        )
        for key in person.context.request.get(f"{checks_stage.origin}/api/keys").json():
            store_verdict(checks_stage.gateway.database, key["id"], Verdict.NO_PERMISSION, RESTRICTED)
        person.open(KEYS)
        look(person.page, f"long-{locale}")
        for width in (320, 768, 1080, 1280, 1920):
            person.page.set_viewport_size({"width": width, "height": 800})
            assert narrow_places(person.page) == [], width


# --- use it


def test_the_lines_are_copied_without_leaving_the_page(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = join(visit_checks(signed_up=False, permissions=["clipboard-read", "clipboard-write"]))
    page = person.page
    plant(checks_stage.home, person, {"name": "Chat"}, {"service": "ANTHROPIC", "name": "W" * 100})
    person.open(KEYS)
    press(page, "Use it", rows(page).last)
    for name, text in (("Base URL", f"{GATEWAY}/openai/v1"), ("curl", "curl https"), ("Python", "from openai import")):
        button = dialog(page).get_by_role("button", name=name)
        button.click()
        expect(button).to_contain_text("Copied")
        assert text in page.evaluate("navigator.clipboard.readText()")
    assert page.url == f"{checks_stage.origin}{KEYS}"
    look(page, "use")
    page.keyboard.press("Escape")
    press(page, "Use it", rows(page).first)
    look(page, "use-long")
    person.open(f"{KEYS}?x")
    expect(dialog(page)).to_have_count(0)
    assert person.troubles() == []


def test_without_scripts_the_lines_can_be_read(visit_checks: Arrive, checks_stage: Stage) -> None:
    person = visit_checks(signed_up=False, java_script_enabled=False)
    join(person)
    plant(checks_stage.home, person, {"name": "Chat"})
    person.open(KEYS)
    person.page.get_by_role("button", name="Use it").click()
    expect(person.page.get_by_label("Python")).to_have_value(re.compile("from openai import OpenAI"))
    expect(person.page.get_by_role("button", name="Copy")).to_have_count(0)
    look(person.page, "use-page")
    person.page.get_by_role("button", name="Done").click()
    expect(person.page.get_by_role("heading", name="API Keys")).to_be_visible()
