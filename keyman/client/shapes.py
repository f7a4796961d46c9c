"""The values that the client returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

from datetime import datetime

import msgspec

from keyman.secret import Secret


class Resolved(Secret):
    """A user's key: a Secret with the key's metadata. Only `reveal()` returns the value."""

    __slots__ = ("expires_at", "key_id", "service", "user_id")

    def __init__(self, value: str, key_id: int, user_id: int, service: str, expires_at: datetime | None) -> None:
        super().__init__(value)
        self.key_id = key_id
        self.user_id = user_id
        self.service = service
        self.expires_at = expires_at

    def __repr__(self) -> str:
        return f"Resolved(***, key_id={self.key_id}, user_id={self.user_id}, service={self.service!r})"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key, as its owner sees it. `etag` is None in a listing."""

    id: int
    service: str
    name: str | None
    last_4_chars: str
    status: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    last_used_by: str | None = None
    etag: str | None = None


class Service(msgspec.Struct, frozen=True):
    """A service of the catalogue: its identifier, and the name to show for it."""

    service: str
    name: str


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the caller's own audit log."""

    id: int
    at: datetime
    action: str
    actor: str
    actor_token_id: int | None = None
    token_id: int | None = None
    key_id: int | None = None
    service: str | None = None
    request_id: str | None = None
    address: str | None = None
    application: str | None = None
    purpose: str | None = None
    reason: str | None = None
