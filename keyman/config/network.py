"""Parsers for the variables about addresses: the URL that browsers use, and the proxies in front of keyman."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address(raw: str) -> str:
    """Parse an http or https URL with a host. Returns it with scheme and host in lower case, as they have no case."""
    try:
        parts = _split(raw.strip())
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("must be an http or https URL with a host and without credentials or a query")
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def public_url(raw: str) -> str:
    """Parse a bare origin, such as `https://keys.example.com`."""
    origin = address(raw)
    if urlsplit(origin).path:
        raise ValueError("must be a bare origin such as https://keys.example.com, without a path")
    return origin


def networks(raw: str) -> tuple[Network, ...]:
    """Parse a comma-separated list of addresses and networks, such as `10.0.0.0/8, 192.0.2.7`."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in raw.split(",") if part.strip())
    except ValueError:
        raise ValueError("must be a comma-separated list of addresses or networks (CIDR)") from None


def _split(raw: str) -> SplitResult:
    parts = urlsplit(raw)
    _ = parts.port  # raises ValueError when the port is not a number
    return parts
