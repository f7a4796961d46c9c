"""What a caller asks for: a key by its id, or the key of a user for a service that applications get."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.errors import FieldError, InvalidRequest
from keyman.identity import identities
from keyman.identity.identities import Identity
from keyman.identity.issuers import Issuer
from keyman.identity.principals import Application
from keyman.identity.tables import users
from keyman.ids import KeyId, UserId
from keyman.keys.finding import Found, Wanted, by_id, in_use
from keyman.providers.catalogue import ServiceSlug
from keyman.storage.statements import scalar
from keyman.values import Purpose, RowNumber, Subject

T = TypeVar("T")


class Request(msgspec.Struct):
    """The key that a caller asks for: one key by its id, or the one of a user for a service: the default or the newest.

    The user is named by its id, or by the subject that an issuer gives to it. A request with `key_id` and a user or a
    service asks for that key only if it is of that user and service.
    """

    key_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    user_id: RowNumber | msgspec.UnsetType = msgspec.UNSET
    subject: Subject | msgspec.UnsetType = msgspec.UNSET
    issuer: Issuer | msgspec.UnsetType = msgspec.UNSET
    service: ServiceSlug | msgspec.UnsetType = msgspec.UNSET
    purpose: Purpose | None = None

    def check(self) -> None:
        """Raise InvalidRequest unless the request names a key in exactly one of the three ways."""
        fields = ("key_id", "user_id", "subject", "issuer", "service")
        given = {name for name in fields if getattr(self, name) is not msgspec.UNSET}
        if given - {"issuer"} not in ({"key_id"}, {"user_id", "service"}, {"subject", "service"}):
            raise InvalidRequest.at(
                FieldError("", "The body must have either key_id, or user_id and service, or subject and service.")
            )
        if "issuer" in given and "subject" not in given:
            raise InvalidRequest.at(FieldError("issuer", "must come with a subject"))

    @property
    def named_key(self) -> KeyId | None:
        """The id of the requested key, for the audit log."""
        return None if isinstance(self.key_id, msgspec.UnsetType) else KeyId(self.key_id)

    @property
    def named_subject(self) -> str | None:
        """The subject, for the answer."""
        return None if isinstance(self.subject, msgspec.UnsetType) else str(self.subject)


async def is_served(
    connection: AsyncConnection, application: Application | None, asked: Request, user_id: UserId | None
) -> bool:
    """Return False if the application is bound to issuers of which the user is none, or names another issuer.

    Without an application, the user asks for an own key. The account of the user is locked by now, if it has a key.
    """
    if application is None:
        return True
    if not isinstance(asked.subject, msgspec.UnsetType):
        return _issuer(application, asked) in application.all_issuers
    if application.issuers is None or user_id is None:
        return True
    return not (await identities.issuers_of(connection, user_id)).isdisjoint(application.issuers)


def _issuer(application: Application, asked: Request) -> str:
    return or_none(asked.issuer) or application.default_issuer


async def _find_user(connection: AsyncConnection, application: Application | None, asked: Request) -> UserId | None:
    """Return the user that a request names. None: it names none, the application may not name it, or its subject is
    unknown.
    """
    if not isinstance(asked.user_id, msgspec.UnsetType):
        return UserId(asked.user_id)  # which may not exist
    if isinstance(asked.subject, msgspec.UnsetType) or application is None:
        return None
    issuer = _issuer(application, asked)
    if issuer not in application.all_issuers:
        return None
    return await identities.find(connection, Identity(issuer, asked.subject))


async def find(
    connection: AsyncConnection, application: Application | None, asked: Request, moment: datetime
) -> tuple[UserId | None, Found | None]:
    """Return the user and the row of the requested key, in any state.

    The row is None if the user has no such key. Both are None if the key or the user does not exist.
    """
    user_id = await _find_user(connection, application, asked)
    if not isinstance(asked.key_id, msgspec.UnsetType):
        row = await by_id(connection, KeyId(asked.key_id))
        row = row if row is not None and _fits(row, asked, user_id) else None
    else:
        assert not isinstance(asked.service, msgspec.UnsetType), "`Request.check` was called"
        row = None if user_id is None else await in_use(connection, Wanted(user_id, asked.service, moment))
    if row is not None:
        return row.user_id, row
    if not isinstance(asked.user_id, msgspec.UnsetType):
        user_id = await _USER.first(connection, user_id=asked.user_id)
    return user_id, None


def _fits(row: Found, asked: Request, user_id: UserId | None) -> bool:
    """Return True if a key is of the user and the service that the request names beside it, if it does."""
    names_user = asked.user_id is not msgspec.UNSET or asked.subject is not msgspec.UNSET
    return (not names_user or row.user_id == user_id) and (or_none(asked.service) or row.service) == row.service


_USER = scalar(select(users.c.id).where(users.c.id == bindparam("user_id")), UserId)


def or_none(value: T | msgspec.UnsetType) -> T | None:
    """Return the value of a field, or None for one that was not given."""
    return None if isinstance(value, msgspec.UnsetType) else value
