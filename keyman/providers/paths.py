"""Which requests the gateway sends to a provider: an allow-list of methods and paths.

An entry is `METHOD /path`. In a path, `{name}` stands for one segment, or for the beginning of one whose end is written
out, as in `{model}:countTokens`. What it stands for has 1 to 200 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~:@-]{1,200}"
_BEGINNING = r"[A-Za-z0-9._~@-]{1,200}"  # without a colon, so that what follows it is written out
_ENTRY = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9._~:@{}/-]{1,300})")
_PART = re.compile(r"\{[a-z_]{1,40}\}|[A-Za-z0-9._~:@-]+")


class PathRule(NamedTuple):
    """One entry of an allow-list."""

    method: str
    path: re.Pattern[str]

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Parse `METHOD /path`. Raises ValueError, whose text repeats nothing."""
        found = _ENTRY.fullmatch(entry)
        segments = [] if found is None else found[2].split("/")[1:]
        if found is None or not all(_is_segment(segment) for segment in segments):
            raise ValueError(
                "a path must be a method and a path, such as GET /v1/models/{model}, without empty segments, . or .."
            )
        return cls(found[1], re.compile("".join(f"/{_form(segment)}" for segment in segments)))

    def allows(self, method: str, path: str) -> bool:
        """Return True for a request that the entry means. The whole path must match, case-sensitively."""
        wanted = "GET" if method == "HEAD" else method
        return wanted == self.method and self.path.fullmatch(path) is not None


def allows(rules: Iterable[PathRule], method: str, path: str) -> bool:
    """Return True if one of the entries means this request."""
    return any(rule.allows(method, path) for rule in rules)


def _is_segment(segment: str) -> bool:
    return bool(segment) and segment not in (".", "..") and "".join(_PART.findall(segment)) == segment


def _form(segment: str) -> str:
    """Return the pattern of a segment: a placeholder, a placeholder with its end, or a literal text."""
    parts = _PART.findall(segment)
    if len(parts) == 1 and parts[0].startswith("{"):
        return _SEGMENT
    return "".join(_BEGINNING if part.startswith("{") else re.escape(part) for part in parts)
