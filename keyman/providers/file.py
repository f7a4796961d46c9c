"""Reads the operator's file of services, KEYMAN_SERVICES_FILE.

An entry adds a service, or changes one that keyman ships: what it does not give stays as it is, except a check at an
absolute URL of a service whose `base_url` the entry changes. A ValueError describes a fault, and quotes nothing from
the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from keyman.extras import require_server
from keyman.loopback import is_loopback_address
from keyman.providers.paths import PathRule
from keyman.providers.services import SHIPPED, Service
from keyman.providers.settings import ENDPOINT, Setting
from keyman.providers.upstreams import ENDPOINT_URL, Check, Upstream

require_server()

RESERVED = frozenset({"V1", "LIVEZ", "READYZ", "METRICS", "PROBLEMS", "OPENAPI", "DOCS"})
"""Identifiers that no service can have: the gateway serves something else at their paths."""

MAX_PORT = 65535

SLUG = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PREFIX = re.compile(r"[!-~]{2,16}")
_CONSOLE = re.compile(r"https://[!-~]{1,500}")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_URL = re.compile(
    rf"https?://(({_LABEL}\.)*{_LABEL}|\[[0-9a-f:.]+\])(:[1-9][0-9]{{0,4}})?(/(?!\.{{1,2}}(/|\Z))[A-Za-z0-9._~-]+)*"
)
_NAME = r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"\.?{_NAME}|{_NAME}:[1-9][0-9]{{0,4}}")
_HEADER = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_NO_CREDENTIAL = frozenset(
    {"host", "connection", "content-length", "content-type", "content-encoding", "transfer-encoding", "te", "cookie"}
)
"""Headers that have another meaning, so none of them can be the header for a key."""

_OF_SERVICE = ("name", "prefix", "exclusive", "console_url", "allowed_hosts")
_OF_UPSTREAM = ("base_url", "auth", "paths", "check", "allow_private")

FIELDS = ("service", *_OF_SERVICE, *_OF_UPSTREAM, "settings")
"""The fields of an entry."""


class _Entry(msgspec.Struct):
    service: str
    name: str | msgspec.UnsetType = msgspec.UNSET
    prefix: str | msgspec.UnsetType | None = msgspec.UNSET
    exclusive: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    console_url: str | msgspec.UnsetType | None = msgspec.UNSET
    base_url: str | msgspec.UnsetType = msgspec.UNSET
    auth: str | msgspec.UnsetType = msgspec.UNSET
    paths: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    check: Check | msgspec.UnsetType | None = msgspec.UNSET
    allow_private: bool | msgspec.UnsetType = msgspec.UNSET
    allowed_hosts: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    settings: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET

    def given(self, names: tuple[str, ...]) -> dict[str, object]:
        """Return those of the named fields that the entry has."""
        return {name: value for name in names if (value := getattr(self, name)) is not msgspec.UNSET}


def read_services(path: Path) -> list[Service]:
    """Read the services of a JSON or TOML file, each with what keyman ships of it. Raises ValueError."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError):
        raise ValueError("names a file that cannot be read as JSON, or as TOML if its name ends in .toml") from None
    entries = content.get("services") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError('must contain a list of services, in TOML as "[[services]]"')
    known = {service.service: service for service in SHIPPED}
    return [_numbered(number, entry, known) for number, entry in enumerate(entries, 1)]


def _numbered(number: int, entry: object, known: Mapping[str, Service]) -> Service:
    try:
        return _service(entry, known)
    except ValueError as fault:
        raise ValueError(f"has an invalid entry {number}: {fault}") from None


def _service(entry: object, known: Mapping[str, Service]) -> Service:
    if isinstance(entry, dict) and not entry.keys() <= set(FIELDS):
        raise ValueError(f"it has an unknown field; the known fields are {', '.join(FIELDS)}")
    check = entry.get("check") if isinstance(entry, dict) else None
    if isinstance(check, dict) and not check.keys() <= {"method", "path", "url"}:
        raise ValueError("check has an unknown field; the known fields are method, path, url")
    try:
        found = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as fault:
        raise ValueError(str(fault)) from None
    if not SLUG.fullmatch(found.service) or found.service in RESERVED:
        raise ValueError(
            "service must be 1 to 64 upper case letters, digits and _, start with a letter, and be none of "
            f"{', '.join(sorted(RESERVED))}"
        )
    shipped = known.get(found.service)
    if shipped is None and found.name is msgspec.UNSET:
        raise ValueError("it needs a name")
    service = shipped or Service(found.service, "")
    own = found.given(_OF_SERVICE)
    if "prefix" in own:
        own["other_prefixes"] = ()
    if not isinstance(found.settings, msgspec.UnsetType):
        own["settings"] = tuple(_setting(name) for name in found.settings)
    service = msgspec.structs.replace(service, **own, upstream=_upstream(service.upstream, found))
    _check_service(service)
    return service


def _setting(name: str) -> Setting:
    known = {setting.name: setting for service in SHIPPED for setting in service.settings}
    if name not in known:
        raise ValueError(f"settings may contain only {', '.join(known)}")
    return known[name]


def _upstream(shipped: Upstream | None, entry: _Entry) -> Upstream | None:
    given = entry.given(_OF_UPSTREAM)
    if not given:
        return shipped
    if shipped is None and "base_url" not in given:
        raise ValueError("it needs a base_url, because it says how requests are sent")
    upstream = shipped or Upstream("")
    is_moved = given.get("base_url", upstream.base_url) != upstream.base_url
    if is_moved and upstream.check is not None and upstream.check.url is not None:
        # This URL is an address of the provider, which a key for another address may not reach.
        given = {"check": None, **given}
    return msgspec.structs.replace(upstream, **given)


def _check_service(service: Service) -> None:
    if not 0 < len(service.name) <= 100:
        raise ValueError("name must be 1 to 100 characters long")
    prefixes = [*service.exclusive, *([service.prefix] if service.prefix is not None else [])]
    if not all(_PREFIX.fullmatch(prefix) for prefix in prefixes):
        # With a longer prefix, every mask would show too much of the value.
        raise ValueError("a prefix must be 2 to 16 printable ASCII characters, without spaces")
    if service.console_url is not None and not _CONSOLE.fullmatch(service.console_url):
        raise ValueError("console_url must be an address that begins with https://")
    if not all(len(host) <= 253 and _HOST.fullmatch(host) for host in service.allowed_hosts):
        raise ValueError("allowed_hosts must be names in lower case: .example.com for all below it, or host[:port]")
    if not service.allowed_hosts and any(setting.names_host for setting in service.settings):
        # Without one, the form of the setting would be "https://" and nothing else.
        raise ValueError("settings has endpoint, so allowed_hosts must name at least one host that it may have")
    if service.upstream is not None:
        _check_upstream(service, service.upstream)


def _check_upstream(service: Service, upstream: Upstream) -> None:
    is_endpoint = upstream.base_url == ENDPOINT_URL and ENDPOINT in service.settings
    if not is_endpoint:
        _check_url("base_url", upstream.base_url, service.settings)
    if not _HEADER.fullmatch(upstream.auth) or upstream.auth in _NO_CREDENTIAL:
        raise ValueError("auth must be bearer, or the name of a header in lower case, such as x-api-key")
    for entry in upstream.paths:
        PathRule.parse(entry)
    if upstream.check is not None:
        _check_check(upstream.check, service.settings)


def _check_url(field: str, url: str, settings: Sequence[Setting]) -> None:
    """Check a URL in which a setting that decides where a key is sent may stand in braces."""
    for setting in settings:
        if setting.decides and not setting.names_host:
            url = url.replace(f"{{{setting.name}}}", "x")
    if "{" in url or "}" in url:
        raise ValueError(
            f"{field} may have only settings of the service in braces that decide where a key goes, such as {{region}}"
        )
    if not _URL.fullmatch(url):
        raise ValueError(
            f"{field} must be https:// and a host in lower case, with a port or a path if needed, and nothing else"
        )
    parts = urlsplit(url)
    if parts.netloc.rpartition(":")[2].isdigit() and int(parts.netloc.rpartition(":")[2]) > MAX_PORT:
        raise ValueError(f"{field} has an invalid port")
    if parts.scheme == "http" and not is_loopback_address(parts.hostname or ""):
        raise ValueError(f"{field} must be https://; http:// is only for a loopback address such as 127.0.0.1")


def _check_check(check: Check, settings: Sequence[Setting]) -> None:
    if check.method not in ("GET", "POST"):
        raise ValueError("the method of check must be GET or POST")
    if (check.path is None) == (check.url is None):
        raise ValueError("check needs either a path or a url")
    if check.path is not None:
        PathRule.parse(f"{check.method} {check.path}")
        if "{" in check.path:
            raise ValueError("the path of check must be a whole path, without {name}")
    else:
        _check_url("the url of check", check.url or "", settings)
