"""Loopback hosts: the one definition that the server and the client share."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return True for `localhost`, names below it (RFC 6761, 6.3) and loopback addresses, such as `127.0.0.1`."""
    name = host.lower()
    return name == "localhost" or name.endswith(".localhost") or is_loopback_address(name)


def is_loopback_address(host: str) -> bool:
    """Return True for an IP address that is a loopback address. No name is one, because a resolver could answer it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
