"""Reads the Cookie header, and makes keyman's own cookies.

Litestar's own parser needs time that grows with the square of the length of a quoted value: 5 seconds for 32 KiB. It
also keeps the last 1,024 headers, with the sessions in them, in memory.
"""

from __future__ import annotations

from litestar.datastructures import Cookie

from keyman.config.settings import Settings


def cookie_values(header: str, name: str) -> list[str]:
    """Return the value of each cookie with this name, in order and as it was sent (RFC 6265, 4.2.1)."""
    pairs = (part.partition("=") for part in header.split(";"))
    return [value.strip(" \t") for key, _, value in pairs if key.strip(" \t") == name]


def own_cookie(settings: Settings, name: str, value: str, max_age: int) -> Cookie:
    """Return a cookie that the browser keeps for `max_age` seconds and sends only to keyman. 0 seconds delete it.

    No script can read it, and no form of another site sends it.
    """
    return Cookie(
        key=name,
        value=value,
        max_age=max_age,
        path=settings.root_path or "/",
        httponly=True,
        samesite="lax",
        secure=settings.cookies_are_secure,
    )
