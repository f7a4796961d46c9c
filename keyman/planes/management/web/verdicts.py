"""What the list of keys shows of live checks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from keyman.clock import now
from keyman.identity.principals import Principal
from keyman.identity.tokens import Scope
from keyman.keys.schemas import KeyInfo, Status
from keyman.planes.management.checks import Gateway
from keyman.planes.management.web.pages import Visit
from keyman.providers.catalogue import Catalogue
from keyman.providers.verdicts import DETAILS, Verdict

CHECKED = "checked"
TOO_MANY = "too-many-checks"
NO_GATEWAY = "no-gateway"
"""What has come of a check that was asked for, as the address of the list says it."""

JUST_STORED = timedelta(minutes=1)
"""A key that was stored within this time is checked when its row appears. Another link to the row asks for nothing."""


AT_ONCE = 10
"""How many keys that were stored together are checked at once: a third of the checks that an account has in an hour."""


@dataclass(frozen=True)
class Checks:
    """What the list shows of live checks: for which keys there is a button, and for which ones it is pressed at once.

    `done` and `saved` are what the address of the list says that has just been done, and to which keys.
    """

    services: frozenset[str]
    done: str
    saved: str

    @classmethod
    def of(cls, gateway: Gateway | None, catalogue: Catalogue, caller: Principal, visit: Visit, saved: str) -> Checks:
        known = [info.service for info in catalogue.infos() if info.checked]
        is_possible = gateway is not None and Scope.KEYS_WRITE in caller.scopes
        return cls(frozenset(known if is_possible else ()), visit.done, saved)

    def can_check(self, key: KeyInfo) -> bool:
        return key.service in self.services and key.status is not Status.UNDECRYPTABLE

    def needs_value(self, key: KeyInfo) -> bool:
        """Return True for a key with which nobody gets anywhere any more, which then offers "Replace key"."""
        is_refused = key.check is not None and key.check.verdict is Verdict.REFUSED
        return is_refused or key.status in (Status.EXPIRED, Status.UNDECRYPTABLE)

    def starts(self, key: KeyInfo) -> bool:
        """Return True for a key that was stored just now, whose value was not checked yet."""
        is_new = self.done in ("created", "changed") and self._is_saved(key)
        return is_new and key.check is None and self.can_check(key) and now() - key.updated_at < JUST_STORED

    def not_checked(self, key: KeyInfo) -> str:
        """Return why the last attempt to check this key came to nothing, or an empty text."""
        return self.done if self._is_saved(key) and self.done in (TOO_MANY, NO_GATEWAY) else ""

    def more(self, key: KeyInfo) -> str:
        """Return what keyman has to say beside the verdict: only what the words of the verdict do not say already."""
        return key.check.detail if key.check is not None and key.check.detail not in DETAILS.values() else ""

    def _is_saved(self, key: KeyInfo) -> bool:
        return str(key.id) in self.saved.split(",")[:AT_ONCE]
