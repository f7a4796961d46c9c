"""Reads assignments, as `.env` files and shells have them: `NAME=value`, with `export`, quotes and comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from keyman.secret import Secret

_ASSIGNMENT = re.compile(r"\s*(?:(?:export|set|setx)\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|`([^`]*)`)\s*;?\s*(?:#.*)?""")
_COMMENT = re.compile(r"(?:\s+#.*|\s*;\s*)\Z")


class Assignment(NamedTuple):
    """A variable and its value, at a line of the file."""

    line: int
    name: str
    value: Secret


def assignments(text: str) -> Iterator[Assignment]:
    """Yield every variable that has a value, in the order of the file.

    Comments, and lines that are no assignments, are left out. A value is what stands between quotes, or else the rest
    of the line without a comment.
    """
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        found = _ASSIGNMENT.fullmatch(line)
        if found is None:
            continue
        value = _value(found[2].strip())
        if value:
            yield Assignment(number, found[1], Secret(value))


def _value(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    if quoted is None:
        return _COMMENT.sub("", text).strip() if not text.startswith("#") else ""
    double, single, back = quoted.groups()
    if double is not None:
        return re.sub(r'\\(["\\$`])', r"\1", double).strip()
    return str(single if single is not None else back).strip()
