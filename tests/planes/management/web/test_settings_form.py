"""The settings of a key in the form, and what people paste into it, in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from keyman.providers.pasted import bare
from tests.planes.management.web.moves import (
    KEYS,
    REFUSED,
    dialog,
    fill,
    join,
    keys_of,
    narrow_places,
    press,
    rows,
    save,
)
from tests.providers.pastes import ACCOUNT, BODY, CLAUDE, PASTES, PROJECT, SPACE, Paste
from tests.providers.test_pasted import message_for
from tests.support.browser import PHONE, Arrive, Person
from tests.support.needs import quick

ENDPOINT = "https://my-resource.openai.azure.com"


@pytest.fixture(scope="module")
def module_session() -> list[str]:
    """The session of an account for the module, as sign-ups are slow on purpose, and limited."""
    return []


@pytest.fixture
def keeper(arrive: Arrive, module_session: list[str]) -> Person:
    person = arrive(signed_up=False)
    if module_session:
        person.context.add_cookies([{"name": "keyman_session", "value": module_session[0], "url": person.origin}])
    else:
        join(person)
        module_session += [one["value"] for one in person.context.cookies() if one["name"] == "keyman_session"]
    person.open(KEYS)
    return person


def add(page: Page) -> None:
    page.get_by_role("main").get_by_role("button", name="Add New Key").first.click()
    dialog(page).get_by_role("heading").wait_for()


def paste(page: Page, text: str) -> None:
    """Paste into the field of the key, as the browser does it."""
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    page.get_by_label("API key", exact=True).press("Control+V")


def test_the_settings_of_the_chosen_service_appear_and_are_stored(keeper: Person) -> None:
    page = keeper.page
    add(page)
    for label in ("Endpoint", "API version", "Region", "Project", "Location"):
        expect(page.get_by_label(label, exact=True)).to_be_hidden()
    fill(page, service="Amazon Bedrock")
    expect(page.get_by_label("Region", exact=True)).to_be_visible()
    fill(page, service="Azure OpenAI", key=BODY)
    expect(page.get_by_label("Region", exact=True)).to_be_hidden()
    page.get_by_label("Endpoint", exact=True).fill("https://evil.example.com")
    save(page)
    endpoint = page.get_by_label("Endpoint", exact=True)
    expect(endpoint).to_have_attribute("aria-invalid", "true")
    expect(dialog(page).get_by_text("Endpoint must be https:// and the host of your resource")).to_be_visible()
    fill(page, key=BODY)
    endpoint.fill(ENDPOINT)
    save(page)
    expect(rows(page).first).to_contain_text(ENDPOINT)
    assert keys_of(keeper)[0]["settings"] == {"endpoint": ENDPOINT}
    assert keeper.troubles(REFUSED) == []


def test_where_a_key_is_sent_changes_only_with_the_key(keeper: Person) -> None:
    keeper.store({"service": "AZURE_OPENAI", "api_key": BODY, "settings": {"endpoint": ENDPOINT}})
    page = keeper.page
    keeper.open(KEYS)
    press(page, "Edit", rows(page).first)
    endpoint = page.get_by_label("Endpoint", exact=True)
    expect(endpoint).to_have_value(ENDPOINT)
    other = ENDPOINT.replace("my-", "other-")
    endpoint.fill(other)
    save(page)
    expect(dialog(page).get_by_text("Endpoint decides where the key is sent")).to_be_visible()
    fill(page, key=BODY)
    save(page)
    expect(rows(page).first).to_contain_text(other)
    assert keys_of(keeper)[0]["settings"] == {"endpoint": other}


def _mistake(one: Paste) -> str | None:
    """What the form says. It corrects some mistakes by itself."""
    return message_for(one._replace(text=bare(one.text)))


# The field has one line: a paste of several leads to the page for several keys. The browser itself refuses short ones.
_MISTAKES = [
    one for one in PASTES if one.service == "OPENAI" and re.fullmatch("[ -~]{8,}", one.text) and _mistake(one)
][::9]


@pytest.mark.parametrize("one", quick(_MISTAKES[:2], _MISTAKES[2:]))
def test_a_mistake_is_named_beside_the_field(keeper: Person, one: Paste) -> None:
    page = keeper.page
    add(page)
    fill(page, service="OpenAI", key=one.text)
    save(page)
    expect(dialog(page).get_by_text(f"API key {_mistake(one)}.")).to_be_visible()
    assert BODY not in page.content()


def test_two_keys_on_two_lines_are_not_joined_to_one(keeper: Person) -> None:
    keeper.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = keeper.page
    keeper.store({"service": "OPENAI", "api_key": PROJECT})
    page.reload()
    press(page, "Edit", rows(page).first)
    paste(page, f"{PROJECT}\n{CLAUDE}\n")
    expect(page.get_by_label("API key", exact=True)).to_have_value(f"{PROJECT} {CLAUDE}")
    save(page)
    expect(dialog(page).get_by_text(f"API key {SPACE}.")).to_be_visible()


def test_a_service_account_file_of_many_lines_can_be_pasted(keeper: Person) -> None:
    keeper.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = keeper.page
    add(page)
    fill(page, service="Google Vertex AI")
    paste(page, ACCOUNT)
    page.get_by_label("Project", exact=True).fill("my-project-123")
    save(page)
    expect(rows(page).first).to_contain_text("...cdef")
    assert keys_of(keeper)[0]["settings"] == {"project": "my-project-123"}
    assert keeper.troubles() == []


def test_the_form_with_settings_fits_a_phone(arrive: Arrive, module_session: list[str], keeper: Person) -> None:
    phone = arrive(signed_up=False, viewport=PHONE)
    phone.context.add_cookies([{"name": "keyman_session", "value": module_session[0], "url": keeper.origin}])
    phone.open(KEYS)
    add(phone.page)
    for service in ("Azure OpenAI", "Amazon Bedrock", "Google Vertex AI"):
        fill(phone.page, service=service)
        assert narrow_places(phone.page) == []
