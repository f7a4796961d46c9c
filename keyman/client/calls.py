"""The operations of the management plane and the resolver as calls: what each one sends, and how its answer is read."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from keyman.client.cache import Wanted
from keyman.client.endpoint import as_secret
from keyman.client.errors import ClientError
from keyman.client.exchange import Answer, Call, ProblemBody, to_error
from keyman.client.shapes import Application, AuditEntry, Key, NewKey, PortalLink, Resolved, Service, is_value
from keyman.secret import Secret

T = TypeVar("T")

PAGE = 200
"""Items per page: the maximum that the server returns."""


class Page(NamedTuple, Generic[T]):
    """One page of a listing. `cursor` asks for the next page; it is None on the last one."""

    items: list[T]
    cursor: str | None


def resolve(wanted: Wanted, purpose: str | None) -> Call[Resolved]:
    """Resolve a key. The call is repeatable: each attempt that arrives only adds an entry to the audit log."""
    named = {**wanted._asdict(), "purpose": purpose}
    return Call(
        "POST",
        "/v1/resolve",
        lambda answer: _resolved(answer, wanted),
        body=msgspec.json.encode({name: value for name, value in named.items() if value is not None}),
    )


class _Given(msgspec.Struct):
    key_id: int
    user_id: int
    service: str
    api_key: str
    expires_at: datetime | None = None
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    subject: str | None = None


def _resolved(answer: Answer, wanted: Wanted) -> Resolved:
    """Raises ValueError for a key that was not asked for, and for a value that no server gives."""
    given = msgspec.json.decode(answer.content, type=_Given)
    resolved = Resolved(
        given.api_key, given.key_id, given.user_id, given.service, given.expires_at, given.settings, given.subject
    )
    if not wanted.is_answered_by(resolved) or not is_value(given.api_key):
        raise ValueError
    if given.expires_at is not None and given.expires_at.tzinfo is None:
        raise ValueError
    return resolved


def portal_link(subject: str, return_url: str | None, email: str | None, name: str | None) -> Call[PortalLink]:
    """Make a portal link. The call is repeatable: each attempt that arrives makes a link, and one is returned."""
    fields = {"subject": subject, "return_url": return_url, "email": email, "name": name}
    return Call(
        "POST",
        "/v1/portal-links",
        _portal_link,
        body=msgspec.json.encode({name: value for name, value in fields.items() if value is not None}),
    )


def _portal_link(answer: Answer) -> PortalLink:
    """Raises ValueError for an answer that no server gives, such as a link that is no web address."""
    link = msgspec.json.decode(answer.content, type=PortalLink)
    if not re.fullmatch("https?://[!-~]{1,3000}", link.url) or link.expires_at.tzinfo is None:
        raise ValueError
    return link


def report(key: Resolved | int, outcome: str) -> Call[None]:
    """Report on a key. The call is not repeatable: there can be one report in 10 seconds.

    Raises TypeError for an id that is not an integer.
    """
    key_id = key.key_id if isinstance(key, Resolved) else operator.index(key)
    body = msgspec.json.encode({"key_id": key_id, "outcome": outcome})
    return Call("POST", "/v1/report", _nothing, body=body, repeatable=False)


def add_key(
    service: str,
    api_key: Secret,
    name: str | None,
    expires_at: datetime | None,
    settings: Mapping[str, str] | None = None,
) -> Call[Key]:
    """Store a key. The Idempotency-Key makes the call repeatable: however often it is sent, one key is stored."""
    return Call(
        "POST",
        "/api/keys",
        _key,
        headers={"Idempotency-Key": str(uuid4())},
        body=msgspec.json.encode(_new_key(service, api_key, name, expires_at, settings)),
        secrets=(api_key,),
    )


def add_keys(keys: Iterable[NewKey]) -> Call[list[Key | ClientError]]:
    """Store several keys. As with one key, the Idempotency-Key makes the call repeatable."""
    values = [(key, as_secret(key.api_key)) for key in keys]
    fields = [_new_key(key.service, value, key.name, key.expires_at, key.settings) for key, value in values]
    return Call(
        "POST",
        "/api/keys/batch",
        lambda answer: _added(answer, len(fields)),
        headers={"Idempotency-Key": str(uuid4())},
        body=msgspec.json.encode({"keys": fields}),
        secrets=tuple(value for _, value in values),
    )


def _new_key(
    service: str, api_key: Secret, name: str | None, expires_at: datetime | None, settings: Mapping[str, str] | None
) -> dict[str, object]:
    given = UNSET if settings is None else settings
    return _set(service=service, api_key=_encodable(api_key), name=name, expires_at=expires_at, settings=given)


class _Added(msgspec.Struct):
    status: int
    key: Key | None = None
    problem: ProblemBody | None = None


def _added(answer: Answer, number: int) -> list[Key | ClientError]:
    """Raises ValueError unless there is a key or a problem for each of so many entries."""
    entries = msgspec.json.decode(answer.content, type=list[_Added])
    if len(entries) != number:
        raise ValueError
    return [_added_one(entry, answer) for entry in entries]


def _added_one(entry: _Added, answer: Answer) -> Key | ClientError:
    if entry.key is not None and entry.problem is None and entry.status == 201:
        return msgspec.structs.replace(entry.key, etag=None)
    if entry.key is not None or entry.problem is None or entry.status < 400:
        raise ValueError
    return to_error(entry.status, entry.problem, answer.hidden, entry.problem.retry_after)


def list_keys(
    service: str | None,
    status: str | None,
    check: str | None,
    q: str | None,
    sort: str | None,
    cursor: str | None,
) -> Call[Page[Key]]:
    query = _query(cursor, service=service, status=status, check=check, q=q, sort=sort)
    return Call("GET", "/api/keys", lambda answer: _page(answer, Key, cursor), query=query)


def count_keys(service: str | None, status: str | None, check: str | None, q: str | None) -> Call[int]:
    query = _query(None, service=service, status=status, check=check, q=q, count="true") | {"limit": "1"}
    return Call("GET", "/api/keys", _count, query=query)


def _count(answer: Answer) -> int:
    """Raises ValueError for an answer without a count."""
    count = answer.headers.get("keyman-total-count", "")
    if not re.fullmatch("[0-9]{1,18}", count):
        raise ValueError
    return int(count)


def get_key(key_id: int) -> Call[Key]:
    return Call("GET", _path(key_id), _key)


def replace_key(
    key: Key | int,
    api_key: Secret,
    name: str | UnsetType | None,
    expires_at: datetime | UnsetType | None,
    settings: Mapping[str, str] | UnsetType,
) -> Call[Key]:
    fields = _set(api_key=_encodable(api_key), name=name, expires_at=expires_at, settings=settings)
    headers = _if_match(key)
    return Call(
        "PUT",
        _path(key),
        _key,
        headers=headers,
        body=msgspec.json.encode(fields),
        repeatable=not headers,
        secrets=(api_key,),
    )


def change_key(
    key: Key | int,
    name: str | UnsetType | None,
    expires_at: datetime | UnsetType | None,
    disabled: bool | UnsetType,
    settings: Mapping[str, str] | UnsetType,
    default: bool | UnsetType,
) -> Call[Key]:
    fields = _set(name=name, expires_at=expires_at, disabled=disabled, settings=settings, default=default)
    headers = _if_match(key)
    return Call("PATCH", _path(key), _key, headers=headers, body=msgspec.json.encode(fields), repeatable=not headers)


def delete_key(key: Key | int) -> Call[None]:
    """Delete a key. The call is not repeatable: the second answer would be 404."""
    return Call("DELETE", _path(key), _nothing, headers=_if_match(key), repeatable=False)


def check_key(key: Key | int) -> Call[Key]:
    """Make a live check. The call is not repeatable: a key can be checked once in 10 seconds."""
    return Call("POST", f"{_path(key)}/check", _key, repeatable=False)


def list_services() -> Call[list[Service]]:
    return Call("GET", "/api/services", lambda answer: msgspec.json.decode(answer.content, type=list[Service]))


def list_applications() -> Call[list[Application]]:
    return Call("GET", "/api/applications", lambda answer: msgspec.json.decode(answer.content, type=list[Application]))


def revoke_token() -> Call[None]:
    """Revoke the token that the call shows. The call is not repeatable: the second answer would be 401."""
    return Call("DELETE", "/api/tokens/current", _nothing, repeatable=False)


def list_audit(
    action: str | None, since: datetime | None, until: datetime | None, cursor: str | None
) -> Call[Page[AuditEntry]]:
    moments = {name: at.isoformat() for name, at in (("since", since), ("until", until)) if at is not None}
    return Call(
        "GET",
        "/api/audit",
        lambda answer: _page(answer, AuditEntry, cursor),
        query=_query(cursor, action=action, **moments),
    )


def _path(key: Key | int) -> str:
    """Raises TypeError for an id that is not an integer, because it could lead to another path."""
    return f"/api/keys/{key.id if isinstance(key, Key) else operator.index(key)}"


def _if_match(key: Key | int) -> dict[str, str]:
    """Return the header for a key with an ETag. Such a change is not repeatable: the second attempt gets a 412."""
    return {"If-Match": key.etag} if isinstance(key, Key) and key.etag is not None else {}


def _encodable(api_key: Secret) -> str:
    """Return the value. The server decides what it may contain.

    Raises ValueError for a lone surrogate. The encoder's own error would contain the whole value.
    """
    if re.search("[\ud800-\udfff]", api_key.reveal()):
        raise ValueError("api_key must not contain a lone surrogate")
    return api_key.reveal()


def _set(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def _query(cursor: str | None, **filters: str | None) -> dict[str, str]:
    named = {**filters, "limit": str(PAGE), "cursor": cursor}
    return {name: value for name, value in named.items() if value is not None}


def _nothing(answer: Answer) -> None:
    if answer.status != 204:
        raise ValueError


def _key(answer: Answer) -> Key:
    etag = answer.headers.get("etag", "")
    key = msgspec.json.decode(answer.content, type=Key)
    return msgspec.structs.replace(key, etag=etag if re.fullmatch('"[!#-~]{1,200}"', etag) else None)


def _page(answer: Answer, kind: type[T], before: str | None) -> Page[T]:
    items = msgspec.json.decode(answer.content, type=list[kind])  # type: ignore[valid-type]  # only known at run time
    cursor = _cursor(answer.headers)
    if cursor is not None and cursor == before:
        raise ValueError  # the listing would never end
    return Page(items, cursor)


def _cursor(headers: Mapping[str, str]) -> str | None:
    """Return the cursor of the next page.

    Only the cursor is taken from the link. The next request goes to the configured address, so that a link cannot send
    the token somewhere else.
    """
    link = re.search('<([^>]{1,4000})> *; *rel="?next"?', headers.get("link", ""))
    if link is None:
        return None
    (cursor,) = parse_qs(urlsplit(link[1]).query).get("cursor", [])
    return cursor
