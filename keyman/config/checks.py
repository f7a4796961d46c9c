"""The variables with which the management plane asks the gateway for live checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from keyman.config.network import address
from keyman.config.reader import Reader, certificate_file, secret
from keyman.secret import Secret

OF_CHECKS = frozenset({"KEYMAN_GATEWAY_URL", "KEYMAN_GATEWAY_TOKEN", "KEYMAN_GATEWAY_URL_CACERT"})


@dataclass(frozen=True)
class CheckSettings:
    """Where the gateway is, for the management plane, and the token of the application for live checks.

    `ca_certificate` replaces the CAs of the system.
    """

    url: str
    token: Secret
    ca_certificate: Path | None = None


def read_checks(reader: Reader) -> CheckSettings | None:
    """Read the variables. Returns None if none is set. The reader has the faults, such as one without the other."""
    is_any = any(map(reader.has, sorted(OF_CHECKS))) or reader.has_secret("KEYMAN_GATEWAY_TOKEN")
    required = partial(reader.required, group=OF_CHECKS) if is_any else reader.optional
    url = required("KEYMAN_GATEWAY_URL", address)
    token = required("KEYMAN_GATEWAY_TOKEN", secret, secret=True)
    certificate = reader.optional("KEYMAN_GATEWAY_URL_CACERT", certificate_file)
    if certificate is not None and url is not None and not url.startswith("https:"):
        reader.refuse("KEYMAN_GATEWAY_URL_CACERT", "is set, but KEYMAN_GATEWAY_URL is not an https://… address")
    return None if url is None or token is None else CheckSettings(url, token, certificate)
