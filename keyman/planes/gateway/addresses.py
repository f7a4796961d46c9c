"""Which addresses the gateway connects to: public ones only, unless an operator allows others.

A name is resolved for each connection, and its owner decides what it resolves to. So the check is where the socket is
made, of the address that the socket then connects to.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from keyman.errors import KeymanError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""What `getaddrinfo` returns for one address."""


class AddressRefused(KeymanError, OSError):
    """An address is not public. It is an OSError, as for an address where nobody answers: the next one is tried."""


def is_public(text: str) -> bool:
    """Return True for an address that is global, and all the IPv4 addresses in which are. A text that is no address is
    not public.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(found.is_global and not found.is_multicast for found in _unwrapped(address))


def _unwrapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Yield the IPv4 address that an IPv6 address leads to, or else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    low = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address in _NAT64 or int(address) < 2**32:  # the second is an IPv4-compatible address, or ::1
        yield low
    elif address in _LOCAL_NAT64:
        yield ipaddress.IPv4Address("0.0.0.0")  # noqa: S104  # where it leads to is a network's own business
    elif address.sixtofour is not None:
        yield address.sixtofour
    else:
        yield address


def public_socket(info: AddressInfo) -> socket.socket:
    """Return a socket for a connection to this address. Raises AddressRefused."""
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise AddressRefused("the address is not public")
    return socket.socket(family, kind, protocol)
