"""What the browser keeps of a session that has just ended: that it was ended, or the way back to the application.

The session is over then, and what it knew of the application with it. So the browser keeps that, for as long as
somebody may look at the page "You have left". The page to sign in says once that somebody has signed out, also if they
come back to it from the identity provider.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple

from litestar.datastructures import Cookie

from keyman.config.settings import Settings
from keyman.http.cookies import cookie_values, own_cookie
from keyman.http.exchange import Exchange
from keyman.identity.principals import Portal
from keyman.identity.return_urls import ReturnUrl
from keyman.values import ApplicationName

LIFETIME = 600
"""Seconds. The page says that it can be closed."""


class WayBack(NamedTuple):
    """An application, and the address where "Back to …" leads."""

    application: ApplicationName
    return_url: ReturnUrl


def way_back_cookie(portal: Portal, settings: Settings) -> Cookie:
    """Return the cookie from which `way_back` reads."""
    text = json.dumps([portal.application, portal.return_url])
    return own_cookie(settings, _name(settings), urlsafe_b64encode(text.encode()).decode(), LIFETIME)


def way_back(exchange: Exchange, settings: Settings) -> WayBack | None:
    """Return what the cookie of this browser says, or None if it has none that is valid."""
    found = cookie_values(exchange.headers.get("cookie", ""), _name(settings))
    if len(found) != 1:
        return None
    try:
        application, return_url = json.loads(urlsafe_b64decode(found[0]))
        return WayBack(ApplicationName.parse(application), ReturnUrl.parse(return_url))
    except (ValueError, TypeError):  # nobody has to keep a cookie as it was
        return None


def signed_out_cookie(settings: Settings, *, is_said: bool = False) -> Cookie:
    """Return the cookie that `has_signed_out` reads. If a page has said it (`is_said`), this deletes the cookie."""
    return own_cookie(settings, _signed_out(settings), "" if is_said else "1", 0 if is_said else LIFETIME)


def has_signed_out(exchange: Exchange, settings: Settings) -> bool:
    """Return True if somebody has just signed out in this browser, and no page has said so."""
    return cookie_values(exchange.headers.get("cookie", ""), _signed_out(settings)) == ["1"]


def _signed_out(settings: Settings) -> str:
    return f"{settings.session_cookie}_out"


def _name(settings: Settings) -> str:
    return f"{settings.session_cookie}_left"
