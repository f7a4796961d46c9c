"""The variables that `keyman dev` takes from its environment, for the planes that use them.

The database and Vault are its own, so it does not take their variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from keyman.config.metrics import METRICS_LISTEN, listen
from keyman.config.settings import OF_BOTH_PLANES, OF_MANAGEMENT, OF_RESOLVER, OF_THE_GATEWAY, check_own
from keyman.dev.home import is_utf8
from keyman.errors import ConfigurationError
from keyman.providers.file import read_services

FILES_OF_SECRETS = frozenset({"KEYMAN_OIDC_CLIENT_SECRET_FILE", "KEYMAN_GATEWAY_TOKEN_FILE"})
"""The variables that name the file of a secret instead of the secret. They are for the management plane."""

OF_FILES = ("_FILE", "_CACERT")
"""How the names of all variables end that name a file."""

EVEN_EMPTY = "KEYMAN_HSTS"
"""The one variable that means something when it is empty."""

OWN = ("KEYMAN_DATABASE_", "KEYMAN_VAULT_")
"""How the names of the variables begin that `keyman dev` sets itself."""


class Taken(NamedTuple):
    """The variables of each plane, and the names of those that are set and do not count."""

    management: dict[str, str]
    resolver: dict[str, str]
    gateway: dict[str, str]
    ignored: tuple[str, ...]

    @property
    def root_path(self) -> str:
        return self.management.get("KEYMAN_ROOT_PATH", "").rstrip("/")


def take(environ: Mapping[str, str]) -> Taken:
    """Read the variables. Raises ConfigurationError, which names every invalid one."""
    wanted = OF_BOTH_PLANES | OF_MANAGEMENT | OF_RESOLVER | OF_THE_GATEWAY | FILES_OF_SECRETS
    found = {name: environ[name].strip() for name in sorted(wanted) if name in environ}
    found = {name: value for name, value in found.items() if value or name == EVEN_EMPTY}
    if broken := [name for name, value in found.items() if not is_utf8(value) or len(value.splitlines()) > 1]:
        raise ConfigurationError(f"{', '.join(broken)}: must be one line of UTF-8 text")
    check_own(found, read_services)
    for name in found:
        if name.endswith(OF_FILES):  # operators' commands with --home may run in another directory
            found[name] = os.path.abspath(found[name])

    def of(names: frozenset[str], ports: int) -> dict[str, str]:
        given = {name: value for name, value in found.items() if name in OF_BOTH_PLANES | names}
        if METRICS_LISTEN in given:
            given[METRICS_LISTEN] = _ports_up(given[METRICS_LISTEN], ports)
        return given

    return Taken(
        of(OF_MANAGEMENT | FILES_OF_SECRETS, 0),
        of(OF_RESOLVER, 1),
        of(OF_THE_GATEWAY, 2),
        tuple(sorted(name for name, value in environ.items() if name.startswith(OWN) and value.strip())),
    )


def _ports_up(metrics: str, ports: int) -> str:
    """Return the address for the metrics of the plane that is so many ports up. Raises ConfigurationError."""
    address = listen(metrics)
    if address == "off":
        return address
    try:
        return str(address.after(ports))
    except ValueError as fault:
        raise ConfigurationError(f"{METRICS_LISTEN} {fault}") from None
