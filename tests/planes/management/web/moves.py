"""What people do on the pages: the steps of the page tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from playwright.sync_api import Locator, Page, Route, expect
from sqlalchemy import create_engine, func, insert, select

from keyman.audit.entries import Action
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.identity.tables import application_identities, applications, users
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import Catalogue
from tests.support.browser import Person, ready
from tests.support.planes import PASSWORD
from tests.support.rows import entry, row
from tests.support.waiting import until

KEYS = "/settings/api-keys"
TOKENS = "/settings/access-tokens"
ACTIVITY = "/settings/activity"
ACCOUNT = "/settings/account"
APPLICATIONS = "/settings/applications"
SETTINGS = (KEYS, APPLICATIONS, TOKENS, ACTIVITY, ACCOUNT)

OPENAI_KEY = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
OPENAI_MASK = "sk-...1234"
ANTHROPIC_KEY = "sk-ant-api03-hq2v9mXbT0c7eUKwN4Rd5678"
ANTHROPIC_MASK = "sk-ant-...5678"

UNDER_WAY = ".htmx-request, .htmx-swapping, .htmx-added"
"""What a request is under way for, and what is new and not yet known to the scripts of the page."""

REFUSED = "Failed to load resource"
"""What Chromium says on its console of each answer of 400 and more."""


def join(person: Person) -> Person:
    """Sign up by the API, with the cookie in the browser: for tests that are not about the form."""
    body = {"email": person.email, "password": PASSWORD}
    answer = person.context.request.post(f"{person.origin}/api/auth/signup", data=body)
    assert answer.status == 201, answer.text()
    return person


def sign_in(page: Page, email: str, password: str = PASSWORD) -> None:
    """Fill in the form for signing in, and send it."""
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def keys_of(person: Person) -> list[dict[str, Any]]:
    """What the API lists."""
    answer = person.context.request.get(f"{person.origin}/api/keys?limit=200")
    assert answer.status == 200, answer.text()
    keys: list[dict[str, Any]] = answer.json()
    return keys


def rows(page: Page) -> Locator:
    """The rows of the list without its head."""
    return page.locator("#content tbody").get_by_role("row")


def dialog(page: Page) -> Locator:
    """The dialog on top."""
    return page.get_by_role("dialog").last


def press(page: Page, name: str, row: Locator | None = None) -> Locator:
    """Press a button that opens a dialog, and wait until it is open. Those of a row have the name of its key, too."""
    ready(page)
    if row is None:
        page.get_by_role("main").get_by_role("button", name=name, exact=True).click()
    else:
        act(row, name)
    opened = dialog(page)
    opened.get_by_role("heading").wait_for()
    return opened


def act(row: Locator, name: str) -> None:
    """Press a button of a row. On a narrow page, it is in the menu."""
    row.wait_for()
    menu = row.get_by_role("button", name="Actions")
    if menu.is_visible():
        menu.click()
    row.get_by_role("button", name=re.compile(f"^{name} ")).click()


def fill(
    page: Page, service: str | None = None, key: str | None = None, label: str | None = None, expires: str | None = None
) -> None:
    """Type into the form for a key, found by the names that people read."""
    if service is not None:
        page.get_by_label("Service", exact=True).select_option(label=service)
    if key is not None:
        page.get_by_label("API key", exact=True).fill(key)
    if label is not None:
        page.get_by_label("Label", exact=True).fill(label)
    if expires is not None:
        page.get_by_label("Expires", exact=True).fill(expires)


def save(page: Page) -> None:
    """Press Save, and wait for the result."""
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(UNDER_WAY)).to_have_count(0)


def escape_when(page: Page, shown: str) -> None:
    """Let Esc be pressed as soon as the dialog has what fits the selector `shown`, before anything else happens."""
    page.evaluate(
        """(shown) => new MutationObserver((_, observer) => {
          if (!document.querySelector(`#dialog ${shown}`)) return;
          observer.disconnect();
          document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true, cancelable: true}));
        }).observe(document.getElementById("dialog"), {childList: true, subtree: true})""",
        shown,
    )


def discard(page: Page) -> None:
    """Leave a dialog in which something was typed."""
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Discard", exact=True).click()


def expect_labels(page: Page, expected: list[str]) -> None:
    """Wait until the rows of the list have these labels."""
    expect(rows(page).locator(".label")).to_have_text(expected, use_inner_text=True)


def texts(page: Page) -> list[list[str]]:
    """What stands in each cell of each row."""
    return [row.locator("> :is(td, th)").all_inner_texts() for row in rows(page).all()]


def in_days(days: int) -> str:
    """A date as a date field takes it."""
    return f"{now() + timedelta(days=days):%Y-%m-%d}"


def settled(page: Page) -> None:
    """Return once nothing on the page moves or is under way."""
    expect(page.locator(UNDER_WAY)).to_have_count(0)
    page.wait_for_function("document.fonts.status === 'loaded'")
    page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished.catch(() => null)))")


def narrow_places(page: Page) -> list[str]:
    """What is wider than its container: the page, a dialog, a cell, a field."""
    found: list[str] = page.evaluate(
        """() => {
          const root = document.documentElement;
          const wide = root.scrollWidth > root.clientWidth ? [`page ${root.scrollWidth} > ${root.clientWidth}`] : [];
          for (const each of document.querySelectorAll("td, th, dialog[open], .panel, .field, .heading, .facts dd")) {
            if (each.closest("thead")?.offsetWidth === 1) continue; // there to be heard only
            if (each.clientWidth && each.scrollWidth > each.clientWidth + 1)
              wide.push(`${each.tagName}.${each.className} ${each.scrollWidth} > ${each.clientWidth}`);
            const box = each.getBoundingClientRect();
            if (box.right > root.clientWidth + 1 || box.left < -1)
              wide.push(`${each.tagName}.${each.className} sticks out`);
          }
          for (const each of document.querySelectorAll("table")) {
            const [own, place] = [each, each.parentElement].map((one) => one.getBoundingClientRect());
            if (own.right > place.right + 1) wide.push(`${each.className} wider than its place`);
          }
          return wide;
        }"""
    )
    return found


def until_held(page: Page, waiting: list[Route]) -> None:
    """Return once a request is held. The browser tells of it some time after the page has sent it."""

    def is_there() -> bool:
        page.wait_for_timeout(10)
        return bool(waiting)

    until(is_there, "a request that is held")


@contextmanager
def held(page: Page, method: str = "POST") -> Iterator[list[Route]]:
    """Keep requests of this method on their way until the block ends."""
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == method:
            waiting.append(route)
        else:
            route.continue_()

    page.route("**/*", hold)
    yield waiting
    for route in waiting:
        route.continue_()
    page.unroute("**/*")


def plant(home: Path, person: Person, *keys: dict[str, Any]) -> None:
    """Rows of keys straight into the database, in the order that they came in: what no form can make, or too slowly.

    Their ciphertexts are none. The page must not care, as it opens none of them. Each has the mask that the catalogue
    makes of its `value`.
    """
    assert not any("last_4_chars" in key for key in keys), "give the value: the product makes the mask"
    catalogue, moment = Catalogue(), now()
    engine = create_engine(f"sqlite:///{home}/keyman.db", connect_args={"timeout": 30})
    with engine.begin() as connection:
        user_id = connection.scalar(select(users.c.id).where(users.c.email == person.email))
        filled = [
            {
                "user_id": user_id,
                "owner_id": user_id,
                "service": "OPENAI",
                "name": None,
                "encrypted_key": "vault:v1:none",
                "key_version": 1,
                "value_uuid": uuid4(),
                "last_4_chars": catalogue.mask(key.get("service", "OPENAI"), key.get("value", OPENAI_KEY)),
                "disabled": False,
                "undecryptable": False,
                "created_at": moment,
                "expires_at": None,
                "last_used_at": None,
                "last_used_by": None,
                "settings": "{}",
                "is_default": False,
                **dict.fromkeys(("check_verdict", "checked_at", "check_detail", "checked_by")),
                **{name: value for name, value in key.items() if name != "value"},
            }
            for key in keys
        ]
        for each in filled:
            each["name_folded"] = each["name"].casefold() if each["name"] else None
            each["updated_at"] = each["created_at"]
        connection.execute(insert(api_keys), filled)
    engine.dispose()


def plant_uses(home: Path, person: Person, *uses: dict[str, Any]) -> None:
    """Write entries of applications into the audit log, in the order that they came in: of the newest key of a service,
    granted unless they say otherwise.
    """
    engine = create_engine(f"sqlite:///{home}/keyman.db", connect_args={"timeout": 30})
    with engine.begin() as connection:
        user_id = connection.scalar(select(users.c.id).where(users.c.email == person.email))
        for use in uses:
            newest = select(func.max(api_keys.c.id)).where(
                api_keys.c.user_id == user_id, api_keys.c.service == use["service"]
            )
            about = {"user_id": user_id, "key_id": connection.scalar(newest), "address": "198.51.100.7"}
            connection.execute(insert(audit_log).values({**entry(Action.KEY_RESOLVE), **about, **use}))
    engine.dispose()


def plant_applications(home: Path, person: Person, *registered: dict[str, Any]) -> list[int]:
    """Register applications that serve only this person, so that nobody else sees them. Return their ids."""
    engine = create_engine(f"sqlite:///{home}/keyman.db", connect_args={"timeout": 30})
    made = []
    with engine.begin() as connection:
        user_id = connection.scalar(select(users.c.id).where(users.c.email == person.email))
        for each in registered:
            values = row("applications", **each)
            issuer = f"keyman:app:{values['name']}"
            added = insert(applications).values({**values, "issuers": issuer}).returning(applications.c.id)
            made.append(int(connection.execute(added).scalar_one()))
            identity = row("application_identities", user_id=user_id, issuer=issuer)
            connection.execute(insert(application_identities).values(identity))
    engine.dispose()
    return made
