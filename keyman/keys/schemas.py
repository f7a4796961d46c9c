"""The shapes of keys in requests and answers."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Protocol

import msgspec

from keyman.ids import KeyId
from keyman.providers.catalogue import ServiceSlug
from keyman.providers.recognition import ProviderKey
from keyman.providers.settings import KeySettings
from keyman.providers.verdicts import Verdict
from keyman.values import FutureTime, Label


class NewKey(msgspec.Struct):
    """A key to store."""

    service: ServiceSlug
    api_key: ProviderKey
    name: Label | None = None
    expires_at: FutureTime | None = None
    settings: KeySettings = msgspec.field(default_factory=KeySettings)


MAX_NEW_KEYS = 50
"""The maximum number of keys that one request stores, as documented in docs/reference/api.md."""


class NewKeys(msgspec.Struct):
    """Several keys to store, each as NewKey describes it. What is wrong with one of them does not stop the others."""

    keys: Annotated[list[Any], msgspec.Meta(min_length=1, max_length=MAX_NEW_KEYS)]


class Replacement(msgspec.Struct):
    """A new value for a stored key. A field that is left out keeps its value, but an expiry that has passed is cleared.

    `settings` replace the stored ones as a whole.
    """

    api_key: ProviderKey
    name: Label | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: FutureTime | msgspec.UnsetType | None = msgspec.UNSET
    settings: KeySettings | msgspec.UnsetType = msgspec.UNSET


class Change(msgspec.Struct):
    """A change to the metadata of a key. `null` clears a label or an expiry.

    `settings` replace the stored ones as a whole. They cannot change where the key is sent. A key that becomes the
    default takes the place of the default that the owner has for its service.
    """

    name: Label | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: FutureTime | msgspec.UnsetType | None = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    settings: KeySettings | msgspec.UnsetType = msgspec.UNSET
    default: bool | msgspec.UnsetType = msgspec.UNSET


class Status(StrEnum):
    """The state of a key. Only an ACTIVE one is given out."""

    ACTIVE = "active"
    DISABLED = "disabled"
    EXPIRED = "expired"
    UNDECRYPTABLE = "undecryptable"


class HasStatus(Protocol):
    """The columns that determine the status of a key."""

    @property
    def disabled(self) -> bool: ...
    @property
    def undecryptable(self) -> bool: ...
    @property
    def expires_at(self) -> datetime | None: ...


def status_of(row: HasStatus, moment: datetime) -> Status:
    """Return the status of a key at this moment, the worst one if several apply.

    For example, a paused key that is undecryptable is UNDECRYPTABLE.
    """
    if row.undecryptable:
        return Status.UNDECRYPTABLE
    if row.expires_at is not None and row.expires_at <= moment:
        return Status.EXPIRED
    return Status.DISABLED if row.disabled else Status.ACTIVE


class KeyCheck(msgspec.Struct):
    """The last verdict on a key. `detail` is one of keyman's own sentences. `by` is `keyman` for a live check, `use`
    for an answer that the gateway passed on, or the name of the application that reported it.
    """

    verdict: Verdict
    checked_at: datetime
    detail: str
    by: str


class KeyInfo(msgspec.Struct):
    """A key in an answer."""

    id: KeyId
    service: str
    name: str | None
    last_4_chars: str
    status: Status
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_by: str | None
    settings: dict[str, str] = msgspec.field(default_factory=dict)  # answers kept from before have none
    check: KeyCheck | None = None  # likewise
    default: bool = False  # likewise
    duplicate_of: KeyId | msgspec.UnsetType = msgspec.UNSET  # only when the value is stored, and was stored before

    USE: ClassVar[frozenset[str]] = frozenset({"last_used_at", "last_used_by", "check", "duplicate_of"})
    ADDED: ClassVar[frozenset[str]] = frozenset({"settings", "default"})
    """Fields that older keys do not have. They count only if they are set, so no upgrade changes a validator."""

    @property
    def etag(self) -> str:
        """A strong validator, computed from the visible fields except the last use, the last check and the hint at a
        duplicate.

        So a rewrap does not change it, and an application that uses the key does not make an edit of its owner fail.
        """
        unseen = self.USE | {name for name in self.ADDED if not getattr(self, name)}
        seen = [getattr(self, name) for name in self.__struct_fields__ if name not in unseen]
        return f'"{hashlib.sha256(msgspec.json.encode(seen)).hexdigest()[:32]}"'
