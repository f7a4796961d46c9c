"""Settings of the sign-in with OpenID Connect: `KEYMAN_OIDC_*`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from keyman.config.identity import discoverable_issuer
from keyman.config.reader import Reader, certificate_file, one_of, secret
from keyman.secret import Secret

OF_OIDC = frozenset(
    {
        "KEYMAN_OIDC_ISSUER",
        "KEYMAN_OIDC_CLIENT_ID",
        "KEYMAN_OIDC_CLIENT_SECRET",
        "KEYMAN_OIDC_SCOPES",
        "KEYMAN_OIDC_NAME",
        "KEYMAN_OIDC_SIGNUP",
        "KEYMAN_OIDC_DOMAINS",
        "KEYMAN_OIDC_CLAIM",
        "KEYMAN_OIDC_CACERT",
    }
)
"""The variables, which only the management plane uses."""


class Claim(NamedTuple):
    """What a provider must say of a user: the claim `name` is the string `value`, or an array that contains it."""

    name: str
    value: str


@dataclass(frozen=True)
class OidcSettings:
    """The identity provider, and who of its users may come.

    `name` is on the button. `signup_open` is False where only users with an account may sign in. `domains` are the
    allowed domains of verified e-mail addresses, in lower case; without any, the address does not matter.
    """

    issuer: str
    client_id: str
    client_secret: Secret | None = None
    scopes: str = "openid email profile"
    shown_name: str | None = field(default=None)
    signup_open: bool = True
    domains: frozenset[str] = frozenset()
    claim: Claim | None = None
    cacert: Path | None = None

    @property
    def name(self) -> str:
        """What people call the provider: the host of its issuer, if the operator gave no name."""
        return self.shown_name or urlsplit(self.issuer).hostname or self.issuer


def read_oidc(reader: Reader) -> OidcSettings | None:
    """Read the variables. Returns None without an issuer. The reader has the faults."""
    is_any = any(map(reader.has, sorted(OF_OIDC))) or reader.has_secret("KEYMAN_OIDC_CLIENT_SECRET")
    required = partial(reader.required, group=OF_OIDC) if is_any else reader.optional
    read = {
        "issuer": required("KEYMAN_OIDC_ISSUER", discoverable_issuer),
        "client_id": required("KEYMAN_OIDC_CLIENT_ID", _client_id),
        "client_secret": reader.optional("KEYMAN_OIDC_CLIENT_SECRET", secret, secret=True),
        "scopes": reader.optional("KEYMAN_OIDC_SCOPES", _scopes),
        "shown_name": reader.optional("KEYMAN_OIDC_NAME", _name),
        "signup_open": reader.optional("KEYMAN_OIDC_SIGNUP", lambda raw: one_of("open", "closed")(raw) == "open"),
        "domains": reader.optional("KEYMAN_OIDC_DOMAINS", _domains),
        "claim": reader.optional("KEYMAN_OIDC_CLAIM", _claim),
        "cacert": reader.optional("KEYMAN_OIDC_CACERT", certificate_file),
    }
    if read["issuer"] is None or read["client_id"] is None:
        return None
    given = {name: value for name, value in read.items() if value is not None}
    return OidcSettings(**given)  # type: ignore[arg-type]  # each value was parsed for its field


def _client_id(raw: str) -> str:
    if not re.fullmatch(r"[ -~]{1,255}", raw):
        raise ValueError("must be 1 to 255 printable ASCII characters")
    return raw


def _scopes(raw: str) -> str:
    scopes = raw.split()
    if "openid" not in scopes or not all(re.fullmatch(r"[!#-\[\]-~]+", scope) for scope in scopes):
        raise ValueError("must be scopes separated by spaces, and contain openid")
    return " ".join(scopes)


def _name(raw: str) -> str:
    if not raw.isprintable() or len(raw) > 50:
        raise ValueError("must be at most 50 printable characters")
    return raw


def _domains(raw: str) -> frozenset[str]:
    found = [part.strip().lower() for part in raw.split(",") if part.strip()]
    if not all(re.fullmatch(r"[^\s@,]+\.[^\s@,]+", domain) for domain in found):
        raise ValueError("must be a comma-separated list of domains such as example.com, without @")
    return frozenset(found)


def _claim(raw: str) -> Claim:
    name, equals, value = raw.partition("=")
    if not (name and equals and value):
        raise ValueError("must be a claim and its value, such as groups=keyman-users")
    return Claim(name, value)
