"""Adding a key takes one paste: what the form recognises, removes, asks and keeps, with and without JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect

from keyman.clock import now
from tests.planes.management.web.moves import (
    ANTHROPIC_KEY,
    KEYS,
    OPENAI_KEY,
    OPENAI_MASK,
    dialog,
    fill,
    in_days,
    join,
    keys_of,
    press,
    rows,
    save,
    sign_in,
)
from tests.support.browser import Arrive, Person

PASTE = """([text]) => {
  const data = new DataTransfer();
  data.setData("text/plain", text);
  const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
  if (document.activeElement.dispatchEvent(event)) document.execCommand("insertText", false, text);
}"""
"""Paste into the field that has the focus, as a browser does."""

PEELED = "Only the key itself is kept."


@pytest.fixture
def adder(arrive: Arrive) -> Iterator[Person]:
    person = join(arrive(signed_up=False))
    person.open(KEYS)
    yield person
    assert person.troubles("Failed to load resource") == []


def paste(page: Page, text: str) -> None:
    page.evaluate(PASTE, [text])


def test_one_paste_and_one_button_store_a_key(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    key, service = page.get_by_label("API key", exact=True), page.get_by_label("Service", exact=True)
    expect(key).to_be_focused()
    paste(page, f"{ANTHROPIC_KEY}\n")
    expect(service).to_have_value("ANTHROPIC")
    expect(opened.get_by_text("Anthropic, recognised.")).to_be_visible()
    page.keyboard.press("Enter")
    expect(rows(page)).to_contain_text("Anthropic")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_service_that_was_chosen_by_hand_stays(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    key, service = page.get_by_label("API key", exact=True), page.get_by_label("Service", exact=True)
    key.fill(ANTHROPIC_KEY)
    expect(service).to_have_value("ANTHROPIC")
    key.fill("gsk_hq2v9mXbT0c7eUKw")
    expect(service).to_have_value("GROQ")
    service.select_option("DEEPSEEK")
    expect(opened.get_by_text("recognised")).to_be_hidden()
    key.fill(ANTHROPIC_KEY)
    expect(service).to_have_value("DEEPSEEK")
    expect(opened.get_by_text("This looks like a key of Anthropic.")).to_be_visible()


@pytest.mark.parametrize(
    ("text", "key", "service"),
    [
        (f'export ANTHROPIC_API_KEY="{ANTHROPIC_KEY}"', ANTHROPIC_KEY, "ANTHROPIC"),
        (f"Authorization: Bearer {ANTHROPIC_KEY}", ANTHROPIC_KEY, "ANTHROPIC"),
        (f"Bearer {OPENAI_KEY}", OPENAI_KEY, ""),
        (f"\u201c{OPENAI_KEY}\u201d,", OPENAI_KEY, ""),
        ("MISTRAL_API_KEY = hq2v9mXbT0c7eUKwN4Rd", "hq2v9mXbT0c7eUKwN4Rd", "MISTRAL"),
        ("AZURE_OPENAI_API_KEY=hq2v9mXbT0c7eUKw", "hq2v9mXbT0c7eUKw", "AZURE_OPENAI"),
        (f'"openai_api_key": "{OPENAI_KEY}",', OPENAI_KEY, "OPENAI"),
        ("https://example.com/keys", "https://example.com/keys", ""),
        (f"{OPENAI_KEY}: production-chat", f"{OPENAI_KEY}: production-chat", ""),
    ],
)
def test_what_is_pasted_around_a_key_is_removed_and_said(adder: Person, text: str, key: str, service: str) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    paste(page, text)
    expect(page.get_by_label("API key", exact=True)).to_have_value(key)
    expect(page.get_by_label("Service", exact=True)).to_have_value(service)
    expect(opened.get_by_text(PEELED)).to_be_visible(visible=text != key)
    paste(page, key)
    expect(opened.get_by_text(PEELED)).to_be_hidden()


def test_a_key_that_begins_in_another_way_is_asked_about_once(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", "hq2v9mXbT0c7eUKwN4Rd1234", "odd")
    save(page)
    key = page.get_by_label("API key", exact=True)
    expect(opened.locator("#api_key-question")).to_have_text("OpenAI keys begin with sk-. Store it anyway?")
    expect(key).to_be_focused()
    expect(key).to_have_value("hq2v9mXbT0c7eUKwN4Rd1234")
    expect(key).not_to_have_attribute("aria-invalid", "true")
    expect(opened.get_by_text("Paste the key again.")).to_be_hidden()
    assert keys_of(adder) == []
    opened.get_by_role("button", name="Store anyway").click()
    expect(rows(page)).to_contain_text("odd")
    opened = press(page, "Edit", rows(page))
    fill(page, key="another0hq2v9mXbT0c7")
    save(page)
    expect(opened.locator("#api_key-question")).to_have_text("OpenAI keys begin with sk-. Store it anyway?")
    page.keyboard.press("Enter")
    expect(rows(page)).to_contain_text("...T0c7")


def test_what_was_said_of_a_key_is_gone_when_another_one_is_pasted(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    key, mask = page.get_by_label("API key", exact=True), opened.get_by_text("API key is a mask")
    fill(page, "OpenAI", "sk-...AbCd")
    save(page)
    expect(mask).to_be_visible()
    key.select_text()
    paste(page, "hq2v9mXbT0c7eUKwN4Rd1234")
    expect(mask).to_have_count(0)
    expect(key).not_to_have_attribute("aria-invalid", "true")
    save(page)
    question = opened.get_by_text("OpenAI keys begin with sk-. Store it anyway?")
    expect(question).to_be_visible()
    key.select_text()
    paste(page, "another0hq2v9mXbT0c7")
    expect(question).to_have_count(0)
    save(page)  # what was answered was about the first key only
    expect(question).to_be_visible()
    assert keys_of(adder) == []
    key.fill("")
    expect(question).to_have_count(0)
    fill(page, key=OPENAI_KEY)
    save(page)
    expect(rows(page)).to_contain_text(OPENAI_MASK)


def test_the_value_stays_when_something_else_is_refused(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY, f"has {OPENAI_KEY}")
    save(page)
    expect(opened.get_by_text("Label must not contain the key itself")).to_be_visible()
    expect(page.get_by_label("API key", exact=True)).to_have_value(OPENAI_KEY)
    expect(page.get_by_label("Label", exact=True)).to_be_focused()
    fill(page, label="fine")
    save(page)
    expect(rows(page)).to_contain_text("fine")


def test_each_service_says_where_its_keys_are_found(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    where = opened.get_by_role("link", name="Where do I find my key?")
    expect(where).to_be_hidden()
    fill(page, "OpenAI")
    expect(where).to_have_attribute("href", "https://platform.openai.com/api-keys")
    fill(page, "Groq")
    expect(where).to_have_attribute("href", "https://console.groq.com/keys")
    expect(where).to_have_attribute("rel", "noreferrer")


def test_a_period_fills_in_the_last_day(adder: Person) -> None:
    page = adder.page
    opened = press(page, "Add New Key")
    day = page.get_by_label("Expires", exact=True)
    for period, days in {"30 days": 30, "90 days": 90, "1 year": 365}.items():
        opened.get_by_role("group", name="Valid for").get_by_role("button", name=period).click()
        expect(day).to_have_value(f"{now() + timedelta(days=days):%Y-%m-%d}")
    fill(page, "OpenAI", OPENAI_KEY)
    save(page)
    assert keys_of(adder)[0]["expires_at"] == f"{now() + timedelta(days=365):%Y-%m-%d}T23:59:59Z"
    opened = press(page, "Edit", rows(page))
    opened.get_by_role("button", name="No end").click()
    save(page)
    expect(page.get_by_role("status")).to_have_text("OpenAI · sk-...1234 is changed.")
    assert keys_of(adder)[0]["expires_at"] is None


# --- without JavaScript


@pytest.fixture
def plain_adder(arrive: Arrive) -> Iterator[Person]:
    person = join(arrive(signed_up=False, java_script_enabled=False))
    person.open(f"{KEYS}/new")
    yield person
    assert person.troubles("Failed to load resource") == []


def test_without_a_script_the_form_asks_for_the_key_again_and_asks_about_it_once(plain_adder: Person) -> None:
    page = plain_adder.page
    key, again = page.get_by_label("API key", exact=True), page.get_by_text("Paste the key again.")
    expect(again).to_be_hidden()
    fill(page, "OpenAI", "hq2v9mXbT0c7eUKwN4Rd1234", "typed")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("OpenAI keys begin with sk-. Store it anyway?")).to_be_visible()
    expect(again).to_be_visible()
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(key).to_be_focused()
    expect(key).to_have_value("")
    expect(page.get_by_label("Label", exact=True)).to_have_value("typed")
    key.fill("hq2v9mXbT0c7eUKwN4Rd1234")
    page.get_by_role("button", name="Store anyway").click()
    expect(page.get_by_role("status")).to_have_text("OpenAI · typed is stored.")
    assert [each["name"] for each in keys_of(plain_adder)] == ["typed"]


def test_without_a_script_a_key_is_taken_out_of_what_is_around_it(plain_adder: Person) -> None:
    page = plain_adder.page
    expect(page.get_by_role("button", name="30 days")).to_be_hidden()
    page.get_by_text("Where do I find my key?").locator("visible=true").click()
    expect(page.get_by_role("link", name="Groq")).to_have_attribute("href", "https://console.groq.com/keys")
    fill(page, "OpenAI", f'export OPENAI_API_KEY="{OPENAI_KEY}"')
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text(f"OpenAI · sk-...1234 is stored. {PEELED}")
    assert keys_of(plain_adder)[0]["last_4_chars"] == "sk-...1234"


def test_without_a_script_a_period_is_a_choice(plain_adder: Person) -> None:
    page = plain_adder.page
    day, period = page.get_by_label("Expires", exact=True), page.get_by_label("Or valid for")

    def until() -> str | None:
        expect(page.get_by_role("status")).to_contain_text("OpenAI · sk-...1234 is")
        until: str | None = keys_of(plain_adder)[0]["expires_at"]
        return until

    period.select_option(label="90 days")
    fill(page, "OpenAI", OPENAI_KEY)
    page.get_by_role("button", name="Save").click()
    assert until() == f"{in_days(90)}T23:59:59Z"
    for choice, expected in (("1 year", f"{in_days(365)}T23:59:59Z"), ("No end", None)):
        plain_adder.open(f"{KEYS}/{keys_of(plain_adder)[0]['id']}/edit")
        period.select_option(label=choice)
        page.get_by_role("button", name="Save").click()
        assert until() == expected
    plain_adder.open(f"{KEYS}/{keys_of(plain_adder)[0]['id']}/edit")
    period.select_option(label="30 days")
    day.fill(in_days(5))
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Expires must be a day or a period, not both.")).to_be_visible()
    expect(day).to_have_value(in_days(5))
    page.get_by_role("button", name="Save").click()
    assert until() == f"{in_days(5)}T23:59:59Z"


def test_with_a_script_the_periods_are_buttons_only(adder: Person) -> None:
    adder.open(f"{KEYS}/new")
    expect(adder.page.get_by_role("button", name="90 days")).to_be_visible()
    expect(adder.page.get_by_label("Or valid for")).to_be_hidden()


def test_without_a_script_an_ended_session_leads_back_to_the_field_that_is_empty(plain_adder: Person) -> None:
    page = plain_adder.page
    fill(page, "OpenAI", OPENAI_KEY)
    plain_adder.context.clear_cookies()
    page.get_by_role("button", name="Save").click()
    sign_in(page, plain_adder.email)
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    expect(page.get_by_text("Paste the key again.")).to_be_visible()
    assert keys_of(plain_adder) == []


def test_after_a_sign_in_over_the_form_the_key_has_to_be_pasted_again(adder: Person) -> None:
    page = adder.page
    press(page, "Add New Key")
    fill(page, "OpenAI", OPENAI_KEY)
    adder.context.clear_cookies()
    save(page)
    sign_in(page, adder.email)
    key = page.get_by_label("API key", exact=True)
    expect(key).to_be_focused()
    expect(key).to_have_value("")
    expect(dialog(page).get_by_text("Paste the key again.")).to_be_visible()
    expect(key).to_have_accessible_description("You enter it once. It is never shown again. Paste the key again.")
