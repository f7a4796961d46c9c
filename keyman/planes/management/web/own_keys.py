"""What the pages about the caller's keys have in common: how they find a key, and what each page shows of it."""

from __future__ import annotations

from dataclasses import dataclass

from litestar import Response

from keyman.errors import NotFound, Problem
from keyman.http.requests import Injected
from keyman.identity.principals import Principal
from keyman.ids import KeyId
from keyman.keys import operations
from keyman.keys.schemas import KeyInfo
from keyman.planes.management.web.pages import Visit
from keyman.providers.catalogue import Catalogue
from keyman.storage.transactions import Database


@dataclass(frozen=True)
class OwnKeys:
    """The keys of the caller, for one request for a page about them: a handler's `own`."""

    visit: Visit
    db: Database
    caller: Principal
    catalogue: Catalogue

    async def get(self, key_id: int) -> KeyInfo:
        """Return a key. Raises NotFound, with a text for a user who has just seen the key in the list."""
        try:
            return await operations.get(self.db, self.caller, KeyId(key_id))
        except NotFound:
            raise NotFound("This key no longer exists. It may have been deleted in another window.") from None

    async def find(self, key_id: KeyId) -> KeyInfo | None:
        """Return a key, or None if there is none, also if it was deleted since."""
        try:
            return await operations.get(self.db, self.caller, key_id)
        except NotFound:
            return None

    def show(
        self, template: str, key: KeyInfo, *, status: int = 200, refused: Problem | None = None, **context: object
    ) -> Response[bytes]:
        """Render a page about a key. See `Pages.make`."""
        name = self.catalogue.name(key.service)
        return self.visit.show(template, status=status, refused=refused, key=key, service_name=name, **context)


async def provide_own_keys(
    visit: Injected[Visit], db: Injected[Database], caller: Injected[Principal], catalogue: Injected[Catalogue]
) -> OwnKeys:
    return OwnKeys(visit, db, caller, catalogue)
