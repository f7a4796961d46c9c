"""The marks of services: a drawing of our own for each that is shipped, in `static/marks.svg`, and letters for others.

The drawings have the colour of the text around them. A page refers to them by the address of the file, which browsers
keep, so that a row of the list has only a few bytes of its mark.
"""

from __future__ import annotations

import re

from keyman.planes.management.web.static import DIRECTORY
from keyman.providers.catalogue import Catalogue

DRAWN = frozenset(re.findall(r'<symbol id="(\w+)"', (DIRECTORY / "marks.svg").read_text()))
"""The services with a drawing."""


def letters(catalogue: Catalogue, service: str) -> str:
    """Return the two letters of a service, or an empty text if it has a drawing.

    No two services of the catalogue have the same letters.
    """
    if service in DRAWN:
        return ""
    taken: set[str] = set()
    for one in catalogue.services():
        if one.service not in DRAWN:
            pairs = _pairs(one.name)
            pair = next((pair for pair in pairs if pair not in taken), pairs[0])
            if one.service == service:
                return pair
            taken.add(pair)
    return _pairs(service)[0]  # the operator has removed it from the catalogue


def _pairs(name: str) -> list[str]:
    """Return the pairs of letters that could stand for a name, the best first: initials, then the beginning."""
    words = re.findall(r"[^\W_]+", name) or ["?"]
    joined = "".join(words)
    initials = [words[0][0] + words[1][0]] if len(words) > 1 else []
    return [*initials, joined[:2], *(joined[0] + other for other in f"{joined[2:]}123456789")]
