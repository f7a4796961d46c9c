"""The marks of services: one for each, and no two alike."""

from __future__ import annotations

import itertools
import re

from playwright.sync_api import Browser, expect

from keyman.planes.management.web import marks
from keyman.planes.management.web.static import DIRECTORY
from keyman.providers.catalogue import Catalogue
from keyman.providers.services import SHIPPED, Service
from tests.planes.management.web.moves import KEYS, join, plant, rows
from tests.support.browser import Arrive, DevServer

SPRITE = (DIRECTORY / "marks.svg").read_text()

PIXELS = """async (drawings) => {
  const draw = async (drawing) => {
    const image = new Image();
    image.src = URL.createObjectURL(new Blob([drawing], {type: "image/svg+xml"}));
    await image.decode();
    const canvas = new OffscreenCanvas(28, 28).getContext("2d");
    canvas.drawImage(image, 0, 0);
    return [...canvas.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 127);
  };
  return Promise.all(drawings.map(draw));
}"""


def test_each_service_that_is_shipped_has_a_drawing() -> None:
    assert {service.service for service in SHIPPED} == marks.DRAWN


def test_no_two_drawings_look_alike(browser: Browser) -> None:
    found = re.findall(r'<symbol id="(\w+)" viewBox="0 0 28 28">(.*)</symbol>', SPRITE)
    style = 'fill="none" stroke="#000" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"'
    whole = [f'<svg xmlns="http://www.w3.org/2000/svg" width="28" height="28" {style}>{one}</svg>' for _, one in found]
    page = browser.new_page()
    pixels: list[list[bool]] = page.evaluate(PIXELS, whole)
    page.close()
    assert len(pixels) == len(marks.DRAWN)
    for drawn in pixels:
        assert 40 < sum(drawn) < 400  # neither nothing nor a blot
    drawings = [(name, drawn) for (name, _), drawn in zip(found, pixels, strict=True)]
    alike = {
        (name, other): common
        for (name, drawn), (other, compared) in itertools.combinations(drawings, 2)
        if (common := _common(drawn, compared)) > 0.6
    }
    assert alike == {}


def _common(first: list[bool], second: list[bool]) -> float:
    """The part of what is drawn in one of two that is drawn in both."""
    both = sum(one and other for one, other in zip(first, second, strict=True))
    return both / sum(one or other for one, other in zip(first, second, strict=True))


def test_services_of_an_operator_have_two_letters_and_no_two_the_same_ones() -> None:
    names = ["Acme Chat", "Acme Code", "Acme", "acme", "Ac", "Ac", "漢字", "R2-D2", "!", "Acme_Chat"]
    added = [Service(f"OWN_{number}", name) for number, name in enumerate(names)]
    catalogue = Catalogue(added)
    found = [marks.letters(catalogue, service.service) for service in added]
    assert found == ["AC", "Ac", "Am", "ac", "A1", "A2", "漢字", "RD", "?", "Ae"]
    assert marks.letters(catalogue, "OPENAI") == ""
    assert marks.letters(catalogue, "GONE_LONG_AGO") == "GL"


def test_a_row_shows_the_mark_of_its_service(arrive: Arrive, dev_server: DevServer) -> None:
    ada = join(arrive(signed_up=False))
    plant(dev_server.home, ada, {"service": "OPENAI"}, {"service": "OF_AN_OPERATOR"}, {"service": "OPENROUTER"})
    ada.open(KEYS)
    shown = rows(ada.page).locator(".mark")
    expect(shown).to_have_count(3)
    router, own, openai = (shown.nth(number).screenshot() for number in range(3))
    assert len({router, own, openai}) == 3
    expect(shown.nth(1)).to_have_text("OA")
    assert ada.complaints == []
