"""Parsers for the variables about what is in front of keyman: the URL that browsers use, origins, proxies."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}


def address(raw: str) -> str:
    """Parse an http or https URL with a host. Returns it with scheme and host in lower case, as they have no case."""
    try:
        parts = _split(raw.strip())
    except ValueError:
        raise ValueError("is not a URL") from None
    # `netloc` and not `username`, which is empty in http://:password@host.
    is_bare = "@" not in parts.netloc and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise ValueError("must be an http or https URL with a host and without credentials, a query or a fragment")
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def public_url(raw: str) -> str:
    """Parse a bare origin, such as `https://keys.example.com`."""
    origin = address(raw)
    if not _ORIGIN.fullmatch(origin):  # it would never equal the `Origin` of a browser
        raise ValueError(
            "must be a bare origin such as https://keys.example.com: without a path, and with a name beyond ASCII "
            "written as xn--…"
        )
    return origin


def without_default_port(origin: str) -> str:
    """Return an http or https origin as browsers send it in `Origin`: without the default port of its scheme."""
    scheme = origin.partition("://")[0]
    return origin.removesuffix(f":{DEFAULT_PORTS[scheme]}") if scheme in DEFAULT_PORTS else origin


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def origins(raw: str) -> frozenset[str]:
    """Parse a comma-separated list of origins, such as `https://chat.example.com, http://localhost:5173`.

    An origin that no browser sends is refused, because it would never match: one with capitals, a path or the default
    port. `*` and `null` are refused, because they would be every page.
    """
    found = [part.strip() for part in raw.split(",") if part.strip()]
    if not all(_ORIGIN.fullmatch(origin) and without_default_port(origin) == origin for origin in found):
        raise ValueError(
            "must be a comma-separated list of origins such as https://chat.example.com: in lower case, without a "
            "path, without the default port, and neither * nor null"
        )
    return frozenset(found)


_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")
_TAKEN_ROOTS = ("/livez", "/readyz", "/problems")  # these are served without the root path, too


def root_path(raw: str) -> str:
    """Parse a root path, such as `/keyman`. Returns it without a slash at its end: `/` is none at all."""
    path = raw.rstrip("/")
    is_taken = any(path == taken or path.startswith(f"{taken}/") for taken in _TAKEN_ROOTS)
    if path and (not _ROOT_PATH.fullmatch(path) or is_taken or len(path) > 200):
        raise ValueError(
            "must be a path such as /keyman, of at most 200 letters, digits and . _ ~ -; it must not begin with "
            "/livez, /readyz or /problems"
        )
    return path


_COOKIE_NAME = re.compile(r"(?!__)[A-Za-z0-9_-]{1,64}")


def cookie_name(raw: str) -> str:
    """Parse the name of a cookie. `__Host-` and `__Secure-` are keyman's to add."""
    if not _COOKIE_NAME.fullmatch(raw):
        raise ValueError("must be 1 to 64 letters, digits, - and _, and must not begin with __")
    return raw


_HSTS = re.compile(r"max-age=[0-9]{1,10}( *; *(includeSubDomains|preload))*", re.IGNORECASE)


def hsts(raw: str) -> str:
    """Parse the value of a `Strict-Transport-Security` header (RFC 6797). An empty one turns the header off."""
    if raw and not _HSTS.fullmatch(raw):
        raise ValueError("must be empty, or max-age=SECONDS with or without ; includeSubDomains and ; preload")
    return raw


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
