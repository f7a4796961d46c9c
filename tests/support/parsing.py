"""Counts how often JSON Web Tokens are parsed."""

from __future__ import annotations

import pytest

from keyman.identity.jose import Unverified


def counting_parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets each token that is parsed from now on."""
    parse, parsed = Unverified.parse, list[str]()

    def counting(text: str) -> Unverified | None:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(Unverified, "parse", staticmethod(counting))
    return parsed
