"""The pages for readers: problems, and the API reference, in a real browser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from keyman.problems import KINDS
from keyman.web.reference import STATIC_DIRECTORY
from tests.support.chromium import chromium_absence, chromium_path
from tests.support.live import dev, free_port
from tests.support.needs import require

# Without these Chromium asks its maker's hosts, which is not what the test is about.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require("chromium", chromium_absence())
    home, port = tmp_path_factory.mktemp("pages") / ".keyman", free_port()
    with dev(home, port):
        yield f"http://127.0.0.1:{port}"


class Visit:
    """A page in Chromium, with what it asked for and what it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)


@pytest.fixture(params=["desktop, light", "phone, dark"])
def visit(request: pytest.FixtureRequest) -> Iterator[Visit]:
    require("chromium", chromium_absence())
    is_phone = request.param.startswith("phone")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)
        try:
            page = browser.new_page(
                viewport={"width": 390, "height": 844} if is_phone else {"width": 1280, "height": 900},
                color_scheme="dark" if is_phone else "light",
            )
            yield Visit(page)
        finally:
            browser.close()


def test_the_reference_shows_each_operation_and_asks_no_other_host(origin: str, visit: Visit) -> None:
    visit.page.goto(f"{origin}/docs#/operations/createKey")
    visit.page.get_by_role("heading", name="Store a key").wait_for()
    visit.page.get_by_text("Idempotency-Key").first.wait_for()
    assert visit.asked
    assert [url for url in visit.asked if not url.startswith((f"{origin}/", "data:"))] == []
    assert visit.complaints == []


def test_each_problem_has_a_page_that_explains_it(origin: str, visit: Visit) -> None:
    visit.page.goto(f"{origin}/problems")
    titles = {kind.problem.slug: kind.problem.title for kind in KINDS.values()}
    for slug, title in titles.items():
        visit.page.get_by_role("link", name=title).first.wait_for()
        visit.page.goto(f"{origin}/problems/{slug}")
        assert visit.page.get_by_role("heading", level=1).inner_text() == title
        overflow = visit.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not overflow, slug
        visit.page.get_by_role("link", name="All problems").click()
    assert visit.complaints == []


def test_the_files_from_elsewhere_are_those_that_were_published() -> None:
    directory = STATIC_DIRECTORY / "elements"
    listed = (line.split() for line in (directory / "SHA256SUMS").read_text().splitlines())
    digests = {name: digest for digest, name in listed}
    assert digests.keys() == {path.name for path in directory.iterdir() if path.suffix in (".js", ".css")}
    for name, digest in digests.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest, name


def test_no_page_of_ours_names_another_host() -> None:
    for path in (path for path in STATIC_DIRECTORY.iterdir() if path.is_file()):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, Path(path).name
