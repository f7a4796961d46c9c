"""Recognises what people paste instead of a key, or around one.

Each check raises ValueError with a message that names the mistake and says what to do. A value is any text without
white space around it. The checks are in the order in which a person fixes the mistakes: what is around a key first,
then what is wrong with the key itself. Each takes time that is linear in the length of the value.

The pages remove with `bare` what stands around a key, and say so. The API only says what to do: a script that sends a
name with each key has a fault.
"""

from __future__ import annotations

import re
import unicodedata

from keyman.errors import Sentence
from keyman.providers.masking import IS_MASK, is_mask

_QUOTES = "\"'\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u2032\u2033\uff02\uff07"
"""Straight, typographic and full-width quotation marks, and the primes that are typed for them."""

_AROUND = f"{_QUOTES}`"

_LAYERS = 6
"""More layers than anything has that people paste: `export X="Authorization: Bearer …",` has five."""

_SHORTEST = 8
"""The minimum number of characters of a key."""

_URL = re.compile(r"[a-z][a-z0-9+.-]{0,20}://|www\.|([a-z0-9-]{1,63}\.){1,5}(com|ai|org|net|io|dev|co)/", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"[\"'`]?(proxy-)?authorization[\"'`]?\s*[:=]|(bearer|basic|token)\s", re.IGNORECASE)
_BEARER = re.compile(r"[\"'`]?bearer\s", re.IGNORECASE)
# A name is an identifier, or ends with a word such as `key`: a hyphen or a colon may also be part of a key.
_ENDING = r"[\w.-]{0,64}(key|token|secret)"
_DECLARED = r"(?:(?:export|setx?|declare|const|let|var|env|arg)\s{1,9}|\$env:|-e\s{1,9}|--?|\#\s{0,9})?"
_ASSIGNMENT = re.compile(
    rf"{_DECLARED}[\"'`]?(?:[a-z_][a-z0-9_.]{{0,63}}|{_ENDING})[\"'`\]]{{0,2}}\s{{0,9}}:?=\s{{0,9}}(?=[^\s=])",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"[\"'`]?[a-z][\w .-]{0,63}[\"'`]?\s{0,9}:\s"  # name: value
    r"|[\"'`][a-z][\w .-]{0,63}[\"'`]\s{0,9}:"  # "name":"value"
    r"|[a-z][\w.-]{0,63}\s{0,9}:(?=[\"'`])"  # name:"value"
    rf"|{_ENDING}\s{{0,9}}:",  # x-api-key:value
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{16,}")
_DIGITS = re.compile(r"\d+")

MANY_NUMBERS = 4
"""A name of 16 or more characters with so many numbers in it, such as a UUID, is a key."""

_UNUSUAL = re.compile(r"[^!-~]")
_ESCAPE = re.compile(r"\\[nrt]?\Z")
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that are displayed as nothing, although their category is that of letters, marks or symbols."""


def check_pasted(text: str) -> None:
    """Raise ValueError if the text is certainly not a bare key. The message never repeats the text."""
    _check_invisible(text)
    if "\n" in text or "\r" in text:
        raise ValueError("has more than one line; paste only one key, without other lines")
    _check_surroundings(text)
    _check_marks(text)
    if is_mask(text):
        raise ValueError(IS_MASK)
    if any(character.isspace() for character in unusual_characters(text)):
        raise ValueError("contains white space; paste only the key, without anything before or after it")


def bare(text: str) -> str:
    """Return a key without what people paste around it: its name, quotation marks, `Bearer`, a comma behind it.

    Return the text as it is if it has several lines, or is JSON, an address, or a key with something behind it, such as
    `sk-…: note`. Also if what is left cannot be a key, because it is too short or has a quotation mark in it.
    """
    rest = text.strip()
    if "\n" in rest or "\r" in rest or rest.startswith("{"):
        return text
    for _ in range(_LAYERS):
        rest = _peeled(rest)
    is_whole = len(rest) >= _SHORTEST and not _URL.match(rest) and not any(mark in rest for mark in _AROUND)
    return rest if is_whole else text


def _peeled(text: str) -> str:
    """Return the text without its outermost layer."""
    around = _BEARER.match(text) or _AUTHORIZATION.match(text) or _ASSIGNMENT.match(text) or _NAMED.match(text)
    rest = text[around.end() :] if around and not is_random(around[0]) else text
    return rest.rstrip(",; \t").strip(_AROUND).strip()


def is_random(text: str) -> bool:
    """Return True for a text that may look like a name, but is a key with something behind it, such as `sk-…: note`."""
    return _LONG_WORD.search(text) is not None or (len(text) >= 16 and len(_DIGITS.findall(text)) >= MANY_NUMBERS)


def unusual_characters(text: str) -> list[str]:
    """Return the characters that are not printable ASCII, or are white space. No key has one."""
    return _UNUSUAL.findall(text)


def _check_invisible(text: str) -> None:
    """Raise ValueError, which names the character. It says nothing about the key, because no key has such a one."""
    for character in unusual_characters(text):
        if _is_invisible(character):
            name = unicodedata.name(character, "")
            raise ValueError(
                Sentence(
                    "contains an invisible character ({character}); copy the key again, directly from the provider's "
                    "page",
                    character=f"U+{ord(character):04X} {name}".strip(),
                )
            )


def _is_invisible(character: str) -> bool:
    if character in " \t\n\r":
        return False
    is_selector = "\ufe00" <= character <= "\ufe0f" or "\u180b" <= character <= "\u180f"
    is_tag = "\U000e0000" <= character <= "\U000e0fff"
    return unicodedata.category(character)[0] in "CZ" or is_selector or is_tag or character in _BLANK


def _check_surroundings(text: str) -> None:
    """Raise ValueError for a key with its name, and for an address."""
    if _URL.match(text):
        raise ValueError("is an address (URL), not a key; copy the key that the provider shows there")
    if _BEARER.match(text):
        raise ValueError("begins with Bearer; paste only the key after it")
    if _AUTHORIZATION.match(text):
        raise ValueError("is an Authorization header; paste only the key in it")
    if "=" in text and _ASSIGNMENT.match(text):
        raise ValueError("is an assignment (NAME=value); paste only the value after the equals sign")
    if ":" in text and (found := _NAMED.match(text)) and not is_random(found[0]):
        raise ValueError("has its name in front of it (name: value); paste only the value after the colon")


def _check_marks(text: str) -> None:
    """Raise ValueError for what stays at the ends of a key that was copied from code, JSON or a sentence."""
    first, last = text[:1], text[-1:]
    if last in (",", ";"):
        raise ValueError("ends with a comma or a semicolon; remove it")
    if _ESCAPE.search(text):
        raise ValueError("ends with a backslash or an escape such as \\n, which is not a line break; remove it")
    if first in _QUOTES or last in _QUOTES:
        raise ValueError("has quotation marks around it; remove them")
    if first == "`" or last == "`":
        raise ValueError("has backticks around it; remove them")
    if first + last == "()":
        raise ValueError("has parentheses around it; remove them")
    if first + last == "<>":
        raise ValueError("has angle brackets around it; remove them, and replace a placeholder by your key")
    if first + last in ("[]", "{}"):
        raise ValueError("has brackets around it; remove them")
