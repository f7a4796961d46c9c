"""The whole way through the pages: with a mouse, with only the keyboard, without JavaScript, and on a phone."""

from __future__ import annotations

import re
import shlex
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.planes.management.web.moves import (
    ACTIVITY,
    ANTHROPIC_KEY,
    ANTHROPIC_MASK,
    KEYS,
    OPENAI_KEY,
    OPENAI_MASK,
    REFUSED,
    SETTINGS,
    act,
    dialog,
    expect_labels,
    fill,
    in_days,
    join,
    keys_of,
    narrow_places,
    press,
    rows,
    save,
    sign_in,
)
from tests.support.browser import PHONE, Arrive, Person, ready
from tests.support.http import NO_TLS
from tests.support.planes import PASSWORD
from tests.support.waiting import PATIENCE

NEW_PASSWORD = "staple battery horse correct"
TAPPED = 44
"""Pixels in each direction of what a finger meets (WCAG 2.5.5)."""


@pytest.mark.slow  # by keyboard and on a phone, below, and each part of it in its file
def test_the_whole_way_through(arrive: Arrive) -> None:
    ada = arrive(signed_up=False)
    ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    _comes_in(ada)
    _adds_a_key(ada)
    _edits_it(ada)
    _deletes_it(ada)
    _makes_and_revokes_a_token(ada)
    _looks_back(ada)
    _minds_the_account(ada)
    _leaves(ada)
    assert ada.foreign_hosts == set()
    assert ada.troubles(REFUSED) == []


def test_an_answer_that_comes_just_after_a_dialog_was_closed_neither_opens_nor_empties_one(arrive: Arrive) -> None:
    """The browser says a moment later that a dialog was closed, and only then is it emptied."""
    ada = arrive(signed_up=True)
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    found = page.evaluate(
        """async () => {
          const dialog = document.getElementById("dialog");
          const settled = async () => {
            for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame);
            return [dialog.open, dialog.textContent];
          };
          const swapped = (select) => document.dispatchEvent(
            new CustomEvent("htmx:after:swap", { detail: { ctx: { select, sourceElement: document.body } } }),
          );
          dialog.close();
          swapped("#keys"); // the answer to a check
          const first = await settled();
          dialog.replaceChildren(document.createElement("p"));
          swapped("#panel");
          dialog.close();
          dialog.replaceChildren(Object.assign(document.createElement("p"), { textContent: "two" }));
          swapped("#panel"); // the answer to the next button
          return [first, await settled()];
        }"""
    )
    assert found == [[False, ""], [True, "two"]]


def _comes_in(ada: Person) -> None:
    page = ada.page
    ada.open("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_role("link", name="Sign up").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Create an Account")
    page.get_by_label("Email").fill(ada.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page).to_have_url(f"{ada.origin}{KEYS}")
    side = page.get_by_role("navigation", name="Settings")
    assert side.get_by_role("link").all_inner_texts() == [
        "API Keys",
        "Applications",
        "Access Tokens",
        "Activity",
        "Account",
        "API Reference",
    ]
    # Step 1 and 2 of the flow: Settings, then API Keys, then the list, which is empty.
    ada.open("/settings")
    side.get_by_role("link", name="API Keys").click()
    expect(side.get_by_role("link", name="API Keys")).to_have_attribute("aria-current", "page")
    expect(page).to_have_title("API Keys · keyman")
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    assert page.get_by_role("main").get_by_role("button").all_inner_texts() == ["Add New Key"]


def _adds_a_key(ada: Person) -> None:
    page = ada.page
    opened = press(page, "Add New Key")
    expect(opened).to_have_accessible_name("Add a Key")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    # Refused: what is wrong stands beside its field, and nothing is lost.
    expires = in_days(40)
    fill(page, "OpenAI", ANTHROPIC_KEY, "production chat", expires)
    save(page)
    key = page.get_by_label("API key", exact=True)
    expect(opened.get_by_text("API key looks like a key of Anthropic, not of OpenAI")).to_be_visible()
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(key).to_have_accessible_description(re.compile("looks like a key of Anthropic, not of OpenAI"))
    expect(key).to_be_focused()
    expect(key).to_have_value(ANTHROPIC_KEY)
    expect(page.get_by_label("Service", exact=True)).to_have_value("OPENAI")
    expect(page.get_by_label("Label", exact=True)).to_have_value("production chat")
    expect(page.get_by_label("Expires", exact=True)).to_have_value(expires)
    # Stored: the row is there, masked, marked, and said.
    fill(page, key=f"  {OPENAI_KEY}\t")
    save(page)
    expect(opened).to_be_hidden()
    row = rows(page)
    expect(row).to_have_count(1)
    expect(row).to_contain_text("OpenAI")
    expect(row).to_contain_text("production chat")
    expect(row.locator(".mask code")).to_have_text(OPENAI_MASK)
    assert "Mono" in row.locator("code").evaluate("each => getComputedStyle(each).fontFamily")
    expect(row).to_contain_text("Active")
    expect(row).to_contain_text("expires in 1 month")
    expect(row).to_contain_text("just now")
    expect(row).to_contain_text("never")
    expect(row).to_have_class("fresh")
    expect(page.get_by_role("status")).to_contain_text(" is stored.")
    expect(row.locator("time").first).to_have_attribute("title", re.compile(r"\d{4}.*\d\d:\d\d"))
    assert OPENAI_KEY not in page.content()
    page.reload()
    expect(rows(page)).to_have_count(1)
    expect(row).not_to_have_class("fresh")


def _edits_it(ada: Person) -> None:
    page = ada.page
    row = rows(page)
    opened = press(page, "Edit", row)
    expect(opened).to_have_accessible_name("Edit Key")
    service, key = page.get_by_label("Service", exact=True), page.get_by_label("API key", exact=True)
    expect(service).to_be_disabled()
    expect(service).to_have_value("OPENAI")
    expect(key).to_have_value("")
    expect(key).to_have_accessible_description(f"Leave empty to keep the current key: {OPENAI_MASK}")
    expect(page.get_by_label("Label", exact=True)).to_have_value("production chat")
    expect(page.get_by_label("Expires", exact=True)).to_have_value(in_days(40))
    fill(page, label="staging chat", expires="")
    save(page)
    expect(opened).to_be_hidden()
    expect(row).to_contain_text("staging chat")
    expect(row).not_to_contain_text("expires")
    expect(row).to_contain_text(OPENAI_MASK)
    expect(row).to_have_class("fresh")
    expect(page.get_by_role("status")).to_have_text("OpenAI · staging chat is changed.")
    press(page, "Edit", row)
    fill(page, key="sk-another7c1eUKwN4Rd9876")
    save(page)
    expect(row).to_contain_text("sk-...9876")
    expect(row).to_contain_text("staging chat")


def _deletes_it(ada: Person) -> None:
    page = ada.page
    row = rows(page)
    for button, question, badge, status, done in (
        (
            "Pause",
            "Pause this key?",
            "Paused",
            "disabled",
            "OpenAI · staging chat is paused. Applications no longer get it.",
        ),
        ("Resume", "Resume this key?", "Active", "active", "OpenAI · staging chat is active again."),
    ):
        opened = press(page, button, row)
        expect(opened).to_have_accessible_name(question)
        opened.get_by_role("button", name=button, exact=True).click()
        expect(row).to_contain_text(badge)
        expect(page.get_by_role("status")).to_contain_text(done)
        assert keys_of(ada)[0]["status"] == status
    opened = press(page, "Delete", row)
    expect(opened).to_have_accessible_name("Delete this key?")
    expect(opened).to_contain_text("No application has used it in the last 30 days.")
    expect(opened).to_contain_text("OpenAI")
    expect(opened).to_contain_text("sk-...9876")
    expect(opened).to_contain_text("Applications can no longer get this key")
    expect(opened.get_by_role("button", name="Cancel")).to_be_focused()
    opened.get_by_role("button", name="Cancel").click()
    expect(opened).to_be_hidden()
    expect(row).to_have_count(1)
    opened = press(page, "Delete", row)
    opened.get_by_role("button", name="Delete", exact=True).click()
    expect(row).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("staging chat is deleted.")
    expect(page.get_by_role("heading", name="No keys yet")).to_be_visible()
    assert keys_of(ada) == []


def _makes_and_revokes_a_token(ada: Person) -> None:
    page = ada.page
    page.get_by_role("link", name="Access tokens").click()
    expect(page.get_by_role("heading", name="No tokens yet")).to_be_visible()
    opened = press(page, "New Token")
    boxes = opened.get_by_role("checkbox")
    assert [box.is_checked() for box in boxes.all()] == [True, True, False, False, False]
    page.get_by_label("Name", exact=True).fill("CI pipeline")
    page.get_by_label("Expires", exact=True).fill(in_days(90))
    opened.get_by_role("button", name="Create Token").click()
    expect(opened).to_have_accessible_name("Copy Your Token Now")
    token = page.get_by_label("CI pipeline", exact=True).input_value()
    assert re.fullmatch("km_[0-9A-Za-z]{36}", token)
    expect(opened.get_by_role("button", name="Copy").first).to_be_focused()
    opened.get_by_role("button", name="Copy").first.click()
    expect(opened.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == token
    # The line is ready to paste into a shell, and works as it is.
    program, *words = shlex.split(page.get_by_label("Try it").input_value())
    assert program == "curl"
    headers = dict([words[words.index("-H") + 1].split(": ", 1)])
    assert httpx.get(words[-1], headers=headers, timeout=PATIENCE, verify=NO_TLS).json() == []
    opened.get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("CI pipeline")
    expect(rows(page)).to_contain_text("keys:read")
    assert token not in page.content()
    added = {"service": "ANTHROPIC", "api_key": ANTHROPIC_KEY, "name": "from a script"}
    answer = httpx.post(f"{ada.origin}/api/keys", json=added, headers=headers, timeout=PATIENCE, verify=NO_TLS)
    assert answer.status_code == 201
    page.reload()
    assert token not in page.content()
    expect(rows(page)).not_to_contain_text("never")
    opened = press(page, "Revoke", rows(page))
    expect(opened).to_contain_text("CI pipeline")
    expect(opened.get_by_role("button", name="Cancel")).to_be_focused()
    opened.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_have_text("The token is revoked.")
    expect(page.get_by_role("heading", name="No tokens yet")).to_be_visible()
    assert httpx.get(words[-1], headers=headers, timeout=PATIENCE, verify=NO_TLS).status_code == 401


def _looks_back(ada: Person) -> None:
    page = ada.page
    page.get_by_role("link", name="Activity").click()
    expect_labels(
        page,
        [
            "Access token revoked",
            "Key added",
            "Access token created",
            "Key deleted",
            "Key resumed",
            "Key paused",
            "Key replaced",
            "Key changed",
            "Key added",
            "Account created",
        ],
    )
    expect(rows(page).nth(1)).to_contain_text("Anthropic")
    expect(rows(page).nth(1)).to_contain_text("Access token")
    expect(rows(page).nth(3)).to_contain_text("OpenAI")
    expect(rows(page).nth(3)).to_contain_text("You")
    expect(rows(page).nth(3)).to_contain_text("127.0.0.1")
    # A choice is shown at once, and is in the address.
    page.get_by_label("Show").select_option(label="Access tokens")
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#heard")).to_have_text("Entries shown: 2")
    expect(page).to_have_url(re.compile(r"\?kind=tokens&period=$"))
    page.get_by_label("Show").select_option(label="Uses of keys")
    page.get_by_label("Period").select_option(label="Last 24 hours")
    page.get_by_role("link", name="Show all activity").click()
    expect(rows(page)).to_have_count(10)


def _minds_the_account(ada: Person) -> None:
    page = ada.page
    page.get_by_role("link", name="Account").click()
    expect(page.get_by_role("main")).to_contain_text(ada.email)
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Chrome · Linux")
    expect(rows(page)).to_contain_text("This session")
    others = [_elsewhere(ada, PASSWORD) for _ in range(2)]
    page.reload()
    expect(rows(page)).to_have_count(3)
    rows(page).nth(0).get_by_role("button", name="End").click()
    expect(page.get_by_role("status")).to_have_text("The session has ended.")
    expect(rows(page)).to_have_count(2)
    assert sorted(_status(other) for other in others) == [200, 401]
    page.get_by_role("button", name="End all others").click()
    expect(page.get_by_role("status")).to_have_text("All other sessions have ended.")
    expect(rows(page)).to_have_count(1)
    assert [_status(other) for other in others] == [401, 401]
    # A wrong password first, then a new one, which ends what is open elsewhere.
    other = _elsewhere(ada, PASSWORD)
    page.get_by_label("Current password").fill("not the password")
    page.get_by_label("New password").fill(NEW_PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_label("Current password")).to_have_accessible_description("Current password is wrong.")
    expect(page.get_by_label("Current password")).to_have_value("")
    expect(page.get_by_label("New password")).to_have_value("")
    assert _status(other) == 200
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW_PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_role("status")).to_have_text("Your password is changed. All other sessions have ended.")
    assert _status(other) == 401
    expect(rows(page)).to_have_count(1)
    _elsewhere(ada, NEW_PASSWORD)


def _leaves(ada: Person) -> None:
    page = ada.page
    cookie = {each["name"]: each["value"] for each in ada.context.cookies()}["keyman_session"]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert ada.context.cookies() == []
    answer = httpx.get(
        f"{ada.origin}/api/auth/me", headers={"Cookie": f"keyman_session={cookie}"}, timeout=PATIENCE, verify=NO_TLS
    )
    assert answer.status_code == 401
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert ada.email not in page.inner_text("body")


def _elsewhere(person: Person, password: str) -> str:
    """Sign in on another device, and return its cookie."""
    body = {"email": person.email, "password": password}
    answer = httpx.post(f"{person.origin}/api/auth/login", json=body, timeout=PATIENCE, verify=NO_TLS)
    assert answer.status_code == 200, answer.text
    return f"{person.origin} keyman_session={answer.cookies['keyman_session']}"


def _status(session: str) -> int:
    origin, cookie = session.split(" ")
    return httpx.get(f"{origin}/api/auth/me", headers={"Cookie": cookie}, timeout=PATIENCE, verify=NO_TLS).status_code


# --- only the keyboard


def test_the_keyboard_is_enough(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page, keyboard = ada.page, ada.page.keyboard
    ada.context.clear_cookies()
    ada.open("/")
    expect(page.get_by_label("Email")).to_be_focused()
    keyboard.type(ada.email)
    _tab_to(page, page.get_by_label("Password"))
    keyboard.type(PASSWORD)
    keyboard.press("Enter")
    expect(page).to_have_url(f"{ada.origin}{KEYS}")
    ready(page)
    # The first stop leads past the navigation.
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    keyboard.press("Enter")
    keyboard.press("Tab")
    add = page.get_by_role("main").get_by_role("button", name="Add New Key")
    expect(add).to_be_focused()
    # Left with Escape: back on the button.
    keyboard.press("Space")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(add).to_be_focused()
    # Stored: on the new row.
    keyboard.press("Enter")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    keyboard.type(ANTHROPIC_KEY)
    keyboard.press("Tab")
    expect(page.get_by_role("button", name="Show the key")).to_be_focused()
    keyboard.press("Space")
    expect(page.get_by_role("button", name="Hide the key")).to_be_focused()
    expect(page.get_by_label("API key", exact=True)).to_have_attribute("type", "text")
    keyboard.press("Tab")
    expect(page.get_by_label("Service", exact=True)).to_be_focused()
    expect(page.get_by_label("Service", exact=True)).to_have_value("ANTHROPIC")
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Where do I find my key?")).to_be_focused()
    keyboard.press("Tab")
    keyboard.type("typed")
    _tab_to(page, page.get_by_role("button", name="Save"))
    keyboard.press("Enter")
    row = rows(page)
    expect(row).to_contain_text(ANTHROPIC_MASK)
    edit, delete = row.get_by_role("button", name="Edit"), row.get_by_role("button", name="Delete")
    expect(edit).to_be_focused()
    expect(edit).to_have_accessible_name(f"Edit Anthropic typed {ANTHROPIC_MASK}")
    # The dialog keeps the focus inside: the tab goes round, and never to the page under it.
    keyboard.press("Enter")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    for _ in range(12):
        keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    keyboard.press("Escape")
    expect(edit).to_be_focused()
    keyboard.press("Enter")
    _tab_to(page, page.get_by_label("Label", exact=True))
    keyboard.press("Control+A")
    keyboard.type("typed again")
    keyboard.press("Enter")
    expect(row).to_contain_text("typed again")
    expect(edit).to_be_focused()
    # Paused and resumed: on the button that undoes it, which follows Edit.
    keyboard.press("Tab")
    for button, undoes in (("Pause", "Resume"), ("Resume", "Pause")):
        expect(row.get_by_role("button", name=button)).to_be_focused()
        keyboard.press("Enter")
        expect(dialog(page).get_by_role("button", name=button)).to_be_focused()
        keyboard.press("Enter")
        expect(row.get_by_role("button", name=undoes)).to_be_focused()
    for name in ("Check now", "Use it"):
        keyboard.press("Tab")
        expect(row.get_by_role("button", name=name)).to_be_focused()
    # Escape and Cancel leave the key where it is, and the focus on the button.
    keyboard.press("Tab")
    for leave in ("Escape", "Enter"):
        expect(delete).to_be_focused()
        keyboard.press("Enter")
        expect(dialog(page).get_by_role("button", name="Cancel")).to_be_focused()
        keyboard.press(leave)
        expect(page.get_by_role("dialog")).to_have_count(0)
    expect(delete).to_be_focused()
    keyboard.press("Enter")
    expect(dialog(page).get_by_role("button", name="Cancel")).to_be_focused()
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    expect(row).to_have_count(0)
    expect(add).to_be_focused()
    assert ada.complaints == []


def _tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until it is there."""
    for _ in range(30):
        if wanted.evaluate("each => each === document.activeElement"):
            return
        page.keyboard.press("Tab")
    expect(wanted).to_be_focused()


# --- without JavaScript


@pytest.mark.slow  # the other files show single actions without JavaScript, and test_http.py each form
def test_without_javascript_every_action_is_a_plain_form(arrive: Arrive) -> None:
    ada = arrive(java_script_enabled=False)
    page, main = ada.page, ada.page.get_by_role("main")
    main.get_by_role("button", name="Add New Key").click()
    expect(page).to_have_url(re.compile(rf"{KEYS}/new\??$"))
    fill(page, "OpenAI", ANTHROPIC_KEY, "plain", in_days(30))
    save(page)
    expect(main).to_contain_text("API key looks like a key of Anthropic, not of OpenAI")
    expect(page.get_by_label("API key", exact=True)).to_have_value("")
    expect(page.get_by_label("Label", exact=True)).to_have_value("plain")
    expect(page.get_by_label("Service", exact=True)).to_have_value("OPENAI")
    # Sent twice, as an impatient hand does: one key.
    form = {name: page.locator(f"[name={name}]").input_value() for name in ("attempt", "service", "name", "expires_at")}
    for _ in range(2):
        answer = ada.context.request.post(f"{ada.origin}{KEYS}", form={**form, "api_key": OPENAI_KEY})
        assert answer.status == 200
        assert parse_qs(urlsplit(answer.url).query)["saved"] == [str(keys_of(ada)[0]["id"])]
    fill(page, key=OPENAI_KEY)
    save(page)
    row = rows(page)
    expect(row).to_have_count(1)
    expect(row).to_have_class("fresh")
    expect(row).to_contain_text(OPENAI_MASK)
    expect(page.get_by_role("status")).to_contain_text(" is stored.")
    page.reload()
    expect(row).to_have_count(1)

    row.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Service", exact=True)).to_be_disabled()
    expect(page.get_by_label("API key", exact=True)).to_have_value("")
    expect(page.get_by_label("Expires", exact=True)).to_have_value(in_days(30))
    fill(page, label="plainer", expires="")
    save(page)
    expect(row).to_contain_text("plainer")
    expect(row).to_contain_text(OPENAI_MASK)

    row.get_by_role("button", name="Pause").click()
    expect(main).to_contain_text("Pause this key?")
    main.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("OpenAI · plainer is paused.")
    row.get_by_role("button", name="Resume").click()
    main.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_have_text("OpenAI · plainer is active again.")

    row.get_by_role("button", name="Delete").click()
    expect(main).to_contain_text("Delete this key?")
    main.get_by_role("button", name="Cancel").click()
    expect(row).to_have_count(1)
    row.get_by_role("button", name="Delete").click()
    main.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status")).to_have_text("plainer is deleted.")
    expect(row).to_have_count(0)

    page.get_by_role("link", name="Access tokens").click()
    main.get_by_role("button", name="New Token").click()
    page.get_by_label("Name", exact=True).fill("plain token")
    main.get_by_role("button", name="Create Token").click()
    token = page.get_by_label("plain token").input_value()
    main.get_by_role("button", name="Done").click()
    expect(row).to_contain_text("plain token")
    assert token not in page.content()
    row.get_by_role("button", name="Revoke").click()
    main.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("status")).to_have_text("The token is revoked.")

    page.get_by_role("link", name="Account").click()
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password").fill(NEW_PASSWORD)
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_role("status")).to_contain_text("Your password is changed.")
    page.get_by_role("button", name="Sign out").click()
    ada.open(ACTIVITY)
    sign_in(page, ada.email, NEW_PASSWORD)
    expect(page).to_have_url(f"{ada.origin}{ACTIVITY}")
    expect(page.get_by_role("main")).to_contain_text("Password changed")
    page.get_by_label("Show").select_option(label="Changes to keys")
    main.get_by_role("button", name="Filter").click()
    expect_labels(page, ["Key deleted", "Key resumed", "Key paused", "Key changed", "Key added"])
    # Nothing that was typed went into an address.
    for secret in (OPENAI_KEY, ANTHROPIC_KEY, token, PASSWORD.replace(" ", "+")):
        assert not any(secret in url for url in ada.asked)
    assert ada.troubles(REFUSED) == []


# --- on a phone


def test_a_phone_is_enough(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, has_touch=True, is_mobile=True))
    page = ada.page
    ada.open(KEYS)
    page.get_by_role("main").get_by_role("button", name="Add New Key").tap()
    expect(page.get_by_label("Service", exact=True)).to_be_visible()
    _is_made_for_fingers(page)
    fill(page, "OpenAI", OPENAI_KEY, "on the way")
    page.get_by_role("button", name="Save").tap()
    row = rows(page)
    expect(row).to_contain_text(OPENAI_MASK)
    expect(row).to_be_in_viewport()
    _is_made_for_fingers(page)
    act(row, "Edit")
    fill(page, label="at home")
    page.get_by_role("button", name="Save").tap()
    expect(row).to_contain_text("at home")
    for path in SETTINGS:
        page.get_by_role("navigation", name="Settings").locator(f"[href='{path}']").tap()
        expect(page).to_have_url(f"{ada.origin}{path}")
        for link in page.get_by_role("navigation", name="Settings").get_by_role("link").all():
            expect(link).to_be_in_viewport(ratio=1)  # nobody guesses that there is more to the side
        _is_made_for_fingers(page)
    page.get_by_role("link", name="API Keys").tap()
    expect(row).to_contain_text("at home")
    act(row, "Pause")
    _is_made_for_fingers(page)
    dialog(page).get_by_role("button", name="Pause", exact=True).tap()
    expect(row).to_contain_text("Paused")
    act(row, "Delete")
    _is_made_for_fingers(page)
    dialog(page).get_by_role("button", name="Delete", exact=True).tap()
    expect(row).to_have_count(0)
    assert ada.complaints == []


def _is_made_for_fingers(page: Page) -> None:
    assert narrow_places(page) == []
    small = page.evaluate(
        """(least) => [...document.querySelectorAll("button:not(.link), input:not([type=checkbox]), select")]
          .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < least)
          .map((each) => `${each.outerHTML.slice(0, 80)} ${each.getBoundingClientRect().height}`)""",
        TAPPED,
    )
    assert small == []
