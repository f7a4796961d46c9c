"""Settings → API Keys → Use it: the address and ready lines with which one uses a key through the gateway."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from keyman.config.settings import Settings
from keyman.errors import NotFound
from keyman.http.guards import needs
from keyman.http.requests import AnyRequest, Injected, RowId
from keyman.identity.tokens import Scope
from keyman.keys.schemas import KeyInfo
from keyman.planes.management.web.keys import Place
from keyman.planes.management.web.own_keys import OwnKeys
from keyman.providers.catalogue import Catalogue
from keyman.providers.snippets import VARIABLE, Snippets, snippets


@get("/settings/api-keys/{key_id:str}/use", opt=needs(Scope.KEYS_READ), include_in_schema=False)
async def use_page(
    request: AnyRequest,
    own: Injected[OwnKeys],
    settings: Injected[Settings],
    key_id: FromPath[RowId],
) -> Response[bytes]:
    key, catalogue = await own.get(key_id), own.catalogue
    lines = _lines(catalogue, settings, key)
    if lines is None:
        raise NotFound("Keys of this service cannot be used through the gateway here.")
    missing = [each.title for each in catalogue.settings(key.service) if each.name in _missing(catalogue, key)]
    return own.show(
        "key_use.html",
        key,
        lines=lines,
        variable=VARIABLE,
        missing=missing,
        place=Place.behind(request, key.id),
    )


def _lines(catalogue: Catalogue, settings: Settings, key: KeyInfo) -> Snippets | None:
    service = catalogue.find(key.service)
    if service is None or settings.gateway_public_url is None:
        return None
    return snippets(service, settings.gateway_public_url)


def _missing(catalogue: Catalogue, key: KeyInfo) -> set[str]:
    """Return the settings that the key lacks and the gateway needs."""
    service = catalogue.find(key.service)
    needed = service.upstream.parameters if service is not None and service.upstream is not None else ()
    return set(needed) - key.settings.keys()
