"""The services that the gateway serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keyman.errors import Conflict, Sentence
from keyman.providers.catalogue import Catalogue
from keyman.providers.paths import PathRule
from keyman.providers.services import Service
from keyman.providers.upstreams import ENDPOINT_URL, Upstream


@dataclass(frozen=True)
class Forwarded:
    """A service that the gateway serves."""

    service: Service
    upstream: Upstream
    rules: Sequence[PathRule]

    def base_url(self, settings: Mapping[str, str]) -> str:
        """Return the base URL for a key with these settings. Raises Conflict, which names one that is missing or wrong.

        The settings were checked when the key was stored, but the operator may allow less since then.
        """
        return self.filled(self.upstream.base_url, settings)

    def filled(self, url: str, settings: Mapping[str, str]) -> str:
        """Return a URL with these settings of a key in it. Raises Conflict as `base_url` does."""
        for setting in self.service.settings:
            if f"{{{setting.name}}}" not in url:
                continue
            value = settings.get(setting.name, "")
            if not setting.accepts(value, self.service.allowed_hosts):
                raise Conflict(
                    Sentence(
                        "This key cannot be used here: its setting {setting} is missing or not allowed. Its owner can "
                        "store the key again with it.",
                        setting=setting.name,
                    )
                )
            bare = value.lower().rstrip("/") if url == ENDPOINT_URL else value
            url = url.replace(f"{{{setting.name}}}", bare)
        return url

    def proves(self, method: str, path: str) -> bool:
        """Return True if an answer without a fault shows that the key works. Lists of models can be public."""
        check = self.upstream.check
        return method not in ("GET", "HEAD") or (check is not None and check.path == path)


def forwarded(catalogue: Catalogue) -> dict[str, Forwarded]:
    """Return what the gateway serves, by the first segment of a path."""
    return {
        service.slug: Forwarded(service, service.upstream, service.upstream.rules())
        for service in catalogue.services()
        if service.upstream is not None
    }
