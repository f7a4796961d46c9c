"""Several keys at once: selected in the list, asked about once. As bytes: test_key_actions."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.planes.management.web.moves import KEYS, dialog, join, keys_of, narrow_places, plant, rows
from tests.support.browser import PHONE, Arrive, DevServer, Person

KEPT: list[dict[str, Any]] = [*({"name": f"key {letter}"} for letter in "abcd"), {"name": "key off", "disabled": True}]


def select(page: Page, *labels: str) -> Locator:
    """Select the keys with these labels. Return the bar."""
    for label in labels:
        page.get_by_role("checkbox", name=f" {label} ").check()
    return page.get_by_role("form", name="Selected keys")


def statuses(ada: Person) -> dict[str, str]:
    return {key["name"].removeprefix("key "): key["status"] for key in reversed(keys_of(ada))}


def test_several_keys_are_paused_brought_back_and_deleted(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *KEPT)
    ada.open(KEYS)
    bar = select(page)
    expect(bar).to_be_hidden()
    box = rows(page).last.get_by_role("checkbox")
    expect(box).to_have_accessible_name("Select OpenAI key a sk-...1234")
    box.check()
    expect(bar).to_contain_text("Selected: 1")
    bar.get_by_role("button", name="Select all").click()
    expect(bar).to_contain_text("Selected: 5")
    bar.get_by_role("button", name="Clear selection").click()
    expect(bar).to_be_hidden()

    select(page, "key a", "key b", "key off")
    bar.get_by_role("button", name="Pause").click()
    expect(dialog(page)).to_have_accessible_name("Pause these keys?")
    assert dialog(page).get_by_role("listitem").all_inner_texts() == [
        "OpenAI · key b · sk-...1234",
        "OpenAI · key a · sk-...1234",
        "OpenAI · key off · sk-...1234",
    ]
    expect(dialog(page)).to_contain_text("These are not active, so nothing changes for them:")
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    said = page.locator("#status")  # the bar has another status
    expect(said).to_contain_text("2 keys are paused. Applications no longer get them.")
    assert statuses(ada) == {**dict.fromkeys("ab", "disabled"), **dict.fromkeys("cd", "active"), "off": "disabled"}
    page.get_by_role("button", name="Undo").click()
    expect(said).to_contain_text("2 keys are active again.")
    assert statuses(ada) == {**dict.fromkeys("abcd", "active"), "off": "disabled"}

    select(page, "key c", "key d")
    bar.get_by_role("button", name="Delete").click()
    expect(dialog(page)).to_have_accessible_name("Delete these keys?")
    expect(dialog(page).get_by_role("button", name="Cancel")).to_be_focused()
    dialog(page).get_by_role("button", name="Delete", exact=True).click()
    expect(said).to_have_text("2 keys are deleted.")
    expect(page.get_by_role("button", name="Undo")).to_have_count(0)
    expect(rows(page)).to_have_count(3)
    assert ada.complaints == []


def test_what_went_wrong_is_said_for_each_key(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *KEPT[:3])
    ada.open(KEYS)
    bar = select(page, "key a", "key b")
    bar.get_by_role("button", name="Pause").click()
    expect(dialog(page)).to_have_accessible_name("Pause these keys?")
    gone = next(key["id"] for key in keys_of(ada) if key["name"] == "key a")
    assert ada.context.request.delete(f"{ada.origin}/api/keys/{gone}").status == 204
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    expect(dialog(page).get_by_role("alert")).to_have_text("Not all keys were changed")
    assert dialog(page).get_by_role("listitem").all_inner_texts() == [
        "OpenAI · key b · sk-...1234\nDone",
        f"key {gone}\nThis key no longer exists.",
    ]
    dialog(page).get_by_role("button", name="Done").click()
    expect(rows(page)).to_have_count(2)  # the list is what it is now
    expect(rows(page).filter(has_text="key b")).to_contain_text("Paused")
    assert ada.troubles("Failed to load resource") == []


@pytest.mark.parametrize("viewport", [None, PHONE], ids=["desktop", "phone"])
def test_several_keys_can_be_chosen_without_javascript(arrive: Arrive, dev_server: DevServer, viewport: object) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False, **({"viewport": viewport} if viewport else {})))
    page = ada.page
    plant(dev_server.home, ada, *KEPT)
    ada.open(f"{KEYS}?sort=name")
    bar = select(page, "key a", "key d")
    expect(bar.get_by_role("button", name="Select all")).to_be_hidden()
    expect(bar).to_be_in_viewport(ratio=1)
    bar.get_by_role("button", name="Pause").click()
    page.get_by_role("main").get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("2 keys are paused.")
    assert page.url.startswith(f"{ada.origin}{KEYS}?sort=name&")  # where it was chosen
    page.get_by_role("button", name="Undo").click()
    assert statuses(ada) == {**dict.fromkeys("abcd", "active"), "off": "disabled"}


def test_the_bar_fits_a_phone_and_is_in_view(arrive: Arrive, dev_server: DevServer) -> None:
    for locale in ("en-US", "de-DE"):
        ada = join(arrive(signed_up=False, viewport=PHONE, locale=locale))
        plant(dev_server.home, ada, *KEPT * 5)
        ada.open(KEYS)
        ada.page.locator(".tick input").first.check()
        expect(ada.page.locator("#selected")).to_be_in_viewport(ratio=1)
        assert narrow_places(ada.page) == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_bar_is_two_keys_away_from_each_selected_row(arrive: Arrive, dev_server: DevServer, scripts: bool) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=scripts, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(30)))
    ada.open(KEYS)
    bar, row = page.get_by_role("form", name="Selected keys"), rows(page).nth(20)
    leads = row.get_by_role("link", name="Go to selection")
    expect(leads).to_have_count(0)
    box = row.get_by_role("checkbox")
    box.focus()
    page.keyboard.press("Space")
    expect(box).to_be_focused()  # nothing moves it unasked
    at = box.bounding_box()
    page.keyboard.press("Tab")
    expect(leads).to_be_focused()
    expect(leads).to_be_in_viewport(ratio=1)
    page.keyboard.press("Enter")
    expect(bar).to_be_focused()
    expect(bar).to_be_in_viewport(ratio=1)
    if scripts:
        assert box.bounding_box() == at
    page.keyboard.press("Tab")
    expect(bar.get_by_role("button", name="Pause")).to_be_focused()


def test_the_bar_comes_before_the_list_for_the_keyboard(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *KEPT)
    ada.open(KEYS)
    box = rows(page).first.get_by_role("checkbox")
    box.check()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Clear selection")).to_be_focused()


def test_the_number_of_selected_keys_is_put_into_a_status_that_is_there(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *KEPT)
    ada.open(KEYS)
    page.evaluate(
        """() => {
          const words = document.getElementById("picked");
          window.said = [];
          new MutationObserver(() => said.push([words.checkVisibility(), words.textContent]))
            .observe(words, { childList: true });
        }"""
    )
    said = page.get_by_role("form", name="Selected keys").get_by_role("status")
    for number in (1, 2):
        page.get_by_role("checkbox").nth(number).check()
        expect(said).to_have_text(f"Selected: {number}")
    assert page.evaluate("said") == [[True, "Selected: 1"], [True, "Selected: 2"]]
