"""Reads variables one by one and collects the faults.

A parser takes the text of a variable and returns its value, or raises ValueError with the end of a sentence that begins
with the variable's name, such as "must be between 0.1 and 60 seconds". White space around a value never reaches a
parser: shells and files easily add a line break at the end. No message repeats a value: a mistyped secret is
still a secret.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from keyman.errors import ConfigurationError
from keyman.secret import Secret

T = TypeVar("T")

MAX_FILE_BYTES = 64 * 1024
"""A file named by a `…_FILE` variable holds one secret; a larger one is a mistake, such as a device or a log."""


class Reader:
    """The variables of one start. `finish` raises one error that names every variable at fault."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []

    def has(self, name: str) -> bool:
        """Return True when the variable is set. An empty one counts as not set, as in compose files and shells."""
        return bool(self._get(name))

    def has_secret(self, name: str) -> bool:
        """Return True when the variable or its `…_FILE` is set."""
        return self.has(name) or self.has(f"{name}_FILE")

    def file_of(self, name: str) -> Path | None:
        """Return the file that the variable's `…_FILE` names, for values that are read again, or None."""
        return Path(self._get(f"{name}_FILE")) if self.has(f"{name}_FILE") else None

    def exclude(self, name: str, *, by: str) -> None:
        """Record a fault when both `name` and `by`, which replaces it, are set."""
        if self.has_secret(name):
            self._faults.append(f"{name} and {by} are both set; keep one")

    def refuse(self, name: str, why: str) -> None:
        """Record a fault of a variable that is valid by itself, but not with the others."""
        self._faults.append(f"{name} {why}")

    def required(
        self, name: str, parse: Callable[[str], T], *, secret: bool = False, group: Iterable[str] = ()
    ) -> T | None:
        """Return the parsed value. Returns None, and records a fault, when the variable is not set or invalid.

        With a `group`, it is required because one of these variables is set, which the fault then names.
        """
        if not (self.has_secret(name) if secret else self.has(name)):
            reason = next((f", but {other} is" for other in sorted(group) if self.has_secret(other)), "")
            self._faults.append(f"{name} is not set" + (f" (nor {name}_FILE)" if secret else "") + reason)
            return None
        return self.optional(name, parse, secret=secret)

    def optional(self, name: str, parse: Callable[[str], T], *, secret: bool = False) -> T | None:
        """Return the parsed value, or None when the variable is not set.

        Returns None, and records a fault, when the variable is invalid.
        """
        try:
            text = self._text(name, secret=secret)
            return None if text is None else parse(text)
        except ValueError as fault:
            self._faults.append(sentence(name, fault))
            return None

    def even_empty(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Return the parsed value of a variable for which an empty text means something. See `optional`."""
        if name in self._environ and not self.has(name):
            return parse("")
        return self.optional(name, parse)

    def finish(self) -> None:
        """Raise ConfigurationError when any fault was recorded."""
        if self._faults:
            lines = "".join(f"\n  {fault}" for fault in self._faults)
            raise ConfigurationError(f"Invalid configuration:{lines}")

    def _text(self, name: str, *, secret: bool) -> str | None:
        if not (secret and self.has(f"{name}_FILE")):
            return self._get(name) or None
        if self.has(name):
            raise ValueError(f"and {name}_FILE are both set; keep one")
        return read_secret_file(Path(self._get(f"{name}_FILE")))

    def _get(self, name: str) -> str:
        """Return a variable without the white space around it: a line break at its end is a copying mistake."""
        return self._environ.get(name, "").strip()


def sentence(name: str, fault: ValueError) -> str:
    """Return what is wrong with a variable, from the end of that sentence."""
    end = str(fault)
    return name + end if end.startswith("_FILE") else f"{name} {end}"


def read_secret_file(path: Path) -> str:
    """Return the content of a `…_FILE`, without the white space around it.

    Raises ValueError with the end of a sentence that begins with the variable's name.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError("_FILE names a file that is too large to be one secret")
        text = content.decode("utf-8-sig").strip()  # editors on Windows begin a file with a mark of its encoding
    except FileNotFoundError:
        raise ValueError("_FILE names a file that does not exist") from None
    except (OSError, UnicodeDecodeError):
        # `from None`: the text of the original error would repeat the path or bytes of the file.
        raise ValueError("_FILE names a file that cannot be read as text") from None
    if not text:
        raise ValueError("_FILE names an empty file")
    return text


def text(raw: str) -> str:
    """Return the text unchanged."""
    return raw


def secret(raw: str) -> Secret:
    """Return the text as a Secret, without the white space around it.

    Only printable ASCII: a token is sent in a header, which cannot have a line break.
    """
    found = raw.strip()
    if not re.fullmatch(r"[!-~]+", found):
        raise ValueError("must be one word of printable ASCII characters; a file must hold nothing else")
    return Secret(found)


def one_of(*words: str) -> Callable[[str], str]:
    """Return a parser that accepts one of these words, in upper or lower case."""

    def parse(raw: str) -> str:
        if raw.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return raw.lower()

    return parse


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """Return a parser of a number from `low` to `high`. The error message uses `unit`, such as "seconds"."""

    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(f"must be a number of {unit}") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:.0f} {unit}")
        return value

    return parse


def whole_number(low: int, high: int, unit: str) -> Callable[[str], int]:
    """Return a parser of a whole number from `low` to `high`. The error message uses `unit`, such as "keys"."""

    def parse(raw: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", raw.strip()):
            raise ValueError(f"must be a whole number of {unit}")
        value = int(raw)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high} {unit}")
        return value

    return parse


def existing_file(raw: str) -> Path:
    """Return the path of a file that exists."""
    path = Path(raw)
    try:
        is_file = path.is_file()
    except OSError:  # the name is too long, or a directory in the path is not accessible
        raise ValueError("names a file that cannot be reached") from None
    if not is_file:
        raise ValueError("names a file that does not exist")
    return path


def certificate_file(raw: str) -> Path:
    """Return the path of a file that contains certificates in PEM."""
    path = existing_file(raw)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except OSError:  # errors of OpenSSL are of this class too
        raise ValueError("names a file that cannot be read as PEM certificates") from None
    return path
