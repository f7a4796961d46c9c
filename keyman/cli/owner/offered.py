"""What the command line knows of the services of a server: what `GET /api/services` says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import click

from keyman.cli.groups import NO_ARGUMENT
from keyman.client import Service
from keyman.providers import masking
from keyman.providers.credentials import SERVICE_ACCOUNT
from keyman.providers.naming import service_of
from keyman.secret import Secret

TAKES_ACCOUNTS = "GOOGLE_VERTEX"
"""The service whose keys are service-account files. The API does not say what a JSON credential has in it."""


class Offered:
    """The services, as `providers.naming` asks for them."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = {service.service: service for service in services}
        self._exclusive = {prefix: one.service for one in services for prefix in one.exclusive_prefixes}

    def __contains__(self, service: str) -> bool:
        return service in self._services

    def __getitem__(self, service: str) -> Service:
        return self._services[service]

    def services(self) -> Iterable[Service]:
        return self._services.values()

    def exclusive_prefixes(self) -> Mapping[str, str]:
        return self._exclusive

    def claim_on(self, value: str) -> str:
        return _longest(self._exclusive, value)

    def prefix_of(self, service: str, value: str) -> str:
        return _longest(self._services[service].prefixes, value)

    def taker(self, credential: Mapping[str, object]) -> Service | None:
        return self._services.get(TAKES_ACCOUNTS) if SERVICE_ACCOUNT.fits(credential) else None

    def find(self, name: str) -> Service:
        """Return the service that somebody names, in whatever case, with `-` or `_`. Raises click.UsageError."""
        wanted = name.strip().upper().replace("-", "_").replace(" ", "_")
        by_name = {service.name.upper().replace(" ", "_"): service for service in self.services()}
        found = self._services.get(wanted) or by_name.get(wanted)
        if found is not None:
            return found
        if self.claim_on(name.strip()):
            raise click.UsageError(NO_ARGUMENT)
        close = get_close_matches(wanted, self._services, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise click.BadParameter(
            f"There is no such service.{meant} There are: {', '.join(self._services)}.", param_hint="SERVICE"
        )

    def recognise(self, value: Secret) -> Service | None:
        """Return the service that the value certainly belongs to, or None."""
        return self._services.get(service_of(self, "", value.reveal()))

    def doubt(self, service: str, value: Secret) -> str | None:
        """Return how keys of this service usually begin, if this value begins in another way."""
        known = self._services[service]
        if not known.prefixes or service == TAKES_ACCOUNTS or self.prefix_of(service, value.reveal()):
            return None
        return f"{known.name} keys begin with {', '.join(known.prefixes)}"

    def mask(self, service: str, value: Secret) -> str:
        """Return the value as keyman will show it: a file is shown as something else, so as nothing here."""
        text = value.reveal()
        return "..." if text.startswith("{") else masking.mask(text, self.prefix_of(service, text))


def _longest(prefixes: Iterable[str], value: str) -> str:
    return max((prefix for prefix in prefixes if value.startswith(prefix)), key=len, default="")
