"""Where the metrics of a plane are served: `KEYMAN_METRICS_LISTEN`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Literal

METRICS_LISTEN = "KEYMAN_METRICS_LISTEN"

MAX_PORT = 65_535


@dataclass(frozen=True)
class Address:
    """Where a server listens. `host` is a name or an address without brackets. Port 0 is any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def after(self, ports: int) -> Address:
        """Return the address that is so many ports up. Port 0 stays. Raises ValueError if there is no such port."""
        if self.port + ports > MAX_PORT:
            raise ValueError("needs the next two ports, too: choose a lower one")
        return self if self.port == 0 else replace(self, port=self.port + ports)


Listen = Address | Literal["off"]

DEFAULTS = {
    "management": Address("127.0.0.1", 9464),
    "resolver": Address("127.0.0.1", 9465),
    "gateway": Address("127.0.0.1", 9466),
}
"""Where each plane serves its metrics, if the variable is not set."""

_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")


def listen(raw: str) -> Listen:
    """Parse `off`, or an address such as `127.0.0.1:9464`, `[::1]:9464` or `localhost:9464`."""
    if raw.lower() == "off":
        return "off"
    found = _ADDRESS.fullmatch(raw)
    if found is None or int(found["port"]) > MAX_PORT or not _is_ipv6(found["ipv6"]):
        raise ValueError("must be off, or an address with a port, such as 127.0.0.1:9464 or [::1]:9464")
    return Address(found["ipv6"] or found["host"], int(found["port"]))


def _is_ipv6(text: str | None) -> bool:
    """Return True for an IPv6 address, and where there is none."""
    try:
        return text is None or ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False
