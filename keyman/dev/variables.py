"""The variables that `keyman dev` takes from its environment, for the planes that use them.

The database and Vault are its own, so it does not take their variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from keyman.config.settings import OF_BOTH_PLANES, OF_MANAGEMENT, OF_RESOLVER, check_own
from keyman.dev.home import is_utf8
from keyman.errors import ConfigurationError
from keyman.providers.catalogue import read_services

EVEN_EMPTY = "KEYMAN_HSTS"
"""The one variable that means something when it is empty."""

OWN = ("KEYMAN_DATABASE_", "KEYMAN_VAULT_")
"""How the names of the variables begin that `keyman dev` sets itself."""


class Taken(NamedTuple):
    """The variables of each plane, and the names of those that are set and do not count."""

    management: dict[str, str]
    resolver: dict[str, str]
    ignored: tuple[str, ...]

    @property
    def root_path(self) -> str:
        return self.management.get("KEYMAN_ROOT_PATH", "").rstrip("/")


def take(environ: Mapping[str, str]) -> Taken:
    """Read the variables. Raises ConfigurationError, which names every invalid one."""
    wanted = OF_BOTH_PLANES | OF_MANAGEMENT | OF_RESOLVER
    found = {name: environ[name].strip() for name in sorted(wanted) if name in environ}
    found = {name: value for name, value in found.items() if value or name == EVEN_EMPTY}
    if broken := [name for name, value in found.items() if not is_utf8(value) or len(value.splitlines()) > 1]:
        raise ConfigurationError(f"{', '.join(broken)}: must be one line of UTF-8 text")
    check_own(found, read_services)
    if "KEYMAN_SERVICES_FILE" in found:  # operators' commands with --home may run in another directory
        found["KEYMAN_SERVICES_FILE"] = os.path.abspath(found["KEYMAN_SERVICES_FILE"])
    return Taken(
        {name: value for name, value in found.items() if name not in OF_RESOLVER},
        {name: value for name, value in found.items() if name not in OF_MANAGEMENT},
        tuple(sorted(name for name, value in environ.items() if name.startswith(OWN) and value.strip())),
    )
