"""Patterns for the texts of requests. They mean the same in ECMAScript and Python, so that the OpenAPI document matches
the parser.
"""

from __future__ import annotations

from keyman.characters import DEFAULT_IGNORABLE

CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
"""Control characters, and characters that end a line or a paragraph, for a character class of a regular expression."""

BIDIRECTIONAL = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that change the writing direction. With them, a label can look like another text."""

SPACE = r"\u0020\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
"""White space of every script, as a list, because the shorthand class differs between Python and JSON Schema."""

LABEL = rf"^[^{CONTROL}{BIDIRECTIONAL}]*$"

# For characters above U+FFFF, which the two write differently, the parser is stricter than this pattern.
_BLANK = "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in DEFAULT_IGNORABLE.ranges() if last <= 0xFFFF)

REQUIRED_LABEL = rf"^[^{CONTROL}{BIDIRECTIONAL}]*[^{CONTROL}{SPACE}\u2800{_BLANK}][^{CONTROL}{BIDIRECTIONAL}]*$"

# The parser is stricter: it refuses every character that is not printable.
SUBJECT = rf"^[^{CONTROL}{BIDIRECTIONAL}{SPACE}]([^{CONTROL}{BIDIRECTIONAL}]*[^{CONTROL}{BIDIRECTIONAL}{SPACE}])?$"

# RFC 5321, 4.5.3.1: 64 before the @, 254 in total.
# `EmailAddress.parse` refuses more than this pattern, in which all of the characters would take 9 KB.
_IN_ADDRESS = rf"[^@{CONTROL}{SPACE}{_BLANK}<>]"

EMAIL = rf"^{_IN_ADDRESS}{{1,64}}@{_IN_ADDRESS}+$"

APPLICATION_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
