"""Masks: the form in which keyman shows a value, and how to recognise one."""

from __future__ import annotations

from collections.abc import Collection

IS_MASK = "is the mask that keyman shows, not the key; copy the key from the provider"


def mask(value: str, prefix: str) -> str:
    """Return the mask of a value: the public prefix if the value has it, `...`, and the last four characters.

    The mask of a value with fewer than 12 characters is only `...`.
    """
    if len(value) < 12:
        return "..."
    # Prefix and tail must not show the whole value, as they could for a short value and an operator's long prefix.
    shows = value.startswith(prefix) and len(prefix) + 4 < len(value)
    return f"{prefix if shows else ''}...{value[-4:]}"


def is_mask(value: str, prefixes: Collection[str] = ("",)) -> bool:
    """Return True if a text has the form of a mask, with one of these prefixes or without a prefix."""
    head, dots, tail = value.partition("...")
    return bool(dots) and head in {"", *prefixes} and len(tail) in (0, 4)
