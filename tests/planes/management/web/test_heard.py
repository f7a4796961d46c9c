"""What somebody hears who uses the pages with a screen reader and the keyboard, in a real browser."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.planes.management.web.moves import ACCOUNT, TOKENS, dialog, join, press, sign_in
from tests.support.browser import Arrive

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
    expect(dialog(page).get_by_role("alert")).to_have_text("E-mail or password is wrong.")
    expect(page.get_by_label("Password")).to_have_accessible_description("E-mail or password is wrong.")


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
