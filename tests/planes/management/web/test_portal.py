"""The example of a product in Chromium: its button, the pages of keyman, and back; and how the pages look."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Error, Page

from tests.support.browser import PHONE, Arrive, DevServer, Person
from tests.support.cli import run_keyman
from tests.support.http import free_port
from tests.support.waiting import until

EXAMPLE = Path(__file__).parents[4] / "docs" / "examples" / "portal" / "app.py"
VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"


class Shop(NamedTuple):
    origin: str
    home: Path


@pytest.fixture(scope="module")
def shop(dev_server: DevServer) -> Iterator[Shop]:
    """The example as a process of its own, registered with `keyman app create`."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    options = ("--service", "OPENAI", "--portal", "--return-url", f"{origin}/", "--home", dev_server.home)
    token = run_keyman("app", "create", "shop", *options).out.strip()
    resolver = dev_server.origin.rpartition(":")[0] + f":{int(dev_server.origin.rpartition(':')[2]) + 1}"
    env = {**os.environ, "KEYMAN_RESOLVER_URL": resolver, "KEYMAN_APP_TOKEN": token, "PORT": str(port)}
    with subprocess.Popen([sys.executable, str(EXAMPLE)], env=env, stderr=subprocess.DEVNULL) as process:
        try:
            yield Shop(origin, dev_server.home)
        finally:
            process.terminate()


def come(arrive: Arrive, shop: Shop, **options: object) -> tuple[Person, Page]:
    """Somebody opens the page of the product."""
    person = arrive(signed_up=False, **options)
    until(lambda: is_there(person.page, shop.origin), "the example answers")
    return person, person.page


def is_there(page: Page, url: str) -> bool:
    try:
        page.goto(url)
    except Error:  # it does not listen yet
        return False
    return True


def test_the_example_leads_a_person_to_the_keys_and_back(arrive: Arrive, shop: Shop) -> None:
    person, page = come(arrive, shop)
    assert page.get_by_text("You have stored no key").is_visible()
    page.get_by_role("button", name="Manage your API keys").click()
    page.wait_for_url("**/portal/*")
    assert page.get_by_text("Ada Lovelace").is_visible()
    link = page.url
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/settings/api-keys")
    links = page.get_by_role("navigation", name="Settings").get_by_role("link")
    assert links.all_inner_texts() == ["API Keys", "Activity"]
    page.get_by_role("button", name="Add New Key").first.click()
    page.locator("#api_key").fill(VALUE)
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="sk-...1234").wait_for()
    page.go_back()
    page.goto(link)  # used
    assert page.get_by_role("heading", name="This link does not work").is_visible()
    page.goto(link.rpartition("/portal/")[0] + "/settings/activity")
    page.get_by_text("Signed in").first.wait_for()
    page.get_by_role("link", name="Back to shop").click()
    page.wait_for_url(f"{shop.origin}/")
    assert page.get_by_text("You have stored a key").is_visible()
    assert person.troubles("404", "Failed to load resource") == []


@pytest.mark.parametrize(
    "options",
    [{"locale": "de-DE"}, {"java_script_enabled": False}, {"viewport": PHONE, "color_scheme": "dark"}],
    ids=["german", "without scripts", "dark phone"],
)
def test_it_works_in_german_without_scripts_and_on_a_phone(
    arrive: Arrive, shop: Shop, tmp_path: Path, options: dict[str, object]
) -> None:
    _, page = come(arrive, shop, **options)
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    page.get_by_role("button", name="Manage your API keys").click()
    page.wait_for_url("**/portal/*")
    name = "-".join(map(str, options))
    page.screenshot(path=pictures / f"portal-{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
    page.get_by_role("button", name="Weiter" if "locale" in options else "Continue").click()
    page.wait_for_url("**/settings/api-keys")
    assert page.get_by_role("link", name="Zurück zu shop" if "locale" in options else "Back to shop").is_visible()
    page.screenshot(path=pictures / f"keys-{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
