"""Reads the Cookie header.

Litestar's own parser needs time that grows with the square of the length of a quoted value: 5 seconds for 32 KiB. It
also keeps the last 1,024 headers, with the sessions in them, in memory.
"""

from __future__ import annotations


def cookie_values(header: str, name: str) -> list[str]:
    """Return the value of each cookie with this name, in order and as it was sent (RFC 6265, 4.2.1)."""
    pairs = (part.partition("=") for part in header.split(";"))
    return [value.strip(" \t") for key, _, value in pairs if key.strip(" \t") == name]
