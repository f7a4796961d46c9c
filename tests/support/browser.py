"""The browser that the page tests drive, and the people who use it.

It is the machine's own Chromium, since playwright's needs a download.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, ViewportSize

from tests.support.planes import PASSWORD

# The first is Chromium without the windows that its own headless mode draws for nobody: the same pages for less than
# half of the processor's time. Debian has it as a package of that name.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str | None:
    """The first Chromium or Chrome on the PATH, for playwright's `executable_path`."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def chromium_absence() -> str | None:
    """None if there is a browser, else the reason in one line."""
    return None if chromium_path() else f"none of {', '.join(_NAMES)} is on the PATH"


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

# htmx takes up the forms and buttons of a page some time after the page is loaded. Before, a button leads to a page of
# its own, without a dialog.
NOTE_SCRIPTS = """document.addEventListener("htmx:after:process", () => { window.areScriptsReady = true; });"""


def ready(page: Page) -> None:
    """Return once the page is loaded and its scripts take clicks and keys."""
    page.wait_for_function(
        """document.readyState === "complete" &&
        (window.areScriptsReady || !document.querySelector("script[src*='/htmx.']"))"""
    )


class DevServer(NamedTuple):
    """A running `keyman dev`."""

    origin: str
    home: Path


@dataclass
class Person:
    """Somebody with a browser of their own. `asked` has its requests, `complaints` its errors."""

    origin: str
    context: BrowserContext
    page: Page
    email: str
    has_scripts: bool = True
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> Page:
        """Note what a page asks for and complains of."""
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        return page

    def open(self, path: str) -> None:
        """Open a page, and wait for its scripts."""
        self.page.goto(f"{self.origin}{path}")
        if self.has_scripts:
            ready(self.page)

    def sign_up(self) -> None:
        """Sign up with the form, which leads to the list of keys."""
        self.open("/sign-up")
        self.page.get_by_label("Email").fill(self.email)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign up").click()
        self.page.wait_for_url("**/settings/api-keys")
        if self.has_scripts:
            ready(self.page)

    def store(self, *bodies: dict[str, Any]) -> None:
        """Store keys by the API, with the session of the browser."""
        for body in bodies:
            answer = self.context.request.post(f"{self.origin}/api/keys", data=body)
            assert answer.status == 201, answer.text()

    @property
    def foreign_hosts(self) -> set[str]:
        """The hosts other than keyman that got a request."""
        own = urlsplit(self.origin).netloc
        return {urlsplit(url).netloc for url in self.asked if not url.startswith("data:")} - {own}

    def troubles(self, *expected: str) -> list[str]:
        """The complaints without the expected words. Chromium writes a line for each answer of 400 and more."""
        return [line for line in self.complaints if not any(words in line for words in expected)]


Arrive = Callable[..., Person]
