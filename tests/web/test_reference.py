"""The pages for readers: problems, and the API reference, in a real browser."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from keyman.problems import KINDS
from keyman.web.pages import TEMPLATES
from keyman.web.static import DIRECTORY
from tests.web.conftest import PHONE, Arrive, Person


@pytest.fixture(params=["desktop, light", "phone, dark"])
def reader(request: pytest.FixtureRequest, arrive: Arrive) -> Person:
    if request.param.startswith("phone"):
        return arrive(signed_up=False, viewport=PHONE, color_scheme="dark")
    return arrive(signed_up=False)


def test_the_reference_shows_each_operation_and_asks_no_other_host(reader: Person) -> None:
    reader.open("/docs#/operations/createKey")
    reader.page.get_by_role("heading", name="Store a key").wait_for()
    reader.page.get_by_text("Idempotency-Key").first.wait_for()
    assert reader.asked
    assert reader.foreign_hosts == set()
    assert reader.complaints == []


def test_each_problem_has_a_page_that_explains_it(reader: Person) -> None:
    reader.open("/problems")
    titles = {kind.problem.slug: kind.problem.title for kind in KINDS.values()}
    for slug, title in titles.items():
        reader.page.get_by_role("link", name=title).first.wait_for()
        reader.open(f"/problems/{slug}")
        assert reader.page.get_by_role("heading", level=1).inner_text() == title
        overflow = reader.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not overflow, slug
        reader.page.get_by_role("link", name="All problems").click()
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
