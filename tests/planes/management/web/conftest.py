"""The pages in a real browser, over the whole of `keyman dev`; and as bytes, over a plane in this process.

Playwright's synchronous loop lasts as long as a module, so a module that uses it cannot have an asynchronous test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.planes.management.api.conftest import (
    postgresql_database,
    postgresql_plane,
    shared,
    sqlite_database,
    sqlite_plane,
)
from tests.support.browser import (
    DESKTOP,
    QUIET,
    WATCH_POLICY,
    Arrive,
    DevServer,
    Person,
    chromium_absence,
    chromium_path,
)
from tests.support.cli import dev
from tests.support.http import free_port
from tests.support.needs import require

__all__ = ["postgresql_database", "postgresql_plane", "shared", "sqlite_database", "sqlite_plane"]  # found by pytest


NUMBERS = itertools.count()


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
