"""Masks: the form in which keyman shows a value, and how to tell one from a key."""

from __future__ import annotations

from collections.abc import Collection

IS_MASK = "is the mask that keyman shows, not the key; copy the key from the provider"


def mask(value: str, prefix: str) -> str:
    """What is shown of a value: the public prefix of its service if it has it, `...`, and the last four characters."""
    if len(value) < 12:
        return "..."
    # Prefix and tail must not be the whole value, as they could be with a short one and an operator's long prefix.
    shows = value.startswith(prefix) and len(prefix) + 4 < len(value)
    return f"{prefix if shows else ''}...{value[-4:]}"


def is_mask(value: str, prefixes: Collection[str] = ("",)) -> bool:
    """True for a text of the form that `mask` gives with one of these prefixes, or without any."""
    head, dots, tail = value.partition("...")
    return bool(dots) and head in {"", *prefixes} and len(tail) in (0, 4)
