"""What somebody hears who uses the pages with a screen reader and the keyboard, in a real browser."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise

from playwright.sync_api import expect

from keyman.clock import now
from tests.planes.management.web.moves import (
    ACCOUNT,
    ACTIVITY,
    ANTHROPIC_KEY,
    APPLICATIONS,
    KEYS,
    OPENAI_KEY,
    SETTINGS,
    TOKENS,
    act,
    dialog,
    fill,
    join,
    plant,
    plant_applications,
    press,
    rows,
    save,
    sign_in,
)
from tests.support.browser import Arrive, DevServer, Person

WRONG = "not the password of this account"


def test_a_page_that_comes_back_leads_to_what_was_refused(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(ACCOUNT)
    page.get_by_label("Current password").fill(WRONG)
    page.get_by_label("New password").fill("another password, a good one")
    page.get_by_role("button", name="Change password").click()
    expect(page.get_by_label("Current password")).to_be_focused()
    expect(page.get_by_label("Current password")).to_have_accessible_description("Current password is wrong.")
    ada.open(f"{ACCOUNT}/delete")
    page.get_by_label("Current password").fill(WRONG)
    page.get_by_role("button", name="Delete Account").click()
    expect(page.get_by_label("Current password")).to_be_focused()
    expect(page.get_by_label("Current password")).to_have_accessible_description("The current password is wrong.")
    ada.context.clear_cookies()
    ada.open("/sign-in")
    sign_in(page, ada.email, WRONG)
    expect(page.get_by_label("Password")).to_be_focused()
    expect(page.get_by_label("Password")).to_have_accessible_description("E-mail or password is wrong.")


def test_a_sign_in_above_a_form_says_why_it_was_refused(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    ada.context.clear_cookies()
    page.get_by_role("button", name="Create Token").click()
    sign_in(page, ada.email, WRONG)
    expect(dialog(page).get_by_text("E-mail or password is wrong.")).to_be_visible()
    expect(page.get_by_label("Password")).to_have_accessible_description("E-mail or password is wrong.")


def test_what_is_wrong_is_heard_once(arrive: Arrive) -> None:
    """As the description of the field that has the focus, and not as an alert, too."""
    ada = join(arrive(signed_up=False))
    page = ada.page

    def heard_once(words: str) -> None:
        expect(page.locator(":focus")).to_have_accessible_description(re.compile(re.escape(words)))
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_text(words)).to_have_count(1)

    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", "hq2v9mXbT0c7eUKwN4Rd1234")
    save(page)
    heard_once("Store it anyway?")
    fill(page, key="")  # another value: what was asked is asked no more
    fill(page, key="sk-...1234")
    save(page)
    heard_once("is a mask")
    fill(page, "OpenAI", ANTHROPIC_KEY)
    expect(page.get_by_text("looks like a key of Anthropic")).to_have_count(1)  # it warns before it is sent
    save(page)
    heard_once("looks like a key of Anthropic")
    fault, button = page.locator("#api_key-fault").bounding_box(), page.get_by_role("button", name="Choose Anthropic")
    expect(button).to_be_visible()
    below = button.bounding_box()
    assert fault is not None
    assert below is not None
    assert fault["y"] + fault["height"] <= below["y"] + 1  # first what is wrong, then what to do
    ada.context.clear_cookies()
    save(page)
    sign_in(page, ada.email, WRONG)
    heard_once("E-mail or password is wrong.")
    sign_in(page, ada.email)
    expect(page.get_by_role("dialog")).to_have_count(1)
    ada.open(f"{ACCOUNT}/delete")
    page.get_by_label("Current password").fill(WRONG)
    page.get_by_role("button", name="Delete Account").click()
    heard_once("The current password is wrong.")
    ada.context.clear_cookies()
    ada.open("/sign-in")
    sign_in(page, ada.email, WRONG)
    heard_once("E-mail or password is wrong.")


def test_a_token_without_scopes_leads_to_the_first_of_them(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    for scope in ("keys:read", "keys:write"):
        page.get_by_label(scope).uncheck()
    page.keyboard.press("Enter")
    expect(page.get_by_label("keys:read")).to_be_focused()
    expect(page.get_by_label("keys:read")).to_have_accessible_description("Scopes must have at least one entry.")


def test_a_dialog_says_what_it_is_about_and_what_follows(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "first"}, {"name": "second"})
    ada.open(KEYS)
    expected = {
        "Delete": "OpenAI · second · sk-...1234 Applications can no longer get this key, from their next request on. "
        "You cannot undo this.",
        "Pause": "OpenAI · second · sk-...1234 Applications cannot get this key, from their next request on, until you "
        "resume it. Nothing is deleted.",
    }
    for action, words in expected.items():
        act(rows(page).first, action)
        expect(dialog(page)).to_have_accessible_description(words)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    for row in rows(page).all():
        row.get_by_role("checkbox").check()
    page.get_by_role("form", name="Selected keys").get_by_role("button", name="Delete").click()
    expect(dialog(page)).to_have_accessible_description(re.compile(r"second .* first .* You cannot undo this\.$"))


def test_each_row_of_a_table_has_the_name_of_what_it_is_about(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "first"}, {})
    plant_applications(dev_server.home, ada, {"name": f"mail-{ada.email}", "services": "OPENAI"})
    ada.open(f"{TOKENS}/new")
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create Token").click()
    device = re.compile("This session$")
    expected: dict[str, list[str | re.Pattern[str]]] = {
        KEYS: ["OpenAI sk-...1234", "OpenAI first sk-...1234"],
        TOKENS: ["laptop"],
        APPLICATIONS: [f"mail-{ada.email}"],
        ACTIVITY: ["Access token created", "Account created"],
        ACCOUNT: [device],
    }
    for path, names in expected.items():
        ada.open(path)
        expect(page.get_by_role("rowheader")).to_have_count(len(names))
        for row, name in zip(rows(page).all(), names, strict=True):
            expect(row.get_by_role("rowheader")).to_have_accessible_name(name)
            assert row.get_by_role("rowheader").evaluate("(each) => each.scope") == "row"
    ada.open(f"{KEYS}/several")
    page.get_by_label("Lines with keys").fill(f"OPENAI_API_KEY={OPENAI_KEY}")
    page.get_by_role("button", name="Show the keys").click()
    expect(page.get_by_role("rowheader")).to_have_accessible_name("OPENAI_API_KEY sk-...1234")


def _invalid(person: Person) -> list[str]:
    """The names of the fields that the browser says are invalid."""
    tree = person.context.new_cdp_session(person.page).send("Accessibility.getFullAXTree")
    return [
        node["name"]["value"]
        for node in tree["nodes"]
        for one in node.get("properties", [])
        if one["name"] == "invalid" and one["value"]["value"] != "false"
    ]


def test_no_field_is_invalid_before_somebody_tries_to_send_it(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    for path in (f"{KEYS}/new", f"{KEYS}/several", f"{TOKENS}/new", ACCOUNT, f"{ACCOUNT}/delete"):
        ada.open(path)
        assert _invalid(ada) == [], path
    ada.open(KEYS)
    press(page, "Add New Key")
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    assert _invalid(ada) == []
    page.get_by_label("API key", exact=True).fill(OPENAI_KEY.replace("sk-", ""))
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_label("Service", exact=True)).to_be_focused()
    assert _invalid(ada) == ["Service"]
    page.get_by_label("Service", exact=True).select_option(label="OpenAI")
    assert _invalid(ada) == []


def test_headings_begin_with_that_of_the_page_and_a_dialog_says_its_name_once(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    for path in SETTINGS:
        ada.open(path)
        levels = page.get_by_role("heading").evaluate_all("(all) => all.map((one) => Number(one.tagName[1]))")
        assert levels[0] == 1, path
        assert all(after - before <= 1 for before, after in pairwise(levels)), (path, levels)
    ada.open(KEYS)
    opened = press(page, "Add New Key")
    expect(opened).to_have_accessible_name("Add a Key")
    expect(opened.get_by_role("region")).to_have_count(0)
    ada.context.clear_cookies()
    fill(page, "OpenAI", OPENAI_KEY)
    page.get_by_role("button", name="Save").click()
    expect(dialog(page)).to_have_accessible_name("Sign in again")
    expect(dialog(page).get_by_role("region")).to_have_count(0)


def test_how_to_undo_is_said_with_what_was_done(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "chat"})
    for how in ("Undo: press u.", "Undo: use the button after this text."):
        ada.open(KEYS)
        act(rows(page).first, "Pause")
        dialog(page).get_by_role("button", name="Pause", exact=True).click()
        said = page.get_by_role("status")
        expect(said).to_have_text(f"OpenAI · chat is paused. Applications no longer get it. {how}")
        page.get_by_role("button", name="Undo").click()
        expect(said).to_have_text(f"OpenAI · chat is active again. {how}")
        page.get_by_role("button", name="Close").click()
        expect(said).to_have_text("")
        ada.open(ACCOUNT)
        page.get_by_label("Shortcuts on the keyboard").uncheck()
        page.get_by_label("Shortcuts on the keyboard").press("Enter")
        expect(said).to_have_text("Your choice is saved in this browser.")
    # From a page of its own, too.
    ada.open(KEYS)
    rows(page).first.get_by_role("link", name="chat").click()
    page.wait_for_url(re.compile(r"/\d+$"))
    page.goto(f"{page.url}/pause")
    page.get_by_role("main").get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_have_text(
        "OpenAI · chat is paused. Applications no longer get it. Undo: use the button after this text."
    )


def test_what_is_copied_is_said(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create Token").click()
    for name in ("laptop", "Try it"):
        dialog(page).get_by_role("button", name=f"Copy {name}", exact=True).click()
        expect(dialog(page).locator("[aria-live]").filter(has_text=f"Copied {name}")).to_have_count(1)


def test_what_a_browser_does_not_copy_is_selected_and_said(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))  # without the permission
    page = ada.page
    ada.open(TOKENS)
    press(page, "New Token")
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create Token").click()
    dialog(page).get_by_role("button", name="Copy laptop", exact=True).press("Enter")
    expect(dialog(page).get_by_label("laptop", exact=True)).to_be_focused()
    expect(dialog(page).locator("[aria-live]").filter(has_text="Not copied. It is selected")).to_have_count(1)


def test_several_keys_say_what_was_found_and_done(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    page.get_by_role("button", name="Add Several Keys").click()
    page.get_by_label("Lines with keys").fill(f"OPENAI_API_KEY={OPENAI_KEY}\nANTHROPIC_API_KEY={ANTHROPIC_KEY}")
    page.get_by_role("button", name="Show the keys").click()
    title = dialog(page).get_by_role("heading")
    expect(title).to_be_focused()
    expect(title).to_have_accessible_description("Keys found: 2. Choose which ones to store.")
    page.get_by_role("button", name="Store the chosen keys").click()
    expect(title).to_have_accessible_description("All of these keys are stored.")
    expect(title).to_be_focused()


def test_a_button_names_what_it_belongs_to(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    names = [f"{name}-{ada.email}" for name in ("mail", "chat")]
    plant_applications(dev_server.home, ada, *({"name": name, "services": "OPENAI"} for name in names))
    ada.open(APPLICATIONS)
    for name in names:
        expect(page.get_by_role("switch", name=f"Block for my keys {name}", exact=True)).to_have_count(1)
    ada.open(f"{TOKENS}/new")
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_role("button", name="Create Token").click()
    for name in ("laptop", "Try it"):
        expect(page.get_by_role("button", name=f"Copy {name}", exact=True)).to_have_count(1)
    ben = arrive(signed_up=False)
    ben.open("/sign-in")
    sign_in(ben.page, ada.email)
    ben.page.wait_for_url(f"**{KEYS}")
    ben.open(ACCOUNT)
    device = rows(ben.page).nth(1).locator(".label").inner_text()
    expect(ben.page.get_by_role("button", name=f"End {device}", exact=True)).to_have_count(1)


def test_a_preset_says_which_day_it_is(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(f"{KEYS}/new")
    page.get_by_role("button", name="90 days").click()
    day = page.get_by_label("Expires", exact=True).input_value()
    note = page.locator("[data-until]")
    expect(note).to_have_text(re.compile(rf"^The last day is [A-Z][a-z]+ {int(day[-2:])}, {day[:4]}\.$"))
    page.get_by_role("button", name="No end").click()
    expect(note).to_have_text("It has no end.")


def test_a_fault_about_the_service_is_gone_once_the_service_is_right(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    press(page, "Add New Key")
    fill(page, "OpenAI", ANTHROPIC_KEY)
    save(page)
    key = page.get_by_label("API key", exact=True)
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(key).to_have_accessible_description(re.compile("looks like a key of Anthropic"))
    page.get_by_role("button", name="Choose Anthropic").click()
    expect(key).to_be_focused()
    expect(key).not_to_have_attribute("aria-invalid", "true")
    expect(key).to_have_accessible_description("You enter it once. It is never shown again.")
    save(page)
    expect(rows(page)).to_contain_text("Anthropic")


def test_a_dialog_that_explains_is_read_out_before_its_first_button(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "chat"})
    ada.open(KEYS)
    act(rows(page).first, "Use it")
    expect(dialog(page)).to_have_accessible_description(
        re.compile(r"^OpenAI · chat · sk-\.\.\.1234 The gateway sends requests to OpenAI with your key")
    )
    page.keyboard.press("Escape")
    plant(dev_server.home, ada, {"name": "old", "expires_at": now() - timedelta(days=3)})
    ada.open(KEYS)
    act(rows(page).first, "Extend")
    expect(dialog(page)).to_have_accessible_description("This key has expired, so applications do not get it.")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keyboard Shortcuts").click()
    expect(dialog(page)).to_have_accessible_description(re.compile("Search or filter the list.*Close a dialog"))


def test_a_field_of_the_reference_says_what_it_means(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    ada.open("/docs#listKeys")
    form = ada.page.get_by_role("form", name="Try it: List the keys")
    for field in form.get_by_role("textbox").all():
        expect(field).to_have_accessible_description(re.compile(r"\w"))


def test_without_a_script_what_was_done_is_at_its_row_and_leads_to_undo(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    page = ada.page
    plant(dev_server.home, ada, {"name": "chat"}, {"name": "other"})
    ada.open(KEYS)
    act(rows(page).first, "Pause")
    page.get_by_role("main").get_by_role("button", name="Pause", exact=True).click()
    done = page.get_by_role("link", name="OpenAI · other is paused. Applications no longer get it.")
    expect(done).to_have_count(2)  # the first is for those who begin at the top
    expect(page.locator("tr:target")).to_contain_text("other")  # the keyboard begins there from now on
    page.keyboard.press("Tab")
    expect(rows(page).filter(has_text="other").get_by_role("link").first).to_be_focused()
    expect(done.last).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Undo")).to_be_focused()
    ada.open(KEYS)
    expect(done).to_have_count(0)
