"""What the pages say of a change: where it is seen, how it is undone, how long it stays; and what fails."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from keyman.clock import now
from keyman.planes.management.web.pages import TEMPLATES
from tests.planes.management.web.moves import (
    KEYS,
    OPENAI_KEY,
    TOKENS,
    act,
    dialog,
    escape_when,
    fill,
    held,
    join,
    keys_of,
    plant,
    press,
    rows,
    save,
)
from tests.support.browser import DESKTOP, PHONE, Arrive, DevServer
from tests.support.needs import quick

MANY = [{"name": f"key {number:02}"} for number in range(50)]


def _pause(page: Page, label: str) -> None:
    press(page, "Pause", rows(page).filter(has_text=label))
    dialog(page).get_by_role("button", name="Pause", exact=True).click()


@pytest.mark.parametrize("viewport", quick([PHONE], [DESKTOP]), ids=["phone", "desk"])
def test_what_was_done_is_said_where_the_eyes_are_and_can_be_undone(
    arrive: Arrive, dev_server: DevServer, viewport: object
) -> None:
    ada = join(arrive(signed_up=False, viewport=viewport))
    page = ada.page
    plant(dev_server.home, ada, *MANY)
    ada.open(KEYS)
    _pause(page, "key 01")  # at the lower end of the list
    said = page.get_by_role("status")
    expect(said).to_contain_text("OpenAI · key 01 is paused. Applications no longer get it.")
    expect(said).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Undo").click()
    expect(said).to_contain_text("OpenAI · key 01 is active again.")
    assert {key["status"] for key in keys_of(ada)} == {"active"}
    page.get_by_role("button", name="Undo").click()
    expect(said).to_contain_text("OpenAI · key 01 is paused.")
    expect(rows(page).filter(has_text="key 01")).to_contain_text("Paused")
    page.get_by_role("button", name="Close").click()
    expect(said).to_have_text("")
    expect(page.get_by_role("button", name="Undo")).to_have_count(0)
    assert ada.complaints == []


def test_it_can_be_undone_without_javascript(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False, viewport=PHONE))
    page = ada.page
    plant(dev_server.home, ada, *MANY)
    ada.open(KEYS)
    act(rows(page).filter(has_text="key 01"), "Pause")
    page.get_by_role("main").get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status")).to_have_text("OpenAI · key 01 is active again.")
    expect(page.get_by_role("status")).to_be_in_viewport(ratio=1)
    assert {key["status"] for key in keys_of(ada)} == {"active"}


def test_nothing_is_undone_that_was_changed_since(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "Chat"})
    ada.open(KEYS)
    _pause(page, "Chat")
    expect(page.get_by_role("status")).to_contain_text("is paused")
    (key,) = keys_of(ada)
    change = {"name": "Chat of another window"}
    assert ada.context.request.patch(f"{ada.origin}/api/keys/{key['id']}", data=change).status == 200
    page.get_by_role("button", name="Undo").click()
    expect(dialog(page)).to_have_accessible_name("Resume this key?")
    expect(dialog(page).get_by_role("alert")).to_be_visible()
    assert keys_of(ada)[0]["status"] == "disabled"


def test_it_stays_until_it_can_be_read_and_longer_while_somebody_is_at_it(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = arrive(signed_up=False)
    join(ada)
    page = ada.page
    page.clock.install()
    plant(dev_server.home, ada, {"name": "Chat"})
    ada.open(KEYS)
    _pause(page, "Chat")
    said = page.get_by_role("status")
    expect(said).to_contain_text("is paused")
    page.clock.run_for(15_000)
    expect(said).to_contain_text("is paused")
    page.get_by_role("button", name="Undo").focus()
    page.clock.run_for(60_000)
    expect(said).to_contain_text("is paused")
    page.get_by_role("button", name="Add New Key").focus()
    page.clock.run_for(30_000)
    expect(said).to_have_text("")


def test_a_failure_is_red_is_said_at_once_and_stays(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    page.clock.install()
    plant(dev_server.home, ada, {"name": "Chat"})
    ada.open(KEYS)
    _pause(page, "Chat")
    expect(page.get_by_role("button", name="Undo")).to_be_visible()
    ada.context.set_offline(True)
    page.get_by_role("button", name="Undo").click()
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("keyman could not be reached")
    expect(failure).to_be_in_viewport(ratio=1)
    expect(failure).to_have_css("color", "rgb(163, 38, 42)")
    page.clock.run_for(120_000)
    expect(failure).to_be_visible()
    ada.context.set_offline(False)
    press(page, "Resume", rows(page))
    dialog(page).get_by_role("button", name="Resume", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("is active again")
    expect(failure).to_have_count(0)


def test_a_failure_in_a_dialog_is_in_view_however_far_down_its_button_is(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport={"width": 390, "height": 460}))  # a phone whose keyboard is open
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, "from a tunnel")
    ada.context.set_offline(True)
    save(page)
    expect(dialog(page).get_by_role("alert")).to_contain_text("keyman could not be reached")
    expect(dialog(page).get_by_role("alert")).to_be_in_viewport(ratio=1)


def test_escape_asks_before_it_throws_away_what_was_typed(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    opened = press(page, "Add New Key")
    page.keyboard.press("Escape")  # nothing was typed
    expect(opened).to_have_count(0)
    press(page, "Add New Key")
    fill(page, label="typed")
    page.keyboard.press("Escape")
    asked = dialog(page)
    expect(asked).to_have_accessible_name("Discard what you typed?")
    expect(asked.get_by_role("button", name="Keep editing")).to_be_focused()
    page.keyboard.press("Escape")  # keeps it
    expect(page.get_by_label("Label", exact=True)).to_be_focused()
    expect(page.get_by_label("Label", exact=True)).to_have_value("typed")
    page.keyboard.press("a")
    page.keyboard.press("Escape")
    dialog(page).get_by_role("button", name="Discard", exact=True).click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Add New Key").first).to_be_focused()
    # What came back with a refusal was typed, too.
    press(page, "Add New Key")
    fill(page, "OpenAI", f"{OPENAI_KEY} x")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("[aria-invalid=true]")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog(page)).to_have_accessible_name("Discard what you typed?")
    assert ada.troubles("Failed to load resource") == []


def test_a_refused_key_is_not_thrown_away_by_an_escape_in_the_moment_in_which_it_comes_back(
    arrive: Arrive,
) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", f"{OPENAI_KEY} x")
    escape_when(page, "[aria-invalid=true]")
    page.get_by_role("button", name="Save").click()
    expect(dialog(page)).to_have_accessible_name("Discard what you typed?")
    page.keyboard.press("Escape")
    expect(page.get_by_label("API key", exact=True)).to_have_value(f"{OPENAI_KEY} x")


def test_escape_asks_of_nothing_that_was_there_before(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page, later = ada.page, now() + timedelta(days=9)
    settings = {"service": "AZURE_OPENAI", "settings": '{"endpoint":"https://x.openai.azure.com"}'}
    plant(dev_server.home, ada, {"name": "Chat", "expires_at": later, **settings})
    number = keys_of(ada)[0]["id"]
    ada.open(KEYS)

    def refused(label: str | None = None) -> None:
        """Send a form about a key that another window has changed since."""
        press(page, "Edit", rows(page))
        name = f"Chat {uuid4().hex}"
        assert ada.context.request.patch(f"{ada.origin}/api/keys/{number}", data={"name": name}).status == 200
        if label:
            fill(page, label=label)
        page.get_by_role("button", name="Save", exact=True).click()
        expect(dialog(page).get_by_role("alert")).to_be_visible()
        expect(page.get_by_label("Label", exact=True)).to_have_value(label or name)
        page.keyboard.press("Escape")

    refused()
    expect(page.get_by_role("dialog")).to_have_count(0)
    refused("typed")
    expect(dialog(page)).to_have_accessible_name("Discard what you typed?")
    page.get_by_role("button", name="Discard", exact=True).click()
    press(page, "Edit", rows(page))
    ada.context.set_offline(True)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("keyman could not be reached.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    ada.context.set_offline(False)
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    for box in page.get_by_role("checkbox").all():
        box.uncheck()
    page.get_by_role("button", name="Create Token").click()
    expect(page.locator("[aria-invalid=true]")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(dialog(page)).to_have_accessible_name("Discard what you typed?")


def test_what_is_under_way_is_seen(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *MANY[:11])
    ada.open(KEYS)
    edit = rows(page).first.get_by_role("button", name="Edit")
    with held(page, "GET"):
        edit.click()
        expect(edit).to_have_css("cursor", "progress")
    dialog(page).get_by_role("heading").wait_for()
    page.keyboard.press("Escape")
    with held(page, "GET"):
        page.get_by_label("Show status").select_option(label="Active")
        expect(page.locator("#rows")).to_have_css("opacity", "0.6")
    expect(page.locator("#rows")).to_have_css("opacity", "1")


def test_every_dialog_has_its_action_first_and_cancel_last() -> None:
    found = 0
    for path in TEMPLATES.glob("*.html"):
        for buttons in re.findall(r'<div class="buttons">.*?</div>', path.read_text(), re.DOTALL):
            words = re.findall(r"<button\b[^>]*>\{\{ (.*?) \}\}", buttons)
            if '_("Cancel")' in words:
                found += 1
                assert (len(words) > 1, words[-1]) == (True, '_("Cancel")'), path.name
    assert found > 6
