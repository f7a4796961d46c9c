"""The pages in a real browser, over the whole of `keyman dev`; and as bytes, over a plane in this process.

Playwright's synchronous loop lasts as long as a module, so a module that uses it cannot have an asynchronous test.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from typing import Any

import pytest
from argon2 import PasswordHasher
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from sqlalchemy.engine import URL

from keyman.config.oidc import OidcSettings
from keyman.identity.passwords import Passwords
from tests.planes.management.api.conftest import (
    postgresql_database,
    postgresql_plane,
    shared,
    sqlite_database,
    sqlite_plane,
)
from tests.planes.management.web.openid import Open
from tests.support.browser import (
    DESKTOP,
    NOTE_SCRIPTS,
    QUIET,
    WATCH_POLICY,
    Arrive,
    DevServer,
    Person,
    chromium_absence,
    chromium_path,
)
from tests.support.cli import dev, environment
from tests.support.http import free_port
from tests.support.needs import require
from tests.support.openid import BaoProvider, bao_provider
from tests.support.planes import ORIGIN, Plane, Vault, plane_at
from tests.support.waiting import PATIENCE

__all__ = ["postgresql_database", "postgresql_plane", "shared", "sqlite_database", "sqlite_plane"]  # found by pytest


NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def dev_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """The worker's own; a test that harms one starts another."""
    require("chromium", chromium_absence())
    home, port = tmp_path_factory.mktemp("pages") / ".keyman", free_port()
    # A new key is checked at once. No test sends a key to a provider.
    away = environment(KEYMAN_GATEWAY_URL="http://127.0.0.1:9", KEYMAN_GATEWAY_TOKEN="of-nobody")
    with dev(home, port, env=away):
        yield DevServer(f"http://127.0.0.1:{port}", home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require("chromium", chromium_absence())
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE * 1000)
        launched = playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)
        yield launched
        launched.close()


@pytest.fixture
def arrive(dev_server: DevServer, browser: Browser) -> Iterator[Arrive]:
    """Somebody new comes: `arrive()` with Playwright's options of a context, signed up by default."""
    _forget_sign_ups(dev_server)
    with people(browser, dev_server.origin) as come:
        yield come


def _forget_sign_ups(server: DevServer) -> None:
    """Let the people of this test sign up, however many those of earlier tests were: all come from one address."""
    with closing(sqlite3.connect(server.home / "keyman.db", timeout=60, isolation_level=None)) as connection:
        connection.execute("DELETE FROM throttle")


@contextmanager
def people(browser: Browser, home: str) -> Iterator[Arrive]:
    """Let people come to the plane at the origin `home`, each with a browser of their own."""
    contexts: list[BrowserContext] = []

    def come(*, signed_up: bool = True, origin: str = home, **options: Any) -> Person:
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light", "locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE * 1000)
        context.add_init_script(WATCH_POLICY)
        context.add_init_script(NOTE_SCRIPTS)
        has_scripts = options.get("java_script_enabled", True)
        person = Person(origin, context, context.new_page(), f"person{next(NUMBERS)}@example.com", has_scripts)
        person.watch(person.page)
        if signed_up:
            person.sign_up()
        return person

    yield come
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def bao(provisioned: Vault) -> Iterator[BaoProvider]:
    """OpenBao's own OpenID provider, and three people who can log in there."""
    server = provisioned.server
    with bao_provider(server.address, server.root_token.reveal()) as provider:
        provider.set_up(f"{ORIGIN}/auth/oidc/callback")
        for person in ("ada", "grace", "linus"):
            provider.add(person, f"{person}@company.example")
        yield provider


@pytest.fixture
def open_plane(database: URL, provisioned: Vault, quick_passwords: PasswordHasher) -> Open:
    """A plane of the test's own, with a provider."""

    def opened(oidc: OidcSettings | None = None, **settings: Any) -> AbstractAsyncContextManager[Plane]:
        return plane_at(database, provisioned.settings, Passwords(quick_passwords), oidc=oidc, **settings)

    return opened
