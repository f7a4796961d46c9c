"""Return URLs: where "Back to <application>" leads from the pages.

An operator registers them with an application. The application names one of them in a portal link, or an address below
it. So neither a link nor a request can send a browser to another site. A URL is matched against one strict pattern, and
not given to a lenient parser: then no browser can read it in another way than keyman does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Self

from keyman.config.network import DEFAULT_PORTS
from keyman.errors import FieldError, InvalidRequest
from keyman.loopback import is_loopback
from keyman.values import JsonSchema

MAX_LENGTH = 2048
"""The number of characters of a URL, which browsers and proxies all take."""

_SHAPE = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    # The characters of RFC 3986 (3.3, 3.4): no space, control character, backslash, quote or bracket, no `#`.
    r"(?P<path>(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*)"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    re.ASCII,
)

_HIDDEN = re.compile(r"%(?:2e|2f|5c|[01][0-9a-f]|7f)", re.IGNORECASE)
"""What a server may decode to a dot, a slash, a backslash or a control character, so that the path becomes another."""


class ReturnUrl(str):
    """An https URL, or http on loopback, with a path that means the same to every program that reads it."""

    __slots__ = ()
    schema: ClassVar[JsonSchema] = {
        "type": "string",
        "maxLength": MAX_LENGTH,
        "examples": ["https://app.example.com/settings"],
    }

    @classmethod
    def parse(cls, raw: object) -> Self:
        if not isinstance(raw, str):
            raise ValueError("must be a string")
        if len(raw) > MAX_LENGTH:
            raise ValueError(f"must be at most {MAX_LENGTH:,} characters long")
        origin, slash, rest = raw.partition("://")
        host, *_ = re.split(r"[/?]", rest, maxsplit=1)  # the scheme and the host have no case
        found = _SHAPE.fullmatch(f"{origin.lower()}{slash}{host.lower()}{rest[len(host) :]}")
        if found is None:
            raise ValueError(
                "must be a URL such as https://app.example.com/settings: with a name beyond ASCII written as xn--…, "
                "and without a user, a fragment, a backslash, spaces or control characters"
            )
        scheme, port, path = found["scheme"], found["port"] or "", found["path"] or "/"
        if scheme == "http" and not is_loopback(found["host"].strip("[]")):
            raise ValueError("must be https; http is only for a loopback address")
        if port and not 0 < int(port) < 65536:
            raise ValueError("must have a port from 1 to 65535, or none")
        if _HIDDEN.search(path) or {".", ".."} & set(path.split("/")):
            raise ValueError("must not have a segment . or .. in its path, nor %2e, %2f, %5c or a control character")
        is_default = port and int(port) == DEFAULT_PORTS[scheme]
        authority = found["host"] + (f":{int(port)}" if port and not is_default else "")
        return cls(f"{scheme}://{authority}{path}{found['query'] or ''}")

    @property
    def address(self) -> tuple[str, str]:
        """The origin (scheme, host and port) and the path."""
        found = _SHAPE.fullmatch(self)
        assert found is not None, "parse() has matched it"
        origin = self[: found.start("path")]
        return origin, found["path"]

    def covers(self, other: ReturnUrl) -> bool:
        """Return True if the other URL has the same origin and this path, or a path below it. Queries do not count."""
        (origin, path), (its_origin, its_path) = self.address, other.address
        below = path if path.endswith("/") else f"{path}/"
        return origin == its_origin and (its_path == path or its_path.startswith(below))


def choose(registered: Sequence[ReturnUrl], wanted: ReturnUrl | None) -> ReturnUrl:
    """Return the wanted URL, or the first registered one. Raises InvalidRequest for one that is not registered."""
    if wanted is None:
        return registered[0]
    if not any(known.covers(wanted) for known in registered):
        raise InvalidRequest.at(
            FieldError("return_url", "must be a return URL that the application is registered with, or below one")
        )
    return wanted
