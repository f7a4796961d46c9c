"""The pages in a real browser, over the whole of `keyman dev`; and as bytes, over a plane in this process.

Playwright's synchronous loop lives as long as a module: no asynchronous test can run in a module of these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

from tests.planes.management.api.conftest import (
    postgresql_database,
    postgresql_plane,
    shared,
    sqlite_database,
    sqlite_plane,
)
from tests.support.browser import chromium_absence, chromium_path
from tests.support.cli import dev
from tests.support.http import free_port
from tests.support.needs import require
from tests.support.planes import PASSWORD

__all__ = ["postgresql_database", "postgresql_plane", "shared", "sqlite_database", "sqlite_plane"]  # found by pytest

# Without these Chromium asks its maker's hosts, which is not what the tests are about.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}

# Each violation of the policy becomes a line on the console, which a person's complaints hold.
WATCH_POLICY = """
document.addEventListener("securitypolicyviolation", (e) =>
  console.error(`policy: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber}`));
"""

NUMBERS = itertools.count()


class DevServer(NamedTuple):
    """A running `keyman dev`."""

    origin: str
    home: Path


@pytest.fixture(scope="session")
def dev_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """The worker's own; a test that harms one starts another."""
    require("chromium", chromium_absence())
    home, port = tmp_path_factory.mktemp("pages") / ".keyman", free_port()
    with dev(home, port):
        yield DevServer(f"http://127.0.0.1:{port}", home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium", chromium_absence())
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)
        yield launched
        launched.close()


@dataclass
class Person:
    """Somebody with a browser of their own: what it asked for, and what it complained of."""

    origin: str
    context: BrowserContext
    page: Page
    email: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> Page:
        """Note what a page asks for and complains of."""
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        return page

    def open(self, path: str) -> None:
        self.page.goto(f"{self.origin}{path}")

    def sign_up(self) -> None:
        """Through the form, which ends on the list of keys."""
        self.open("/sign-up")
        self.page.get_by_label("Email").fill(self.email)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign up").click()
        self.page.wait_for_url("**/settings/api-keys")

    def store(self, *bodies: dict[str, Any]) -> None:
        """Store keys by the API, with the session of the browser."""
        for body in bodies:
            answer = self.context.request.post(f"{self.origin}/api/keys", data=body)
            assert answer.status == 201, answer.text()

    @property
    def foreign_hosts(self) -> set[str]:
        """The hosts that were asked for anything and are not keyman."""
        own = urlsplit(self.origin).netloc
        return {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")} - {own}

    def troubles(self, *expected: str) -> list[str]:
        """The complaints without the expected words. Chromium writes a line for each answer of 400 and more."""
        return [line for line in self.complaints if not any(words in line for words in expected)]


Arrive = Callable[..., Person]


@pytest.fixture
def arrive(dev_server: DevServer, browser: Browser) -> Iterator[Arrive]:
    """Somebody new comes: `arrive()` with Playwright's options of a context, signed up by default."""
    contexts: list[BrowserContext] = []

    def come(*, signed_up: bool = True, origin: str = dev_server.origin, **options: Any) -> Person:
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", "locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH_POLICY)
        person = Person(origin, context, context.new_page(), f"person{next(NUMBERS)}@example.com")
        person.watch(person.page)
        if signed_up:
            person.sign_up()
        return person

    yield come
    for context in contexts:
        context.close()
