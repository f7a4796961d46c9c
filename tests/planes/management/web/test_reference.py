"""The pages of problems and of the API reference, in a real browser."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import expect

from keyman.http.problems import KINDS
from keyman.planes.management.web.pages import TEMPLATES
from keyman.planes.management.web.static import DIRECTORY
from tests.planes.management.web.moves import narrow_places
from tests.support.browser import DESKTOP, PHONE, Arrive


def test_the_reference_shows_each_operation_and_asks_no_other_host(arrive: Arrive) -> None:
    reader = arrive(signed_up=False)
    reader.open("/docs#/operations/createKey")
    for viewport in (DESKTOP, PHONE):
        reader.page.set_viewport_size(viewport)
        reader.page.get_by_role("heading", name="Store a key").wait_for()
        reader.page.get_by_text("Idempotency-Key").first.wait_for()
    assert reader.asked
    assert reader.foreign_hosts == set()
    assert reader.complaints == []


def test_each_problem_has_a_page_that_explains_it(arrive: Arrive) -> None:
    reader = arrive(signed_up=False)
    page = reader.page
    reader.open("/problems")
    titles = {kind.problem.slug: kind.problem.title for kind in KINDS.values()}
    for slug, title in titles.items():
        expect(page.get_by_role("link", name=title).first).to_have_attribute("href", f"/problems/{slug}")
    for slug, title in titles.items():
        reader.open(f"/problems/{slug}")
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        expect(page.get_by_role("link", name="All problems")).to_have_attribute("href", "/problems")
        for viewport in (DESKTOP, PHONE):
            page.set_viewport_size(viewport)
            assert narrow_places(page) == [], slug
    page.get_by_role("link", name="All problems").click()
    page.wait_for_url("**/problems")
    assert reader.complaints == []


@pytest.mark.parametrize("name", ["elements", "htmx"])
def test_the_files_from_elsewhere_are_those_that_were_published(name: str) -> None:
    directory = DIRECTORY / name
    listed = (line.split() for line in (directory / "SHA256SUMS").read_text().splitlines())
    digests = {file: digest for digest, file in listed}
    assert digests.keys() == {path.name for path in directory.iterdir() if path.suffix in (".js", ".css")}
    for file, digest in digests.items():
        assert hashlib.sha256((directory / file).read_bytes()).hexdigest() == digest, file


def test_no_page_of_ours_names_another_host() -> None:
    for path in [*(path for path in DIRECTORY.iterdir() if path.is_file()), *TEMPLATES.glob("*.html")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, Path(path).name
