"""How somebody wants the pages: theme, language, and whether keys of the keyboard are shortcuts.

The browser keeps the choice in a cookie, so that the sign-in page has it too. keyman reads it with each request and
writes the page accordingly. So it needs no script, and no page is shown in another theme first.
"""

from __future__ import annotations

from typing import NamedTuple

from litestar.datastructures import Cookie

from keyman.config.settings import Settings
from keyman.http.cookies import cookie_values, own_cookie
from keyman.http.exchange import Exchange

THEMES = ("light", "dark")

LIFETIME = 400 * 24 * 60 * 60
"""Seconds. Browsers keep no cookie longer (RFC 6265bis, 5.5)."""


class Display(NamedTuple):
    """What somebody has chosen. An empty theme or language is that of the browser."""

    theme: str = ""
    language: str = ""
    has_shortcuts: bool = True


def display_of(exchange: Exchange, settings: Settings) -> Display:
    """Return what the cookie of this browser says. Parts that mean nothing count as not chosen."""
    found = cookie_values(exchange.headers.get("cookie", ""), _name(settings))
    theme, language, shortcuts = (f"{found[0] if len(found) == 1 else ''}...").split(".")[:3]
    return Display(theme if theme in THEMES else "", language, shortcuts != "off")


def display_cookie(display: Display, settings: Settings) -> Cookie:
    """Return the cookie from which `display_of` reads."""
    text = ".".join((display.theme, display.language, "on" if display.has_shortcuts else "off"))
    return own_cookie(settings, _name(settings), text, LIFETIME)


def _name(settings: Settings) -> str:
    return f"{settings.session_cookie}_display"
