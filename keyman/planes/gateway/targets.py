"""The address of a request: which service it is for, and what it asks the provider for.

Everything here works on the bytes that the client sent. They are forwarded as they are, so nothing may be read in one
way here and in another way by the provider. A path that can be is refused before anything else is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from keyman.errors import FieldError, InvalidRequest

REFUSED_METHODS = frozenset({"CONNECT", "TRACE"})

_UNCLEAR = re.compile(rb"[^!-~]|[%\\;]|//|/\.{1,2}(?:/|\Z)")
_NOT_OF_A_QUERY = re.compile(rb"[^!-~]|#")
"""What stands behind a `#` is no part of a query, and would be cut off on the way."""

CREDENTIAL_MEMBERS = frozenset({b"key", b"api_key", b"api-key", b"access_token", b"token", b"subscription-key"})
"""Members of a query that some provider takes as a credential."""

_MALFORMED = (
    "The path is not one that the gateway forwards: it must begin with / and the name of a service, and have only "
    "plain characters: no %, no backslash, no semicolon, no //, and no . or .. as a segment."
)
_CREDENTIAL = (
    "The query has a member that can be a credential, or one that begins with $. Send the token in a header: the "
    "gateway fills the key in."
)


class Target(NamedTuple):
    """The first segment of a path, and the rest of it as it was sent, beginning with a slash."""

    slug: str
    path: str


def parse_target(raw_path: bytes) -> Target:
    """Split a raw path. Raises InvalidRequest for one that two readers could understand differently."""
    if not raw_path.startswith(b"/") or _UNCLEAR.search(raw_path):
        raise InvalidRequest(_MALFORMED)
    slug, slash, rest = raw_path[1:].decode("ascii").partition("/")
    return Target(slug, f"{slash}{rest}")


def check_query(raw_query: bytes) -> None:
    """Raise InvalidRequest for a query with a credential, or with bytes that no query can have."""
    if _NOT_OF_A_QUERY.search(raw_query):
        raise InvalidRequest.at(FieldError("", "The query has characters that it cannot have. Percent-encode them."))
    for name in _names(raw_query):
        if name in CREDENTIAL_MEMBERS or name.startswith(b"$"):
            raise InvalidRequest(_CREDENTIAL)


def _names(raw_query: bytes) -> Iterator[bytes]:
    """Yield the decoded names of the members, in lower case. Some readers also split at semicolons."""
    for member in re.split(rb"[&;]", raw_query):
        yield unquote_to_bytes(member.partition(b"=")[0].replace(b"+", b" ")).strip().lower()
