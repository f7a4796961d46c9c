"""The variables with which the management plane asks the gateway for live checks."""

from __future__ import annotations

from dataclasses import dataclass

from keyman.config.network import address
from keyman.config.reader import Reader, secret
from keyman.secret import Secret

OF_CHECKS = frozenset({"KEYMAN_GATEWAY_URL", "KEYMAN_GATEWAY_TOKEN"})


@dataclass(frozen=True)
class CheckSettings:
    """Where the gateway is, for the management plane, and the token of the application for live checks."""

    url: str
    token: Secret


def read_checks(reader: Reader) -> CheckSettings | None:
    """Read the variables. Returns None if neither is set. The reader has the faults, such as one without the other."""
    is_any = reader.has("KEYMAN_GATEWAY_URL") or reader.has_secret("KEYMAN_GATEWAY_TOKEN")
    required = reader.required if is_any else reader.optional
    url = required("KEYMAN_GATEWAY_URL", address)
    token = required("KEYMAN_GATEWAY_TOKEN", secret, secret=True)
    return None if url is None or token is None else CheckSettings(url, token)
