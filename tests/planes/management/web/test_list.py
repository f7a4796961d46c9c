"""The list of keys when there are many: filter, search, pages and the text of a row."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from playwright.sync_api import ViewportSize, expect

from keyman.clock import now
from keyman.providers.verdicts import DETAILS, Verdict
from tests.planes.management.web.moves import (
    KEYS,
    OPENAI_KEY,
    act,
    expect_labels,
    join,
    narrow_places,
    plant,
    press,
    rows,
    save,
    settled,
    texts,
)
from tests.providers.pastes import BODY
from tests.support.browser import PHONE, Arrive, DevServer

MANY = [{"service": ("OPENAI", "ANTHROPIC")[number % 2], "name": f"key {number:04}"} for number in range(1000)]
SOME = MANY[:120]


def test_up_to_ten_keys_are_seen_at_a_glance_and_with_more_they_can_be_searched(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *MANY[:10])
    ada.open(KEYS)
    expect(rows(page)).to_have_count(10)
    expect(page.get_by_role("search")).to_have_count(0)
    press(page, "Add New Key")
    page.get_by_label("Service", exact=True).select_option("GROQ")
    page.get_by_label("API key", exact=True).fill("gsk_hq2v9mXbT0c7eUKwN4Rd")
    save(page)
    expect(page.get_by_role("search")).to_be_visible()

    # Only the rows change, and the address follows.
    page.evaluate("window.stays = 'the same page'")
    page.get_by_label("Show service").select_option(label="Anthropic")
    expect(rows(page)).to_have_count(5)
    expect(page).to_have_url(re.compile(r"\?q=&service=ANTHROPIC&status=&check=&sort=$"))
    page.get_by_label("Search keys").press_sequentially("KEY 0003")
    expect(rows(page)).to_have_count(1)
    expect(page).to_have_url(re.compile(r"\?q=KEY(\+|%20)0003&service=ANTHROPIC&"))
    expect(page.get_by_label("Search keys")).to_be_focused()
    page.get_by_label("Search keys").fill("nothing like it")
    expect(page.get_by_role("heading", name="No matching keys")).to_be_visible()
    assert page.evaluate("window.stays") == "the same page"
    # What was searched for is searched for after a reload, too.
    page.get_by_label("Search keys").fill("key 0003")
    expect(rows(page)).to_have_count(1)
    page.reload()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_label("Show service")).to_have_value("ANTHROPIC")
    expect(page.get_by_label("Search keys")).to_have_value("key 0003")
    # A change leads back to where it was made from.
    press(page, "Edit", rows(page))
    page.get_by_label("Label", exact=True).fill("key 0003, changed")
    save(page)
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("key 0003, changed")
    expect(page.get_by_label("Search keys")).to_have_value("key 0003")
    opened = press(page, "Delete", rows(page))
    opened.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("link", name="Show all keys").click()
    expect(rows(page)).to_have_count(10)
    assert ada.complaints == []


def test_without_javascript_the_list_is_searched_by_a_plain_form(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    page = ada.page
    plant(dev_server.home, ada, *MANY[:12])
    ada.open(KEYS)
    page.get_by_label("Show service").select_option(label="OpenAI")
    page.get_by_label("Search keys").fill("0004")
    page.get_by_role("button", name="Search").click()
    expect_labels(page, ["key 0004"])
    expect(page).to_have_url(re.compile(r"\?q=0004&service=OPENAI&"))
    rows(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Label", exact=True).fill("0004 changed")
    save(page)
    expect_labels(page, ["0004 changed"])
    expect(rows(page)).to_have_class("fresh")


def test_hundreds_of_keys_are_read_page_by_page(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    plant(dev_server.home, ada, *SOME)
    ada.open(KEYS)
    seen = rows(page).locator(".label").all_inner_texts()
    expect(page.get_by_role("link", name="Newest")).to_have_count(0)
    while page.get_by_role("link", name="Older").count():
        page.get_by_role("link", name="Older").click()
        page.wait_for_load_state()
        expect(page.get_by_role("link", name="Newest")).to_be_visible()
        seen += rows(page).locator(".label").all_inner_texts()
    assert seen == [key["name"] for key in reversed(SOME)]
    page.get_by_role("link", name="Newest").click()
    expect(rows(page).first).to_contain_text("key 0119")
    # Pages within what is searched for.
    page.get_by_label("Show service").select_option(label="OpenAI")
    expect(rows(page).first).to_contain_text("key 0118")
    page.get_by_role("link", name="Older").click()
    expect(rows(page)).to_have_count(10)
    expect(page.get_by_label("Show service")).to_have_value("OPENAI")
    # In another order, pages are counted from its first one.
    page.get_by_label("Sort").select_option(label="Label from A to Z")
    expect(rows(page).first).to_contain_text("key 0000")
    page.get_by_role("link", name="Next page").click()
    expect(rows(page).first).to_contain_text("key 0100")
    page.get_by_role("link", name="First page").click()
    expect(page.get_by_text("50 of 60 keys")).to_be_visible()
    # And with a thousand it is the same list.
    plant(dev_server.home, ada, *MANY[120:])
    ada.open(KEYS)
    expect(rows(page)).to_have_count(50)
    expect(page.get_by_text("50 of 1,000 keys")).to_be_visible()
    expect(rows(page).first).to_contain_text("key 0999")
    page.get_by_label("Search keys").fill("key 0000")
    expect(rows(page)).to_have_count(1)
    assert ada.complaints == []


def test_keys_are_found_by_status_by_check_by_service_name_and_by_their_last_characters(
    arrive: Arrive, dev_server: DevServer
) -> None:
    ada = join(arrive(signed_up=False))
    page, checked = ada.page, {"checked_at": now(), "checked_by": "keyman", "check_detail": "x"}
    plant(
        dev_server.home,
        ada,
        *MANY[:8],
        {"name": "paused", "disabled": True, "last_used_at": now()},
        {"name": "refused", "check_verdict": "refused", **checked},
        {"name": "by its end", "service": "GROQ", "value": f"gsk_{BODY}Qx7z"},
    )
    ada.open(KEYS)
    for field, choice, found in (
        ("Show status", "Paused", ["paused"]),
        ("Show result of the check", "Refused", ["refused"]),
    ):
        page.get_by_label(field).select_option(label=choice)
        expect(rows(page)).to_have_count(len(found))
        expect_labels(page, found)
        page.get_by_label(field).select_option(index=0)
        expect(rows(page)).to_have_count(11)
    for text in ("qx7Z", "groq"):
        page.get_by_label("Search keys").fill(text)
        expect(rows(page)).to_have_count(1)
        expect_labels(page, ["by its end"])
    page.get_by_label("Search keys").fill("")
    expect(rows(page)).to_have_count(11)
    page.get_by_label("Sort").select_option(label="Last used first")
    expect(rows(page).first).to_contain_text("paused")
    # A change leads back to the same order and filters.
    page.get_by_label("Show status").select_option(label="Paused")
    expect(rows(page)).to_have_count(1)
    press(page, "Edit", rows(page))
    page.get_by_label("Label", exact=True).fill("paused, noted")
    save(page)
    expect_labels(page, ["paused, noted"])
    expect(page.get_by_label("Show status")).to_have_value("disabled")
    expect(page.get_by_label("Sort")).to_have_value("-used")
    assert ada.complaints == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_the_filters_of_a_phone_are_behind_one_button(
    arrive: Arrive, dev_server: DevServer, locale: str, scripts: bool
) -> None:
    narrow: ViewportSize = {"width": 320, "height": 640}
    ada = join(arrive(signed_up=False, locale=locale, viewport=narrow, java_script_enabled=scripts))
    page, form = ada.page, ada.page.get_by_role("search")
    plant(dev_server.home, ada, *MANY[:20], {"service": "REPLICATE", "name": "paused", "disabled": True})
    ada.open(KEYS)
    opens = form.get_by_role("button", name={"en-US": "Filter", "de-DE": "Filtern"}[locale], exact=True)
    box, colour = form.bounding_box(), "each => getComputedStyle(each).backgroundColor"
    assert box is not None
    assert box["height"] <= 48  # one line
    plain = opens.evaluate(colour)
    expect(form.get_by_role("combobox")).to_have_count(0)
    opens.press("Enter")
    expect(form.get_by_role("combobox")).to_have_count(4)
    assert narrow_places(page) == []
    page.locator("#filter-status").select_option("disabled")
    if not scripts:
        form.get_by_role("button", name={"en-US": "Search", "de-DE": "Suchen"}[locale], exact=True).click()
    expect(rows(page)).to_have_count(1)
    if scripts:
        form.get_by_role("button", name={"en-US": "Close", "de-DE": "Schließen"}[locale]).click()
        expect(opens).to_be_focused()
    expect(form.get_by_role("combobox")).to_have_count(0)
    assert opens.evaluate(colour) != plain
    assert ada.complaints == []


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_a_status_covers_no_name_of_a_service_on_the_narrowest_phone(
    arrive: Arrive, dev_server: DevServer, locale: str
) -> None:
    ada = join(arrive(signed_up=False, locale=locale, viewport={"width": 320, "height": 640}))
    broken, paused = {"undecryptable": True}, {"disabled": True}
    operators = {"service": "OF_AN_OPERATOR_WITH_A_LONG_NAME", "value": f"sk-{BODY}0000"}
    plant(
        dev_server.home,
        ada,
        *({"service": service, **state} for service in ("REPLICATE", "GOOGLE", "OPENAI") for state in (broken, paused)),
        {**operators, **broken, "last_used_at": now() - timedelta(days=59)},
    )
    for width in (320, 344, 360, 390):
        ada.page.set_viewport_size({"width": width, "height": 640})
        ada.open(KEYS)
        expect(rows(ada.page)).to_have_count(7)
        covered = ada.page.evaluate(
            """() => [...document.querySelectorAll("tbody tr")].filter((row) => {
              const [name, menu, status, used] = [".service > span", ".menu-button", ".badge", ".used > span"]
                .map((part) => row.querySelector(part).getBoundingClientRect());
              const meet = (one, other) => one.left < other.right && other.left < one.right
                && one.top < other.bottom && other.top < one.bottom;
              return meet(name, status) || meet(name, menu) || meet(used, status);
            }).map((row) => row.innerText)"""
        )
        assert covered == [], width
    ada.page.set_viewport_size({"width": 320, "height": 640})
    names = rows(ada.page).locator(".service > span:not([hidden])")
    cut = names.evaluate_all("(all) => all.map((each) => each.scrollWidth > each.clientWidth)")
    assert cut == [True, *[False] * 6]


def test_an_unreadable_key_and_an_expired_one_lead_to_what_mends_them(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page, gone = ada.page, now() - timedelta(days=2)
    broken, old, older = {"name": "broken", "undecryptable": True}, {"name": "old"}, {"name": "older"}
    plant(dev_server.home, ada, broken, {**old, "expires_at": gone}, {**older, "expires_at": gone})
    ada.open(KEYS)

    opened = press(page, "Replace key", rows(page).filter(has_text="broken"))
    expect(opened).to_have_accessible_name("Replace Key")
    expect(opened).to_contain_text("keyman can no longer open what it stored for this key")
    value = page.get_by_label("API key", exact=True)
    expect(value).to_be_focused()
    page.get_by_role("button", name="Save").click()
    assert value.evaluate("(each) => each.validity.valueMissing")
    value.fill(OPENAI_KEY)
    save(page)
    expect(rows(page).filter(has_text="broken")).to_contain_text("Active")

    opened = press(page, "Extend", rows(page).filter(has=page.get_by_text("old", exact=True)))
    expect(opened).to_have_accessible_name("Extend Key")
    expires = page.get_by_label("Expires", exact=True)
    expect(expires).to_be_focused()
    page.get_by_role("button", name="Save").click()
    assert not expires.evaluate("(each) => each.validity.valid")
    expires.fill(f"{now() + timedelta(days=30):%Y-%m-%d}")
    save(page)
    expect(rows(page).filter(has=page.get_by_text("old", exact=True))).to_contain_text("Active")

    press(page, "Replace key", rows(page).filter(has_text="older"))
    value.fill(OPENAI_KEY)
    save(page)
    expect(rows(page).filter(has_text="older")).to_contain_text("Active")
    assert ada.complaints == []


def test_an_address_that_makes_no_sense_shows_the_list(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    ada.store({"service": "OPENAI", "api_key": OPENAI_KEY})
    for each in ("?cursor=nonsense", "?service=nonsense", "?q=%00", "?saved=x&done=x", "?sort=x&status=x&check=x"):
        ada.open(f"{KEYS}{each}")
        expect(rows(ada.page)).to_have_count(1)


def test_a_row_says_what_became_of_its_key(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    page, moment = ada.page, now()
    plant(
        dev_server.home,
        ada,
        {"name": "plain", "created_at": moment - timedelta(days=3)},
        {"name": "used", "last_used_at": moment - timedelta(hours=5), "last_used_by": "chat-backend"},
        {"name": "ends soon", "expires_at": moment + timedelta(days=5, hours=2)},
        {"name": "ends late", "expires_at": moment + timedelta(days=200)},
        {"name": "ended", "expires_at": moment - timedelta(days=2), "created_at": moment - timedelta(days=9)},
        {"name": "paused", "disabled": True},
        {"name": "unreadable", "undecryptable": True},
        {"name": None},
        {"service": "OF_AN_OPERATOR", "name": "service gone"},
    )
    ada.open(KEYS)

    by_label = {cells[1]: cells for cells in texts(page)}
    assert by_label["plain"][3:6] == ["Active", "3 days ago", "never"]
    assert " ".join(by_label["used"][5].split()) == "5 hours ago by chat-backend"
    said = {label: " ".join(cells[6].split()) for label, cells in by_label.items()}
    actions = "Edit Pause Check now Use it Make default Delete"
    assert (by_label["ends soon"][3], said["ends soon"]) == ("Active", f"expires in 5 days {actions}")
    assert (by_label["ended"][3], said["ended"]) == (
        "Expired",
        "expired 2 days ago Extend Replace key Edit Check now Use it Delete",
    )
    assert (by_label["paused"][3], said["paused"]) == ("Paused", "Edit Resume Check now Use it Delete")
    assert (by_label["unreadable"][3], said["unreadable"]) == (
        "Unreadable",
        "Its value can no longer be opened, so applications do not get it. Replace key Edit Use it Delete",
    )
    # The newest active one of several. The only key of its service has no mark.
    assert said["–"] == "Applications get this key Edit Pause Check now Use it Delete"
    assert said["service gone"] == "Edit Pause Delete"
    assert by_label["service gone"][0].split()[-1] == "OF_AN_OPERATOR"
    soon = rows(page).filter(has_text="ends soon").locator(".expiry")
    late = rows(page).filter(has_text="ends late").locator(".expiry")
    expect(soon.locator("svg")).to_have_count(1)
    expect(late.locator("svg")).to_have_count(0)
    # The exact time on hover, in the reader's time zone.
    expect(rows(page).filter(has_text="plain").locator("time")).to_have_attribute("title", re.compile(r"20\d\d at .*:"))
    # A key of a service that is no more can still be edited and deleted.
    opened = press(page, "Edit", rows(page).filter(has_text="service gone"))
    expect(page.get_by_label("Service", exact=True).locator("option:checked")).to_have_text("OF_AN_OPERATOR")
    page.get_by_label("Label", exact=True).fill("service gone, kept")
    save(page)
    expect(opened).to_be_hidden()
    expect(rows(page).filter(has_text="service gone, kept")).to_be_visible()
    # An expired one keeps its day when only its label changes.
    press(page, "Edit", rows(page).filter(has_text="ended"))
    expect(page.get_by_label("Expires", exact=True)).to_have_value(f"{moment - timedelta(days=2):%Y-%m-%d}")
    page.get_by_label("Label", exact=True).fill("ended, noted")
    save(page)
    expect(rows(page).filter(has_text="ended, noted")).to_contain_text("Expired")
    assert ada.complaints == []


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_a_card_on_a_phone_is_at_most_120_pixels_high_whatever_it_says(
    arrive: Arrive, dev_server: DevServer, locale: str
) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, has_touch=True, is_mobile=True, locale=locale))
    page, moment = ada.page, now()
    judged = {
        "checked_at": moment - timedelta(days=40),
        "checked_by": "keyman",
        "check_detail": DETAILS[Verdict.REFUSED],
    }
    long = {"name": "a label of many words " * 4, "last_used_at": moment - timedelta(days=400)}
    everything = {**long, "last_used_by": "a" * 64, "expires_at": moment + timedelta(days=3)}
    plant(
        dev_server.home,
        ada,
        *[{"name": f"key {number}"} for number in range(40)],
        *[{**everything, "check_verdict": verdict, **judged} for verdict in Verdict],
        {**everything, "service": "AWS_BEDROCK", "value": f"bedrock-api-key-{BODY}AbCd", "is_default": True},
        {**everything, "service": "AZURE_OPENAI", "undecryptable": True, "settings": '{"endpoint":"https://x.y"}'},
        {**everything, "service": "OF_AN_OPERATOR_WITH_A_LONG_NAME", "expires_at": moment - timedelta(days=300)},
    )
    ada.open(KEYS)
    settled(page)
    heights = page.evaluate(
        "[...document.querySelectorAll('tbody tr')].map((row) => row.getBoundingClientRect().height)"
    )
    assert len(heights) == 50
    assert max(heights) <= 120, heights
    assert page.evaluate("document.documentElement.scrollHeight") < 50 * 128 + 700
    assert narrow_places(page) == []
    cut = """(all) => all.filter((each) => {
      const [own, line] = [each, each.closest(".notes")].map((one) => one.getBoundingClientRect());
      return !own.width || own.right > line.right || own.bottom > line.bottom + 1;
    }).map((each) => each.textContent)"""
    whole = page.locator(".notes :is(.brief, .expiry, .reason:not(.long))")  # what is wrong, or will be
    assert whole.count() == len(Verdict) * 2 + 3
    assert whole.evaluate_all(cut) == []
    sides = "(all) => all.map((each) => Math.min(each.offsetHeight, each.offsetWidth))"
    assert min(page.locator(".menu-button").evaluate_all(sides)) >= 44


def test_the_menu_of_a_card_opens_and_closes_and_leads_back(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    page = ada.page
    plant(dev_server.home, ada, {"name": "Chat"})
    ada.open(KEYS)
    menu = page.get_by_role("button", name="Actions OpenAI Chat sk-...1234")
    edit = page.get_by_role("button", name="Edit OpenAI Chat sk-...1234")
    expect(edit).to_be_hidden()
    menu.click()
    expect(edit).to_be_in_viewport(ratio=1)
    page.keyboard.press("Escape")
    expect(edit).to_be_hidden()
    expect(menu).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(edit).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Label", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(edit).to_be_hidden()
    expect(menu).to_be_focused()
    assert ada.complaints == []


def test_without_javascript_the_menu_opens_too(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE, java_script_enabled=False))
    plant(dev_server.home, ada, {"name": "Chat"})
    ada.open(KEYS)
    act(rows(ada.page), "Edit")
    expect(ada.page.get_by_label("Label", exact=True)).to_have_value("Chat")


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_times_take_one_line_labels_two_and_a_wide_screen_is_used(
    arrive: Arrive, dev_server: DevServer, locale: str
) -> None:
    ada = join(arrive(signed_up=False, locale=locale))
    page, moment = ada.page, now()
    ages = [timedelta(days=40), timedelta(minutes=59), timedelta(days=360), timedelta(seconds=1)]
    plant(
        dev_server.home,
        ada,
        *({"name": "word " * 20, "created_at": moment - age, "last_used_at": moment - age} for age in ages),
    )
    ada.open(KEYS)
    for width in (1024, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        lines = "(each) => [...each].map((one) => one.offsetHeight / parseFloat(getComputedStyle(one).lineHeight))"
        assert max(page.locator(".when time").evaluate_all(lines)) <= 1.1, width
        assert max(page.locator(".label a").evaluate_all(lines)) <= 2.25, width  # with the padding
        # The table goes to the edge, and what its other columns do not need is the label's.
        right = page.locator("table.keys").evaluate("(each) => each.getBoundingClientRect().right")
        assert width - right <= 32, width
        widths = page.locator("tbody tr:first-child > :not(.below)").evaluate_all(
            "(all) => all.map((one) => one.offsetWidth)"
        )
        assert widths[1] == max(widths), (width, widths)


LONG_NOTE = """() => {
  const note = document.querySelector(".notes").appendChild(document.createElement("a"));
  note.href = "#";
  note.textContent = "Left through " + "w".repeat(64);
  const [own, around] = [note, note.parentElement].map((each) => each.getBoundingClientRect().right);
  return [getComputedStyle(note).textOverflow, own <= around, note.scrollWidth > note.clientWidth];
}"""


def test_a_long_note_on_a_phone_ends_with_an_ellipsis(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    plant(dev_server.home, ada, {"name": "chat"})
    ada.open(KEYS)
    assert ada.page.evaluate(LONG_NOTE) == ["ellipsis", True, True]
