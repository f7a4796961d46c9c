"""Settings → Access tokens: the last day of a new token."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.planes.management.web.moves import TOKENS, in_days, join, narrow_places, press
from tests.support.browser import PHONE, Arrive, Person


def until(person: Person) -> object:
    """The end of the newest token."""
    found: list[dict[str, Any]] = person.context.request.get(f"{person.origin}/api/tokens").json()
    return max(found, key=lambda token: token["id"])["expires_at"]


def create(page: Page, name: str) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Create Token").click()


def test_a_period_fills_in_the_last_day_of_a_token(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, viewport=PHONE))
    page = ada.page
    ada.open(TOKENS)
    opened = press(page, "New Token")
    day, periods = page.get_by_label("Expires", exact=True), opened.get_by_role("group", name="Valid for")
    for period, days in {"30 days": 30, "1 year": 365, "90 days": 90}.items():
        periods.get_by_role("button", name=period).click()
        expect(day).to_have_value(in_days(days))
    assert narrow_places(page) == []
    create(page, "laptop")
    expect(page.get_by_label("Try it")).to_be_visible()
    assert until(ada) == f"{in_days(90)}T23:59:59Z"
    assert ada.complaints == []


@pytest.mark.parametrize(("period", "days"), [("30 days", 30), ("1 year", 365), ("No end", None)])
def test_without_a_script_a_period_of_a_token_is_a_choice(arrive: Arrive, period: str, days: int | None) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    page = ada.page
    ada.open(f"{TOKENS}/new")
    expect(page.get_by_role("button", name="30 days")).to_be_hidden()
    page.get_by_label("Or valid for").select_option(label=period)
    create(page, "laptop")
    expect(page.get_by_label("Try it")).to_be_visible()
    assert until(ada) == (None if days is None else f"{in_days(days)}T23:59:59Z")


def test_a_day_and_a_period_of_a_token_are_refused_and_the_day_stays(arrive: Arrive) -> None:
    ada = join(arrive(signed_up=False, java_script_enabled=False))
    page = ada.page
    ada.open(f"{TOKENS}/new")
    page.get_by_label("Expires", exact=True).fill(in_days(5))
    page.get_by_label("Or valid for").select_option(label="30 days")
    create(page, "laptop")
    expect(page.get_by_text("Expires must be a day or a period, not both.")).to_be_visible()
    expect(page.get_by_label("Expires", exact=True)).to_have_value(in_days(5))
    expect(page.get_by_label("Name", exact=True)).to_have_value("laptop")
