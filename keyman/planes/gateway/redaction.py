"""Finds the value of a key in what a provider answers, and replaces it by its mask.

A value is looked for as it is, as text in JSON, and percent-encoded. Writers of JSON and of addresses differ in what
they escape, so each character of the value may be in any of its forms. Letters, digits, `-`, `.`, `_` and `~` have
one: no writer escapes them.

A value may be spread over any chunks. Only bytes that can be the beginning of the value are held back, until the next
chunk or the end. A mask is padded to the length of what it replaces, so that a `Content-Length` stays true.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from keyman.errors import KeymanError
from keyman.secret import Secret

MAX_WORK = 500_000
WORK_PER_BYTE = 4
"""Comparisons for one answer: MAX_WORK, and WORK_PER_BYTE for each of its bytes. A real answer needs less than one for
each byte, even if the value begins with a frequent letter. One that needs more was made to keep keyman busy.
"""

_PLAIN = re.compile(r"[A-Za-z0-9._~-]+|.", re.DOTALL)
_SHORT_ESCAPES = {'"': b'\\"', "\\": b"\\\\", "/": b"\\/"}


class TooMuchWork(KeymanError):
    """An answer was made so that looking for the value takes too long. The answer is not passed on."""


class _Partial(NamedTuple):
    """The text ends before it is decided whether the value is at this place."""


_PARTIAL: Final = _Partial()


def _forms(part: str) -> tuple[bytes, ...]:
    """Return every form of a part of a value: one for a plain part, several for a character that can be escaped."""
    raw = part.encode()
    if len(part) > 1 or re.fullmatch(r"[A-Za-z0-9._~-]", part):
        return (raw,)
    code = f"{ord(part):02x}"
    digits = {code, code.upper(), code[0] + code[1].upper(), code[0].upper() + code[1]}
    forms = {raw, *(f"%{hexes}".encode() for hexes in digits), *(f"\\u00{hexes}".encode() for hexes in digits)}
    if part in _SHORT_ESCAPES:
        forms.add(_SHORT_ESCAPES[part])
    return tuple(sorted(forms))


class Pattern:
    """The forms of one value. It is made once for each request, so it compiles an expression only for a value whose
    first character has several forms, such as one in JSON.
    """

    __slots__ = ("_first", "_left", "_mask", "_only", "_search", "_steps")

    def __init__(self, value: Secret, mask: str) -> None:
        self._steps = [_forms(part) for part in _PLAIN.findall(value.reveal())]
        self._first = self._steps[0]
        self._only = self._first[0] if len(self._first) == 1 else None
        self._search = None if self._only else re.compile(b"|".join(re.escape(form) for form in self._first))
        self._mask = mask.encode()
        self._left = MAX_WORK

    def __repr__(self) -> str:
        return "Pattern(***)"

    def split(self, text: bytes, *, is_last: bool = False) -> tuple[bytes, bytes]:
        """Return the text without the value, and the end of it that can be the beginning of the value.

        Nothing comes after a text that `is_last`, so it has no such end. Raises TooMuchWork.
        """
        passed: list[bytes] = []
        at = 0
        self._left += WORK_PER_BYTE * len(text)
        while (start := self._find(text, at)) >= 0:
            end = self._end(text, start, is_last=is_last)
            if isinstance(end, _Partial):
                return b"".join([*passed, text[at:start]]), text[start:]
            if end is None:
                passed.append(text[at : start + 1])
                at = start + 1
            else:
                passed += [text[at:start], self._replacement(end - start)]
                at = end
        held_from = len(text) if is_last else self._beginning(text, at)
        if not passed and held_from == len(text):
            return text, b""
        return b"".join([*passed, text[at:held_from]]), text[held_from:]

    def _find(self, text: bytes, at: int) -> int:
        """Return where the first part of the value is next, or a negative number."""
        if self._only is not None:
            return text.find(self._only, at)
        assert self._search is not None
        found = self._search.search(text, at)
        return -1 if found is None else found.start()

    def _end(self, text: bytes, start: int, *, is_last: bool) -> int | _Partial | None:
        """Return where the value ends that begins at `start`. None: it is not there.

        All forms are followed at once, so the time grows with the length of the value, whatever the text is.
        """
        places = {start}
        for forms in self._steps:
            reached: set[int] = set()
            for place in places:
                for form in forms:
                    self._left -= 1
                    if text.startswith(form, place):
                        reached.add(place + len(form))
                    elif not is_last and len(text) - place < len(form) and form.startswith(text[place:]):
                        return _PARTIAL
            if self._left < 0:
                raise TooMuchWork
            if not reached:
                return None
            places = reached
        return max(places)

    def _beginning(self, text: bytes, at: int) -> int:
        """Return where the end of the text begins that is the beginning of a first part, or its length."""
        return min(_beginning(text, at, form) for form in self._first)

    def _replacement(self, length: int) -> bytes:
        return self._mask[:length].ljust(length, b"*")


def _beginning(text: bytes, at: int, form: bytes) -> int:
    """Return where the end of the text begins that is the beginning of a form, or its length."""
    first = form[:1]
    start = text.find(first, max(at, len(text) - len(form) + 1))
    while start >= 0:
        if form.startswith(text[start:]):
            return start
        start = text.find(first, start + 1)
    return len(text)


class Redaction:
    """Removes a value from one text that comes in chunks."""

    __slots__ = ("_held", "_pattern")

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return what can be passed on. Raises TooMuchWork."""
        passed, self._held = self._pattern.split(self._held + chunk if self._held else chunk)
        return passed

    def finish(self, chunk: bytes = b"") -> bytes:
        """Return the rest of a text that ends with this chunk, without the value. Raises TooMuchWork."""
        passed, self._held = self._pattern.split(self._held + chunk, is_last=True)
        return passed


def redact(pattern: Pattern, text: bytes) -> bytes:
    """Return a whole text without the value. Raises TooMuchWork."""
    return pattern.split(text, is_last=True)[0]
