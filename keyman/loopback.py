"""Loopback hosts: the one definition that the server and the client share."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return True for `localhost`, names below it (RFC 6761, 6.3) and loopback addresses, such as `127.0.0.1`."""
    name = host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
