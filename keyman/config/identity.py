"""The group `KEYMAN_JWT_…`: whose JSON Web Tokens keyman accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from keyman.config import reader as parsers
from keyman.config.reader import Reader
from keyman.loopback import is_loopback

SCOPES = ("keys:read", "keys:write", "tokens:manage", "audit:read", "keys:use")
"""The scopes of `identity.tokens.Scope`, which a test compares."""

MAX_JWKS_FILE = 256 * 1024
"""Bytes, as for a set that is fetched."""

OF_JWT = frozenset(
    {
        "KEYMAN_JWT_ISSUER",
        "KEYMAN_JWT_AUDIENCE",
        "KEYMAN_JWT_JWKS_URL",
        "KEYMAN_JWT_JWKS_FILE",
        "KEYMAN_JWT_SCOPES",
        "KEYMAN_JWT_SIGNUP",
        "KEYMAN_JWT_CACERT",
    }
)
"""The variables of this group. The resolver reads them, too: it refuses a token that is for users as well."""


WORKLOAD_AUDIENCE = "keyman-resolver"
"""The audience of an application's JWT, unless an operator has chosen another one."""


@dataclass(frozen=True)
class JwtSettings:
    """The issuer whose tokens identify users. Its keys come from `jwks_url` or `jwks_file`, or are discovered.

    `scopes` are those of a token that names none of keyman's. With `signup_open`, an unknown subject becomes a user.
    """

    issuer: str
    audience: str
    jwks_url: str | None = None
    jwks_file: Path | None = None
    scopes: tuple[str, ...] = ("keys:read", "keys:write")
    signup_open: bool = True


def read_jwt(reader: Reader) -> JwtSettings | None:
    """Read the variables. Returns None if none of them is set, and if one that is needed is missing or invalid."""
    # A private CA is also for the issuers of applications, without an issuer of users.
    if not any(reader.has(name) for name in sorted(OF_JWT - {"KEYMAN_JWT_CACERT"})):
        return None
    has_keys = reader.has("KEYMAN_JWT_JWKS_URL") or reader.has("KEYMAN_JWT_JWKS_FILE")
    found = reader.required("KEYMAN_JWT_ISSUER", issuer if has_keys else discoverable_issuer, group=OF_JWT)
    audience = reader.required("KEYMAN_JWT_AUDIENCE", users_audience, group=OF_JWT)
    if reader.has("KEYMAN_JWT_JWKS_FILE"):
        reader.exclude("KEYMAN_JWT_JWKS_URL", by="KEYMAN_JWT_JWKS_FILE")
    signup = reader.optional("KEYMAN_JWT_SIGNUP", parsers.one_of("open", "closed"))
    read: dict[str, object] = {
        "jwks_url": reader.optional("KEYMAN_JWT_JWKS_URL", issuer_url),
        "jwks_file": reader.optional("KEYMAN_JWT_JWKS_FILE", jwks_file),
        "scopes": reader.optional("KEYMAN_JWT_SCOPES", _scopes),
        "signup_open": None if signup is None else signup == "open",
    }
    if found is None or audience is None:
        return None
    given = {name: value for name, value in read.items() if value is not None}
    return JwtSettings(found, audience, **given)  # type: ignore[arg-type]  # each value was parsed for its field


def load_jwt(environ: Mapping[str, str]) -> JwtSettings | None:
    """Read only this group, for an operator's commands. Raises ConfigurationError."""
    reader = Reader(environ)
    found = read_jwt(reader)
    reader.finish()
    return found


def issuer_url(raw: str) -> str:
    """Parse an address of an issuer, unchanged: https, or http on a loopback address."""
    try:
        parts = urlsplit(raw)
        _ = parts.port  # raises ValueError when the port is not a number
    except ValueError:
        raise ValueError("is not a URL") from None
    is_allowed = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    is_plain = "@" not in parts.netloc and "#" not in raw and re.fullmatch(r"[!-~]{1,2048}", raw)
    if not (parts.hostname and is_allowed and is_plain):
        raise ValueError("must be an https URL without credentials and a fragment; http is for loopback addresses only")
    return raw


def issuer(raw: str) -> str:
    """Parse an issuer, which is compared byte for byte."""
    if not re.fullmatch(r"[!-~]{1,500}", raw):
        raise ValueError("must be 1 to 500 printable ASCII characters without spaces")
    if raw.startswith("keyman:"):
        raise ValueError("must not begin with keyman:, which is for keyman's own issuers")
    return raw


def discoverable_issuer(raw: str) -> str:
    """Parse an issuer whose keys are found by its discovery document."""
    if "?" in raw:
        raise ValueError("must not have a query")
    return issuer(issuer_url(raw))


def audience_of(raw: str) -> str:
    """Parse an audience."""
    if not is_audience(raw):
        raise ValueError("must be 1 to 255 printable ASCII characters without spaces")
    return raw


def is_audience(text: str) -> bool:
    """Return whether a text can be an audience."""
    return re.fullmatch(r"[!-~]{1,255}", text) is not None


def users_audience(raw: str) -> str:
    """Parse the audience of the JWTs of users."""
    if raw == WORKLOAD_AUDIENCE:
        raise ValueError(f"must not be {WORKLOAD_AUDIENCE}, which is the audience of the JWTs of applications")
    return audience_of(raw)


def jwks_file(raw: str) -> Path:
    """Return the path of a file that contains a JSON Web Key Set."""
    path = parsers.existing_file(raw)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JWKS_FILE + 1)
    except OSError:
        raise ValueError("names a file that cannot be read") from None
    if len(content) > MAX_JWKS_FILE:
        raise ValueError(f"names a file that is larger than {MAX_JWKS_FILE // 1024} KiB")
    try:
        msgspec.json.decode(content, type=_KeySet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("names a file that is not a JSON Web Key Set") from None
    return path


class _KeySet(msgspec.Struct):
    keys: list[dict[str, object]]


def _scopes(raw: str) -> tuple[str, ...]:
    words = raw.split()
    if not set(words) <= set(SCOPES):
        raise ValueError(f"may contain only {', '.join(SCOPES)}, separated by spaces")
    return tuple(dict.fromkeys(words))
