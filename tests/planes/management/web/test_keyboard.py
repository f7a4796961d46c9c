"""Shortcuts, the theme and the focus after a new sign-in, in a real browser."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect

from keyman.clock import now
from tests.planes.management.web.moves import (
    ACCOUNT,
    ACTIVITY,
    KEYS,
    OPENAI_KEY,
    TOKENS,
    act,
    dialog,
    fill,
    join,
    narrow_places,
    plant,
    press,
    rows,
    save,
)
from tests.support.browser import DESKTOP, PHONE, Arrive, DevServer
from tests.support.needs import quick
from tests.support.planes import PASSWORD

PAPER = "getComputedStyle(document.body).backgroundColor"


def focused(page: Page) -> str:
    found: str = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
    return found


def test_keys_of_the_keyboard_add_search_and_list_themselves(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(12)))
    ada.open(KEYS)
    page.keyboard.press("n")
    expect(dialog(page).get_by_role("textbox", name="Label")).to_be_visible()
    page.get_by_label("Label", exact=True).click()
    page.keyboard.type("n/?")  # in a field, they are letters
    expect(page.get_by_label("Label", exact=True)).to_have_value("n/?")
    page.get_by_label("Label", exact=True).fill("")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    for key in ("Control+n", "Alt+n", "Meta+/"):
        page.keyboard.press(key)
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.get_by_role("searchbox")).to_have_value("")
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("Shift+?")
    expect(dialog(page)).to_have_accessible_name("Keyboard Shortcuts")
    page.keyboard.press("n")  # a dialog is open
    expect(dialog(page)).to_have_accessible_name("Keyboard Shortcuts")
    dialog(page).get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    ada.open(TOKENS)
    page.keyboard.press("n")
    expect(dialog(page).get_by_label("Name", exact=True)).to_be_visible()
    ada.open(ACTIVITY)
    page.keyboard.press("/")
    expect(page.get_by_label("Show")).to_be_focused()
    ada.open(ACCOUNT)
    page.keyboard.press("n")
    page.wait_for_url(f"**{KEYS}/new")
    assert ada.complaints == []


def test_shortcuts_can_be_switched_off(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(ACCOUNT)
    page.get_by_label("Shortcuts on the keyboard").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Your choice is saved in this browser.")
    ada.open(KEYS)
    for key in ("n", "/", "Shift+?"):
        page.keyboard.press(key)
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Keyboard Shortcuts").click()
    expect(dialog(page)).to_contain_text("You have switched them off.")


def test_a_theme_holds_without_javascript_and_without_a_flash(arrive: Arrive) -> None:
    for scripts in (True, False):
        ada = join(arrive(signed_up=False, java_script_enabled=scripts))
        page = ada.page
        ada.open(ACCOUNT)
        page.get_by_label("Theme").select_option(label="Dark")
        page.get_by_label("Language").select_option(label="Deutsch")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Konto")
        answer = page.goto(f"{ada.origin}{KEYS}")
        assert answer is not None
        assert '<html lang="de" data-theme="dark">' in answer.text()  # before any script or style
        ada.context.clear_cookies(name="keyman_session")
        ada.open("/sign-in")
        expect(page.get_by_role("heading", level=1)).to_have_text("Anmelden")
        assert ada.complaints == []
        if scripts:
            assert page.evaluate(PAPER) == "rgb(18, 21, 27)"  # although the system is light
            page.emulate_media(color_scheme="dark")
            ada.context.add_cookies([{"name": "keyman_session_display", "value": "light..", "url": ada.origin}])
            page.reload()
            assert page.evaluate(PAPER) == "rgb(248, 248, 246)"


def test_after_a_new_sign_in_the_field_that_needs_it_has_the_focus(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "typed before")
    ada.context.clear_cookies()
    save(page)
    again = dialog(page)
    expect(again).to_have_accessible_name("Sign in again")
    expect(again.get_by_label("Email")).to_have_value(ada.email)
    expect(again.get_by_label("Password")).to_be_focused()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(dialog(page)).not_to_have_accessible_name("Sign in again")
    expect(page.get_by_label("Label", exact=True)).to_have_value("typed before")
    page.wait_for_function("document.activeElement !== document.body")
    assert focused(page) in ("api_key", "Save")
    if focused(page) == "api_key":
        page.keyboard.type(OPENAI_KEY)
    page.keyboard.press("Enter")
    expect(rows(page)).to_contain_text("typed before")


def test_the_display_fits_on_a_phone(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    for path in (ACCOUNT, "/settings/shortcuts"):
        ada.open(path)
        assert narrow_places(ada.page) == []


def test_boxes_are_alike_and_facts_stand_beside_their_names_on_a_phone(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, has_touch=True, is_mobile=True))
    page, later = ada.page, now() + timedelta(days=3, hours=1)
    plant(dev_server.home, ada, {"name": "old"}, {"name": "chat", "is_default": True, "expires_at": later})
    ada.open(f"{TOKENS}/new")
    widths = "(boxes) => boxes.map((box) => box.getBoundingClientRect().width)"
    assert page.locator(".choice input").evaluate_all(widths) == [18] * 5
    ada.open(KEYS)
    notes = rows(page).first.locator(".notes")
    expect(notes).to_have_text(re.compile(r"Applications get this key\s+expires in 3 days"))
    assert notes.evaluate("(notes) => notes.scrollWidth <= notes.clientWidth")
    rows(page).get_by_role("link", name="chat").tap()
    expect(page.get_by_role("heading", level=1)).to_have_text("chat")
    tops = "(pairs) => pairs.filter((pair) => pair.children[0].offsetTop !== pair.children[1].offsetTop).length"
    assert page.locator(".facts > div").evaluate_all(tops) == 0


HIDDEN = """() => {
  const box = document.activeElement.getBoundingClientRect();
  const above = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return document.activeElement.contains(above) ? "" : document.activeElement.outerHTML;
}"""


@pytest.mark.parametrize("viewport", quick([DESKTOP], [PHONE]))
def test_nothing_lies_above_what_has_the_focus(arrive: Arrive, dev_server: DevServer, viewport: object) -> None:
    ada = join(arrive(signed_up=False, viewport=viewport, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(9)))
    ada.open(KEYS)
    act(rows(page).last, "Pause")
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("OpenAI · key 0 is paused.")
    assert page.evaluate(HIDDEN) == ""  # under the toast
    page.get_by_role("button", name="Close", exact=True).click()
    rows(page).first.get_by_role("checkbox").check()
    while not rows(page).last.get_by_role("link").evaluate("(link) => link === document.activeElement"):
        page.keyboard.press("Tab")
        assert page.evaluate(HIDDEN) == ""  # under the bar for what is selected


def test_the_bar_of_a_phone_hides_nothing_that_gets_the_focus(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, reduced_motion="reduce", locale="de-DE"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(20)))
    ada.open(KEYS)
    rows(page).first.get_by_role("checkbox").check()
    covered = """() => document.activeElement.getBoundingClientRect().bottom >
      document.querySelector("#selected").getBoundingClientRect().top"""
    while not rows(page).last.get_by_role("link").evaluate("(link) => link === document.activeElement"):
        page.keyboard.press("Tab")
        assert not page.evaluate(covered)  # in German, the bar has three lines


def test_a_failure_hides_nothing_that_gets_the_focus(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(12)))
    ada.open(KEYS)
    ada.context.set_offline(True)
    page.get_by_role("button", name="Add New Key").click()
    expect(page.get_by_role("alert")).to_be_visible()
    covered = """() => document.activeElement.getBoundingClientRect().bottom >
      document.querySelector(".failed").getBoundingClientRect().top"""
    while (
        not rows(page).last.get_by_role("button", name="Actions").evaluate("(each) => each === document.activeElement")
    ):
        page.keyboard.press("Tab")
        assert not page.evaluate(covered)
