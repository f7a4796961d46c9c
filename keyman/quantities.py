"""Quantities in messages: `1 key`, `2 keys`, `1,000 keys`."""

from __future__ import annotations


def quantity(count: int, one: str, several: str = "") -> str:
    """Return a number with its noun. Give the plural where it is not the noun with an `s`."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
