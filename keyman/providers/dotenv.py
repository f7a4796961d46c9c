"""Reads what people paste to store several keys at once: the lines of a `.env` file, or one key on each line.

It understands comments, `export`, lists, names with `=` or `:`, quotation marks around one or several lines, and JSON
credentials of several lines. The time is linear in the length of the text.

A key with something behind it, such as `sk-…: my key` or `…==`, is not read as a name: pages show names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from keyman.providers.pasted import bare, is_random

_MARK = re.compile(r"\A\s*(?:[-*]\s+)?")
"""What a line begins with, in a list of YAML or of a note too."""

_NAME = re.compile(
    r"(?:(?:export|setx?|declare|env)[ \t]+|\$env:)?"
    r"[\"']?([A-Za-z_][\w.-]{0,99})[\"']?[ \t]*(?:=|:[ \t])[ \t]*"
)
_COMMENT = re.compile(r"\s#.*")
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\\"'n])")
_JSON = json.JSONDecoder()

MAX_BROKEN = 10
"""Objects that are no JSON. After so many, `{` begins none: each can be as long as the rest of the text, and deep."""


_PLACEHOLDER = re.compile(r"your[-_ ]|change[-_ ]?me|replace[-_ ]?me|insert[-_ ]|[-_ ]here$|x{6}|^<.*>$", re.IGNORECASE)
_REFERENCE = re.compile(r"^\$|\$[{(]")


def is_placeholder(value: str) -> bool:
    """Return True for what stands in files that others are to fill in. A JSON credential has words of its owner."""
    return not value.startswith("{") and _PLACEHOLDER.search(value) is not None


def is_reference(value: str) -> bool:
    """Return True for a value that a shell or a program would put together from another variable, or by a command."""
    return not value.startswith("{") and _REFERENCE.search(value) is not None


@dataclass(frozen=True)
class Line:
    """A value in the text, which begins on the line with this number, and the name of its variable, if it has one."""

    number: int
    name: str
    value: str = field(repr=False)


def read_lines(text: str) -> Iterator[Line]:
    """Yield the values in a text, in order. Comments and empty lines are left out."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    place, number, broken = 0, 1, 0
    while place < len(text):
        end = _end_of_line(text, place)
        line = text[place:end]
        if line.strip() and not line.lstrip().startswith("#"):
            start = len(line) - len(_MARK.sub("", line))
            named = _named(line, start)
            begin = place + (named.end() if named else start)
            value, end, is_broken = _value(text, begin, takes_json=broken < MAX_BROKEN)
            broken += is_broken
            yield Line(number, named[1] if named else "", value)
        number += text.count("\n", place, end + 1)
        place = end + 1


def _named(line: str, start: int) -> re.Match[str] | None:
    """Return the name that begins here in a line, with what follows it up to the value, or None."""
    found = _NAME.match(line, start)
    return None if found is None or is_random(found[1]) else found


def _value(text: str, begin: int, *, takes_json: bool) -> tuple[str, int, bool]:
    """Return the value that begins here, the end of its last line, and whether it only begins as JSON does."""
    quote = text[begin : begin + 1]
    if quote == "#":  # a comment behind a name without a value: no key begins so
        return "", _end_of_line(text, begin), False
    is_json = takes_json and quote == "{"
    if is_json:
        value, end = _json(text, begin)
    elif quote in ("'", '"'):
        value, end = _quoted(text, begin)
    else:
        value, end = "", -1
    is_broken = is_json and end < 0
    if end < 0:
        end = _end_of_line(text, begin)
        value = bare(_COMMENT.sub("", text[begin:end], count=1)).strip()
    return value, _end_of_line(text, end), is_broken


def _json(text: str, begin: int) -> tuple[str, int]:
    """Return a JSON object and its end, or -1 if there is none."""
    try:
        _, end = _JSON.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return "", -1
    return text[begin:end], end


def _quoted(text: str, begin: int) -> tuple[str, int]:
    """Return what stands between quotation marks, and the end behind it, or -1 if there is no second one."""
    found = _QUOTED.match(text, begin)
    if found is None:
        return "", -1
    single, double = found.groups()
    inside = single if double is None else _ESCAPED.sub(lambda one: "\n" if one[1] == "n" else one[1], double)
    return bare(inside).strip(), found.end()


def _end_of_line(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end
