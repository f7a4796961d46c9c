"""The page to sign in: what it says after signing out, and passwords that can be shown."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.planes.management.web.moves import ACCOUNT, KEYS, join
from tests.support.browser import PHONE, Arrive
from tests.support.planes import PASSWORD

FIELDS = {
    "/sign-in": ("Password",),
    "/sign-up": ("Password",),
    ACCOUNT: ("Current password", "New password"),
    f"{ACCOUNT}/delete": ("Current password",),
}


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize(("locale", "words"), [("en-US", "You are signed out."), ("de-DE", "sind abgemeldet.")])
def test_a_page_says_once_that_somebody_has_signed_out(arrive: Arrive, locale: str, words: str, scripts: bool) -> None:
    ada = join(arrive(signed_up=False, locale=locale, java_script_enabled=scripts))
    page = ada.page
    ada.open(KEYS)
    page.get_by_role("banner").get_by_role("button").click()
    expect(page).to_have_url(f"{ada.origin}/sign-in")
    expect(page.get_by_text(words)).to_be_visible()
    field = page.locator("#email")
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description(re.compile(re.escape(words)))  # so that a screen reader says it
    page.reload()
    expect(page.locator("#email")).to_be_visible()
    expect(page.get_by_text(words)).to_have_count(0)


def test_a_sign_in_that_is_refused_does_not_say_it_again(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    page = ada.page
    ada.open(KEYS)
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Email").fill(ada.email)
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("E-mail or password is wrong.")).to_be_visible()
    expect(page.get_by_text("You are signed out.")).to_have_count(0)


@pytest.mark.parametrize("path", FIELDS)
def test_a_password_can_be_shown_and_is_hidden_again_before_it_is_sent(arrive: Arrive, path: str) -> None:
    ada = arrive(signed_up=False, viewport=PHONE)
    page = ada.page
    if path.startswith(ACCOUNT):
        join(ada)
    ada.open(path)
    for label in FIELDS[path]:
        field, button = page.get_by_label(label, exact=True), page.get_by_role("button", name=f"the {label.lower()}")
        field.fill("not the password")
        expect(button).to_have_accessible_name(f"Show the {label.lower()}")
        button.click()
        expect(field).to_have_attribute("type", "text")
        expect(button).to_have_accessible_name(f"Hide the {label.lower()}")
        button.click()
        expect(field).to_have_attribute("type", "password")
        button.click()
    if not path.startswith(ACCOUNT):
        page.get_by_label("Email").fill(ada.email)
    page.evaluate("addEventListener('submit', (event) => event.preventDefault())")
    page.locator("#content form:has([data-reveal]) button:not([data-reveal])").first.click()
    for label in FIELDS[path]:
        expect(page.get_by_label(label, exact=True)).to_have_attribute("type", "password")
    assert ada.complaints == []


@pytest.mark.parametrize("path", FIELDS)
def test_without_a_script_there_is_no_button_that_does_nothing(arrive: Arrive, path: str) -> None:
    ada = arrive(signed_up=False, java_script_enabled=False)
    if path.startswith(ACCOUNT):
        join(ada)
    ada.open(path)
    expect(ada.page.get_by_label(FIELDS[path][0], exact=True)).to_be_visible()
    expect(ada.page.get_by_role("button", name="Show")).to_have_count(0)


def test_somebody_signs_in_with_a_password_that_they_look_at(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False))
    ada.context.clear_cookies()
    page = ada.page
    ada.open("/sign-in")
    page.get_by_label("Email").fill(ada.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Show the password").click()
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{ada.origin}{KEYS}")
