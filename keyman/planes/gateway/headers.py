"""Which header fields go to the provider, and which come back.

Names are compared in lower case, and with `-` for `_`: some servers take `X_Api_Key` for `X-Api-Key`. So no field with
`_` in its name is sent, and a request cannot say `Content_Length` or `Transfer_Encoding` to such a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from keyman.errors import InvalidRequest, ProviderAnswerRefused

Fields = list[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of one connection (RFC 9110, 7.6.1). `Connection` can name others."""

_NOT_SENT = HOP_BY_HOP | {
    b"expect",
    b"max-forwards",
    b"via",
    b"host",
    b"cookie",
    b"accept-encoding",
    b"forwarded",
    b"x-real-ip",
    b"true-client-ip",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    b"x-original-url",
    b"x-rewrite-url",
    b"origin",
    b"referer",
    b"range",
    b"if-range",
    # Credentials.
    b"authorization",
    b"proxy-authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"x-goog-user-project",
    b"x-amz-security-token",
    b"ocp-apim-subscription-key",
    b"x-functions-key",
}
_NOT_SENT_BEGINNINGS = (b"keyman-", b"x-forwarded-", b"cf-", b"sec-", b"x-goog-iam-")

_NOT_RETURNED = HOP_BY_HOP | {
    b"set-cookie",
    b"strict-transport-security",
    b"clear-site-data",
    b"alt-svc",
    b"refresh",
    b"via",
    b"server",
}
_NOT_RETURNED_BEGINNINGS = (
    b"keyman-",
    b"access-control-",
    b"proxy-",
    # Orders to the server in front of the gateway: which file of its own to send, or how to buffer and cache an answer.
    b"x-accel-",
    b"x-sendfile",
    b"x-lighttpd-",
    b"x-litespeed-",
    b"x-reproxy-",
)


class Credential(NamedTuple):
    """The header that carries the key. Its text is secret."""

    name: bytes
    value: bytes

    def __repr__(self) -> str:
        return "Credential(***)"


def credential(auth: str, value: str) -> Credential:
    """Return the header for a key, for the `auth` of a service."""
    if auth == "bearer":
        return Credential(b"authorization", f"Bearer {value}".encode())
    return Credential(auth.encode(), value.encode())


def forwardable(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return the fields of a client that may be forwarded.

    Raises InvalidRequest for one that cannot: its value is not UTF-8, or it is not a field of HTTP.
    """
    passed = [field for field in _passed(fields, _NOT_SENT, _NOT_SENT_BEGINNINGS) if b"_" not in field[0]]
    for name, value in passed:
        _require_text(name, value)
    return passed


def to_send(fields: Iterable[tuple[bytes, bytes]], own: Credential, defaults: Iterable[tuple[str, str]]) -> Fields:
    """Return the fields for the provider: the forwardable ones of the client, and the key in its own field.

    `defaults` are sent unless the client sends them.
    """
    sent = [field for field in fields if plain(field[0]) != plain(own.name)]
    present = {plain(name) for name, _ in sent}
    added = [(name.encode(), value.encode()) for name, value in defaults if name.encode() not in present]
    return [*sent, *added, (b"accept-encoding", b"identity"), own]


def to_return(fields: Iterable[tuple[bytes, bytes]], redact: Callable[[bytes], bytes]) -> Fields:
    """Return the fields for the client, with `redact` applied to each value.

    Raises ProviderAnswerRefused for a field that could become two lines on the way to the client.
    """
    passed = _passed(fields, _NOT_RETURNED, _NOT_RETURNED_BEGINNINGS)
    returned = [(name.lower(), redact(value)) for name, value in passed]
    if not all(_NAME.fullmatch(name) and not _CONTROL.search(value) for name, value in returned):
        raise ProviderAnswerRefused("The provider sent a header that is not valid.")
    return returned


def plain(name: bytes) -> bytes:
    """Return the form of a name that is compared."""
    return name.lower().replace(b"_", b"-")


def values_of(fields: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """Return the values of all fields with this name."""
    return [value for name, value in fields if plain(name) == wanted]


def _passed(
    fields: Iterable[tuple[bytes, bytes]], names: frozenset[bytes], beginnings: tuple[bytes, ...]
) -> Iterator[tuple[bytes, bytes]]:
    known = list(fields)
    named = {plain(part.strip()) for value in values_of(known, b"connection") for part in value.split(b",")}
    for name, value in known:
        compared = plain(name)
        if compared not in names and compared not in named and not compared.startswith(beginnings):
            yield name, value


def _require_text(name: bytes, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(
            "A header has a value that is not UTF-8. Encode it in another way, or leave it out."
        ) from None
    if not _NAME.fullmatch(name.lower()) or _CONTROL.search(value):
        raise InvalidRequest("A header is not valid: its name or its value has characters that HTTP does not allow.")
