"""Where the focus goes after each action, in a real browser: somebody without a mouse goes on from there."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from tests.planes.management.web.moves import (
    ACCOUNT,
    ANTHROPIC_KEY,
    KEYS,
    OPENAI_KEY,
    TOKENS,
    act,
    dialog,
    discard,
    join,
    plant,
    press,
    rows,
)
from tests.support.browser import DESKTOP, PHONE, Arrive, DevServer
from tests.support.planes import PASSWORD


def test_a_deletion_leads_to_the_row_beside(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(5)))
    ada.open(KEYS)
    for gone, beside in (("key 2", "key 1"), ("key 0", "key 1")):  # the one after it, or at the end the one before it
        act(rows(page).filter(has_text=gone), "Delete")
        dialog(page).get_by_role("button", name="Delete", exact=True).click()
        expect(page.get_by_role("status")).to_have_text(f"{gone} is deleted.")
        expect(rows(page).filter(has_text=beside).get_by_role("button", name="Edit")).to_be_focused()
    for gone in ("key 4", "key 3"):
        rows(page).filter(has_text=gone).get_by_role("checkbox").check()
    page.get_by_role("form", name="Selected keys").get_by_role("button", name="Delete").click()
    dialog(page).get_by_role("button", name="Delete", exact=True).click()
    expect(rows(page).filter(has_text="key 1").get_by_role("button", name="Edit")).to_be_focused()


def test_a_page_that_is_loaded_again_behind_a_dialog_leads_to_what_is_new(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    page.get_by_role("button", name="Add Several Keys").click()
    page.get_by_label("Lines with keys").fill(f"OPENAI_API_KEY={OPENAI_KEY}\nANTHROPIC_API_KEY={ANTHROPIC_KEY}")
    page.get_by_role("button", name="Show the keys").click()
    page.get_by_role("button", name="Store the chosen keys").click()
    page.get_by_role("button", name="Done").click()
    expect(rows(page).first.get_by_role("button", name="Edit")).to_be_focused()
    page.reload()
    assert page.evaluate("document.activeElement === document.body")  # only once
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create Token").click()
    dialog(page).get_by_role("button", name="Copy laptop").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New Token")).to_be_focused()


def test_a_new_sign_in_leads_back_to_the_button_that_was_pressed(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(3)))
    ada.open(KEYS)
    ada.context.clear_cookies()
    pause = rows(page).nth(1).get_by_role("button", name="Pause")
    pause.press("Enter")
    expect(dialog(page)).to_have_accessible_description("Your session has ended.")
    page.get_by_label("Password").fill(PASSWORD)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(pause).to_be_focused()


def test_what_was_done_is_put_into_its_region_once_the_page_is_there(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    page.add_init_script(
        """window.put = [];
        document.addEventListener("DOMContentLoaded", () => {
          const region = document.getElementById("status");
          new MutationObserver(() => put.push(region.textContent)).observe(region, { childList: true });
        });"""
    )
    ada.open(ACCOUNT)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Your choice is saved in this browser.")
    assert page.evaluate("put.at(-1)") == "Your choice is saved in this browser."


def test_undo_is_one_key_away_and_a_closed_message_leads_back(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(9)))
    ada.open(KEYS)
    page.keyboard.press("u")  # there is nothing to undo
    assert page.evaluate("document.activeElement === document.body")
    act(rows(page).first, "Pause")
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    resume = rows(page).first.get_by_role("button", name="Resume")
    expect(resume).to_be_focused()
    page.keyboard.press("u")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("")
    expect(resume).to_be_focused()


def test_a_cleared_selection_leads_back_to_a_box_and_is_said(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(3)))
    ada.open(KEYS)
    box = rows(page).nth(1).get_by_role("checkbox")
    box.check()
    page.get_by_role("button", name="Clear selection").press("Enter")
    expect(box).to_be_focused()
    expect(page.locator("#heard")).to_have_text("Selected: 0")


def test_a_call_that_is_tried_keeps_the_focus(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open("/docs#listKeys")
    form = page.get_by_role("form", name="Try it: List the keys")
    form.get_by_role("button", name="Send GET").press("Enter")
    expect(form.get_by_role("status")).to_have_text("200 OK")
    expect(form.get_by_role("button", name="Send GET")).to_be_focused()


# The part of the box that has the focus, its outline included, that no ancestor cuts off and nothing else covers.
UNSEEN = """() => {
  const focused = document.activeElement;
  const box = focused.getBoundingClientRect();
  const at = (x, y) => document.elementFromPoint(box.x + box.width * x, box.y + box.height * y);
  const points = [0.1, 0.3, 0.5, 0.7, 0.9].flatMap((x) => [0.2, 0.5, 0.8].map((y) => at(x, y)));
  const seen = points.some((each) => focused.contains(each) || each?.closest("label")?.contains(focused));
  if (!seen) return `hidden: ${focused.outerHTML}`;
  const { outlineOffset, outlineWidth } = getComputedStyle(focused);
  const reach = parseFloat(outlineOffset) + parseFloat(outlineWidth);
  for (let each = focused.parentElement; each; each = each.parentElement) {
    const { overflowX, overflowY } = getComputedStyle(each);
    const its = each.getBoundingClientRect();
    const isOut = box.left - reach < its.left - 0.5 || box.top - reach < its.top - 0.5;
    if (overflowX === "hidden" && overflowY === "hidden" && isOut) return `cut off: ${focused.outerHTML}`;
  }
  return "";
}"""


def test_the_focus_is_in_view_at_400_percent(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport={"width": 320, "height": 256}, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(4)))
    ada.open(KEYS)
    act(rows(page).first, "Pause")
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("is paused")
    assert seen_to_the_end(page)  # with a toast
    page.get_by_role("button", name="Close", exact=True).click()
    rows(page).first.get_by_role("checkbox").check()
    assert seen_to_the_end(page)  # with the bar


def seen_to_the_end(page: Page) -> bool:
    """Press Tab up to the last button of the page, and check that all that gets the focus is in view."""
    page.get_by_role("button", name="Add New Key").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            return True
        assert page.evaluate(UNSEEN) == ""
    return False


def test_links_to_keys_can_be_hit_and_show_the_whole_outline(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": None}, {"name": "a label that takes more than two lines " * 2}, {"name": "x"})
    for viewport in (DESKTOP, PHONE):
        page.set_viewport_size(viewport)
        ada.open(KEYS)
        for link in rows(page).get_by_role("link").all():
            link.focus()
            assert page.evaluate(UNSEEN) == ""
            assert link.evaluate("(each) => each.getClientRects()[0].height") >= 24


def test_a_dialog_that_a_key_opens_leads_back_to_its_button_if_nothing_had_the_focus(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    for key, name in (("n", "Add New Key"), ("?", "Keyboard Shortcuts")):
        ada.open(KEYS)
        page.keyboard.press(key)
        dialog(page).get_by_role("heading").wait_for()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("n")
    page.get_by_label("API key", exact=True).fill(OPENAI_KEY)
    discard(page)
    expect(page.get_by_role("button", name="Keyboard Shortcuts")).to_be_focused()  # it had the focus


def test_a_box_stays_in_view_when_the_bar_comes_and_goes_at_400_percent(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport={"width": 320, "height": 256}, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(12)))
    ada.open(KEYS)
    for row in (rows(page).first, rows(page).nth(2)):
        row.get_by_role("checkbox").focus()
        for _ in range(2):
            page.keyboard.press("Space")
            assert page.evaluate(UNSEEN) == ""


def test_a_long_list_can_be_skipped(arrive: Arrive, dev_server: DevServer) -> None:
    for has_script in (True, False):
        ada = join(arrive(signed_up=False, java_script_enabled=has_script))
        page = ada.page
        plant(dev_server.home, ada, *({"name": f"key {number}"} for number in range(51)))
        ada.open(KEYS)
        page.get_by_label("Sort").focus()
        for _ in range(1 if has_script else 2):  # without a script, there is a button that searches
            page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip the list")
        expect(skip).to_be_focused()
        assert not has_script or page.evaluate(UNSEEN) == ""
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Older")).to_be_focused()
        ada.open(f"{KEYS}?q=key+5")
        expect(skip).to_have_count(0)  # there is nothing behind it


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_without_a_script_what_is_done_leads_back_to_its_row(
    arrive: Arrive, dev_server: DevServer, viewport: ViewportSize
) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False, viewport=viewport, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number:02}"} for number in range(40)))
    row, main = rows(page).filter(has_text="key 07"), page.get_by_role("main")

    def leads_back(says: str) -> None:
        expect(page.get_by_role("status")).to_contain_text(says)
        expect(page.get_by_role("status")).to_be_in_viewport(ratio=1)
        expect(row).to_be_in_viewport(ratio=1)
        expect(page.locator("tr:target")).to_contain_text("key 07")  # the keyboard begins there from now on
        page.keyboard.press("Tab")
        expect(row.locator(":focus")).to_have_count(1)

    for act_of, says in (("Pause", "is paused"), ("Resume", "is active again"), ("Make default", "the default")):
        ada.open(f"{KEYS}?sort=name")
        act(row, act_of)
        main.get_by_role("button", name=act_of, exact=True).click()
        leads_back(says)
        assert "sort=name&" in page.url
    ada.open(KEYS)
    act(row, "Edit")
    page.get_by_label("Label", exact=True).fill("key 07, noted")
    main.get_by_role("button", name="Save", exact=True).click()
    leads_back("is changed")
    act(row, "Delete")
    main.get_by_role("button", name="Cancel").click()
    expect(row).to_be_in_viewport(ratio=1)
    assert ada.complaints == []


def test_with_a_script_the_address_and_the_place_stay_as_they_were(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, reduced_motion="reduce"))
    page = ada.page
    plant(dev_server.home, ada, *({"name": f"key {number:02}"} for number in range(40)))
    ada.open(KEYS)
    row = rows(page).filter(has_text="key 07")
    row.scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    act(row, "Pause")
    dialog(page).get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("is paused")
    assert (page.url, page.evaluate("scrollY")) == (f"{ada.origin}{KEYS}", before)


def test_enter_on_a_box_sends_nothing(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "chat"})
    ada.open(KEYS)
    box = rows(page).first.get_by_role("checkbox")
    for _ in range(2):
        ada.asked.clear()
        box.press("Enter")
        page.wait_for_timeout(100)
        assert ada.asked == []
        box.press("Space")
    expect(box).to_be_focused()
