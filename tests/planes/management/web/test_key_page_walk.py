"""The page of one key in a real browser: each action opens and ends there. As bytes: test_key_page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.planes.management.web.moves import (
    ANTHROPIC_KEY,
    KEYS,
    OPENAI_KEY,
    dialog,
    in_days,
    join,
    keys_of,
    narrow_places,
    plant,
    press,
    rows,
)
from tests.support.browser import DESKTOP, PHONE, Arrive, DevServer, Person
from tests.support.needs import quick


def status_of(page: Page) -> Locator:
    return page.locator(".facts").get_by_text("Status").locator("..")


def opened(arrive: Arrive, dev_server: DevServer, *, scripts: bool = True) -> tuple[Person, str]:
    """Somebody on the page of a key that they found by a search, and the address of that page."""
    ada = join(arrive(signed_up=False, java_script_enabled=scripts))
    plant(dev_server.home, ada, {"name": "old"}, {"name": "new"})
    old = keys_of(ada)[-1]["id"]
    address = f"{ada.origin}{KEYS}/{old}?q=old"
    ada.page.goto(address)
    return ada, address


@pytest.mark.parametrize("scripts", quick([True], [False]), ids=["scripts", "no scripts"])
def test_each_action_works_on_the_page_of_the_key(arrive: Arrive, dev_server: DevServer, scripts: bool) -> None:
    ada, address = opened(arrive, dev_server, scripts=scripts)
    page = ada.page
    said, main = page.get_by_role("status"), page.get_by_role("main")

    def act(name: str, *more: str) -> None:
        """Press a button of the page, and the one of the question that follows."""
        main.get_by_role("button", name=name, exact=True).click()
        place = dialog(page) if scripts else main
        place.locator("#panel").wait_for()
        if not scripts:
            assert "on=page" in page.url
        for each in more or (name,):
            place.get_by_role("button", name=each, exact=True).click()

    def is_here() -> None:
        expect(page.get_by_role("heading", level=1)).to_have_text("old")
        if scripts:
            assert page.url == address
            expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.url.startswith(address)

    act("Pause", "Cancel")
    is_here()
    act("Pause")
    expect(said).to_contain_text("OpenAI · old is paused. Applications no longer get it.")
    expect(status_of(page)).to_contain_text("Paused")
    is_here()
    if scripts:
        expect(main.get_by_role("button", name="Resume", exact=True)).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(said).to_contain_text("OpenAI · old is active again.")
    expect(status_of(page)).to_contain_text("Active")
    is_here()
    act("Make default")
    expect(said).to_contain_text("OpenAI · old is now the default.")
    expect(status_of(page)).to_contain_text("Default for OpenAI")
    is_here()
    act("Clear default")
    expect(said).to_contain_text("OpenAI · old is no longer the default.")
    is_here()
    act("Use it", "Done")
    is_here()
    act("Delete", "Cancel")
    is_here()
    act("Delete")
    expect(said).to_have_text("old is deleted.")
    expect(page.get_by_role("heading", level=1)).to_have_text("API Keys")
    expect(page.get_by_role("heading", level=2)).to_have_text("No matching keys")  # of the search that led to the key
    assert ada.complaints == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_a_key_is_edited_on_its_page(arrive: Arrive, dev_server: DevServer, scripts: bool) -> None:
    ada, address = opened(arrive, dev_server, scripts=scripts)
    page = ada.page
    page.get_by_role("main").get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Expires", exact=True).fill("2020-01-01")
    page.locator("#key-form").evaluate("(form) => { form.noValidate = true; }")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Expires must be in the future.")).to_be_visible()  # the form knows where it was opened
    page.get_by_label("Expires", exact=True).fill(in_days(9))
    page.get_by_label("Label", exact=True).fill("renamed")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("OpenAI · renamed is changed.")
    expect(page.get_by_role("heading", level=1)).to_have_text("renamed")
    expect(page).to_have_title("OpenAI · renamed · keyman")
    assert page.url.startswith(address)
    if scripts:
        expect(page.get_by_role("main").get_by_role("button", name="Edit", exact=True)).to_be_focused()


def test_a_new_value_is_checked_at_once_and_what_was_done_stays_in_view(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY, "name": "chat"})
    ada.open(f"{KEYS}/{keys_of(ada)[0]['id']}")
    press(page, "Edit")
    page.get_by_label("API key", exact=True).fill(f"Bearer {OPENAI_KEY}8765")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#check")).to_contain_text("Not checked: the gateway cannot be reached.")
    expect(page.locator("#heard")).to_contain_text("Not checked: the gateway cannot be reached.")
    expect(page.get_by_role("status")).to_contain_text("OpenAI · chat is changed. Only the key itself is kept.")


def test_a_key_that_another_window_deleted_says_so_in_the_dialog(arrive: Arrive, dev_server: DevServer) -> None:
    ada, _ = opened(arrive, dev_server)
    page = ada.page
    press(page, "Delete")
    gone = keys_of(ada)[-1]["id"]
    assert ada.context.request.delete(f"{ada.origin}/api/keys/{gone}").status == 204
    dialog(page).get_by_role("button", name="Delete", exact=True).click()
    expect(dialog(page)).to_contain_text("This key no longer exists.")
    dialog(page).get_by_role("button", name="Back to your keys").click()
    expect(rows(page)).to_have_count(1)


def test_its_page_fits_with_all_its_buttons(arrive: Arrive, dev_server: DevServer) -> None:
    for locale, viewport in (("en-US", DESKTOP), ("de-DE", PHONE)):
        ada = join(arrive(signed_up=False, viewport=viewport, locale=locale))
        plant(dev_server.home, ada, {"name": "W" * 100, "undecryptable": True}, {"name": ANTHROPIC_KEY[-4:]})
        for key in keys_of(ada):
            ada.open(f"{KEYS}/{key['id']}")
            assert narrow_places(ada.page) == []
