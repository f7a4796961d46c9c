"""The values that the client returns. Fields that a newer server adds are ignored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from keyman.secret import Secret

MAX_KEY = 8192
"""The maximum number of characters of a key."""

MAX_CREDENTIAL = 16 * 1024
"""The maximum number of bytes of a JSON credential, such as a service-account file."""


ReportOutcome: TypeAlias = Literal["refused", "no-credit", "rate-limited", "accepted"]
"""What an application can report of a key: what its provider said when the application used it."""

KeyStatus: TypeAlias = Literal["active", "disabled", "expired", "undecryptable"]

Verdict: TypeAlias = Literal[
    "accepted", "refused", "no-permission", "no-credit", "rate-limited", "unreachable", "unsupported"
]
"""What the provider of a key says of it."""

Sort: TypeAlias = Literal["created", "-created", "name", "-name", "used", "-used"]
"""An order of a listing of keys, with `-` for a descending one."""

if TYPE_CHECKING:
    _Status: TypeAlias = KeyStatus
    _Verdict: TypeAlias = Verdict
else:
    _Status = _Verdict = str  # in an answer, so that a word of a newer server does not make a whole listing unreadable


def is_value(text: str) -> bool:
    """Return True if keyman can store this value: a key of printable ASCII, without spaces, or a JSON object."""
    if text.lstrip().startswith("{"):
        return len(text.encode(errors="replace")) <= MAX_CREDENTIAL and _is_object(text)
    return re.fullmatch(f"[!-~]{{8,{MAX_KEY}}}", text) is not None


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (ValueError, RecursionError):  # a lone surrogate, too, is a ValueError
        return False


def require_one_way(
    method: str,
    key_id: int | None,
    user_id: int | None,
    service: str | None,
    subject: str | None,
    issuer: str | None,
) -> None:
    """Raise TypeError unless the arguments of a method name a key in exactly one of the three ways."""
    named = {"key_id": key_id, "user_id": user_id, "subject": subject, "service": service}
    given = {name for name, value in named.items() if value is not None}
    ways = ({"key_id"}, {"user_id", "service"}, {"subject", "service"})
    if given not in ways or (issuer is not None and subject is None):
        raise TypeError(f"{method}() takes either key_id, or user_id and service, or subject and service")


class Resolved(Secret):
    """A user's key: a Secret with the key's metadata. Only `reveal()` returns the value."""

    __slots__ = ("expires_at", "key_id", "service", "settings", "subject", "user_id")

    def __init__(
        self,
        value: str,
        key_id: int,
        user_id: int,
        service: str,
        expires_at: datetime | None,
        settings: Mapping[str, str] | None = None,
        subject: str | None = None,
    ) -> None:
        super().__init__(value)
        self.key_id = key_id
        self.user_id = user_id
        self.service = service
        self.expires_at = expires_at
        self.settings = dict(settings or {})
        self.subject = subject

    def __repr__(self) -> str:
        return f"Resolved(***, key_id={self.key_id}, user_id={self.user_id}, service={self.service!r})"


class PortalLink(msgspec.Struct, frozen=True):
    """A link with which a user of the application manages keys. It works once: redirect a browser to `url` at once."""

    url: str
    expires_at: datetime
    user_id: int

    def __repr__(self) -> str:
        return f"PortalLink(***, user_id={self.user_id})"


class KeyCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key at its provider. `by` is `keyman`, `use`, or the name of an application."""

    verdict: _Verdict
    checked_at: datetime
    detail: str
    by: str


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A stored key, as its owner sees it. `etag` is None in a listing.

    `duplicate_of` is the id of another key of the same owner with the same value, if the call has just stored it.
    """

    id: int
    service: str
    name: str | None
    last_4_chars: str
    status: _Status
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    last_used_by: str | None = None
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    check: KeyCheck | None = None
    default: bool = False
    duplicate_of: int | None = None
    etag: str | None = None


@dataclass(frozen=True)
class NewKey:
    """A key to store with `add_all`, which takes the same fields as `add`."""

    service: str
    api_key: str | Secret = field(repr=False)
    name: str | None = None
    expires_at: datetime | None = None
    settings: Mapping[str, str] | None = None


class GatewayUse(msgspec.Struct, frozen=True):
    """How to use a service at the gateway: the base URL for its SDK, and the variables from which the SDK itself reads
    this URL and the token. They are None if it reads none.
    """

    url: str
    url_variable: str | None = None
    token_variable: str | None = None


class Service(msgspec.Struct, frozen=True):
    """A service of the catalogue: its identifier, the name to show for it, and where its users find their keys.

    `settings` is the JSON Schema of the settings of a key. `forwarded` says whether the gateway serves it, and
    `checked` whether live checks know it. Masks show the `prefixes`; only keys of this service begin with one of the
    `exclusive_prefixes`. `gateway` is None if the gateway does not serve it, or its address is not known.
    """

    service: str
    name: str
    console_url: str | None = None
    settings: dict[str, object] = msgspec.field(default_factory=dict)
    forwarded: bool = False
    checked: bool = False
    prefixes: tuple[str, ...] = ()
    exclusive_prefixes: tuple[str, ...] = ()
    gateway: GatewayUse | None = None


class Application(msgspec.Struct, frozen=True):
    """An application that may use the caller's keys of these services, unless the caller has blocked it."""

    id: int
    name: str
    services: tuple[str, ...]
    last_used_at: datetime | None
    blocked: bool


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the caller's own audit log. `detail` says more, such as the issuer of a sign-in."""

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
    detail: str | None = None
