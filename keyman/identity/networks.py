"""Which addresses count as one client, and which as one site.

Anyone who has one IPv6 address has its /64, and many a customer of a provider has a /48 with 65,536 of them.
"""

from __future__ import annotations

import ipaddress

SITE_BITS = {4: 24, 6: 48}
"""The number of leading bits that the addresses of a site have in common, by version of IP."""

NETWORK_BITS = {4: 32, 6: 64}
"""The number of leading bits that the addresses of a client have in common, by version of IP."""


def network_of(address: str) -> str:
    """Return the network of one client: an IPv4 address, or the /64 of an IPv6 address."""
    return _prefix(address, NETWORK_BITS).removesuffix("/32")


def site_of(address: str) -> str:
    """Return the site of a client: the /24 of an IPv4 address, or the /48 of an IPv6 address."""
    return _prefix(address, SITE_BITS)


def _prefix(address: str, bits: dict[int, int]) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    ip = (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    return str(ipaddress.ip_network((ip, bits[ip.version]), strict=False))
