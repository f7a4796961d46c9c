"""Which addresses the gateway connects to: public ones only, unless an operator allows others.

A name is resolved for each connection, and its owner decides what it resolves to. So the check is where the socket is
made, of the address that the socket then connects to.
"""

from __future__ import annotations

import ipaddress
import socket

from keyman.errors import KeymanError

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA has assigned for the internet. Python calls what is outside of it global, such as `fec0::/10`, which
was for sites, or `64:ff9b:1::/48`, which each network uses as it likes.
"""

_SPECIAL: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocols of the IETF
    ipaddress.IPv4Network("192.88.99.0/24"),  # relays of 6to4, which are no more
    ipaddress.IPv6Network("2001::/23"),  # protocols of the IETF, and Teredo, which can hide an IPv4 address
    ipaddress.IPv6Network("3fff::/20"),  # for documentation
)
"""Ranges of the IANA special-purpose registries that some version of Python calls global, in whole or in part."""

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""What `getaddrinfo` returns for one address."""


class AddressRefused(KeymanError, OSError):
    """An address is not public. It is an OSError, as for an address where nobody answers: the next one is tried."""


def is_public(text: str) -> bool:
    """Return True for an address that is global, and so is the IPv4 address in it. A text that is no address is not
    public.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    found = _unwrapped(address)
    if isinstance(found, ipaddress.IPv6Address) and found not in _GLOBAL_UNICAST:
        return False
    return found.is_global and not found.is_multicast and not any(found in network for network in _SPECIAL)


def _unwrapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that an IPv6 address leads to, or else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def public_socket(info: AddressInfo) -> socket.socket:
    """Return a socket for a connection to this address. Raises AddressRefused."""
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise AddressRefused("the address is not public")
    return socket.socket(family, kind, protocol)
