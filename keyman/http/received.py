"""Reads what a request brings besides its body, before anything else is done with it: its bounds, headers, address."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from keyman.errors import FieldError, InvalidRequest
from keyman.http.exchange import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HEADERS = 100
"""Header fields of a request. A browser sends about 20, and a proxy adds about 10."""

MAX_HEADER_BYTES = 32 * 1024
"""Bytes of the names and values of all headers, with those of path and query. Servers in front allow 8 to 32 KiB."""

MAX_PARAMETERS = 100
"""Parameters of a query. No address of keyman has a tenth. Litestar keeps the last 1,024 parsed queries in memory."""


def is_too_large(scope: Scope) -> bool:
    """Return True for a request with more headers than MAX_HEADERS or MAX_HEADER_BYTES allow.

    Decide this before anything else is done with them: some parsers need time that grows with the square of a length.
    """
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        return True
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
    for name, value in headers:
        size += len(name) + len(value)
    return size > MAX_HEADER_BYTES


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name.

    Repeated headers are joined with commas (RFC 9110, 5.3), and cookies with semicolons (RFC 9113, 8.2.3).
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in found:
            value = f"{found[name]}{'; ' if name == 'cookie' else ', '}{value}"
        found[name] = value
    return found


def check_query(scope: Scope) -> None:
    """Raises InvalidRequest for a query with more than MAX_PARAMETERS."""
    if scope.get("query_string", b"").count(b"&") >= MAX_PARAMETERS:
        raise InvalidRequest.at(FieldError("", "The query has more than 100 parameters."))


def address_of(scope: Scope, headers: Mapping[str, str], trusted: Sequence[Network]) -> str | None:
    """Return the client's address: the peer's, or else the last forwarded one that is not of a trusted proxy."""
    client = scope.get("client")
    if not client:
        return None
    if not trusted or (forwarded := headers.get("x-forwarded-for")) is None:
        return _peer(str(client[0]))
    address = _parse_address(str(client[0]))
    if forwarded:
        hops = [part.strip() for part in forwarded.split(",") if part.strip()]
        while hops and address is not None and any(address in network for network in trusted):
            hop = _parse_address(_without_port(hops.pop()))
            if hop is None:
                break  # not an address, so its sender may have invented everything further left
            address = hop
    return None if address is None else _text(address)


_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


def _without_port(hop: str) -> str:
    """Return the address of `203.0.113.7:51234` or `[2001:db8::1]:443`, or the text as it is."""
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found["v6"] or found["v4"] or ""


REMEMBERED = 1024
"""Addresses that are kept parsed. A busy proxy has few peers, and parsing one takes as long as routing a request."""


def _parse_address(text: str) -> Address | None:
    """Parse an address, or return None. Drops the zone, which can be any text, and unwraps an IPv4-mapped address."""
    bare = text.partition("%")[0]
    return _parse(bare) if len(bare) <= 64 else None  # no address is longer, and no other text is kept in memory


@lru_cache(REMEMBERED)
def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


_text = lru_cache(REMEMBERED)(str)


@lru_cache(REMEMBERED)
def _peer(text: str) -> str | None:
    """Return the peer's address, which the server writes. The hash of its text costs less than that of an address."""
    address = _parse_address(text)
    return None if address is None else str(address)
