"""Masks: the form in which keyman shows a value, and how to recognise one."""

from __future__ import annotations

import re

IS_MASK = (
    "is a mask, which shows only the ends of a key; copy the whole key from the provider, or create a new one there"
)

_HIDDEN = re.compile(r"\.\.\.|\u2026|\u22ef|\*{3}|[\u2022\u25cf\u25e6\u2219\u22c5\u00b7\u2217\u2588\u25aa\uff0a]{2}")
"""What keyman and providers show in place of the middle of a key: three dots, three asterisks, or two bullets."""


def mask(value: str, prefix: str) -> str:
    """Return the mask of a value: the public prefix if the value has it, `...`, and the last four characters.

    The mask of a value with fewer than 12 characters is only `...`.
    """
    if len(value) < 12:
        return "..."
    # Prefix and tail must not show the whole value, as they could for a short value and an operator's long prefix.
    shows = value.startswith(prefix) and len(prefix) + 4 < len(value)
    return f"{prefix if shows else ''}...{value[-4:]}"


def is_mask(value: str) -> bool:
    """Return True if a text is a key without its middle, as keyman or a provider shows it, such as `sk-...1234`."""
    return _HIDDEN.search(value) is not None
