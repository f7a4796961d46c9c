"""Visits of the identity provider: what keyman remembers of a browser that it has sent there.

Each visit has a state, a nonce, a PKCE verifier and a cookie of its own, so several tabs can be under way. The state
comes back in the address, the nonce in the ID token, and only the browser with the cookie can use them, once. A link
that somebody sends to another person therefore does nothing in that person's browser.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from keyman.clock import now
from keyman.identity.tables import provider_visits
from keyman.ids import SessionId
from keyman.secret import Secret
from keyman.storage.statements import Command, Query

LIFETIME = timedelta(minutes=10)
"""How long a visit may take. People look for a second factor, and come back."""

COOKIE = "visit"
"""The middle of the name of a visit's cookie. The digest of its state follows."""

MAX_COOKIES = 8
"""The visits that one browser can have under way. More would fill the header with their cookies."""


ENDED = "This sign-in has ended, or was not started in this browser. Start again."


class Purpose(StrEnum):
    """Why the browser is at the provider. Only a sign-in has no session."""

    SIGN_IN = "sign-in"
    LINK = "link"
    PRESENCE = "presence"
    PRESENCE_AGAIN = "presence-again"  # the provider did not understand PRESENCE
    CHOICE = "choice"  # it is back: the address of the identity is that of another account


PROVES_PRESENCE = frozenset({Purpose.PRESENCE, Purpose.PRESENCE_AGAIN})


class Proven(NamedTuple):
    """What the provider has proved of a user. `email` is a verified address. `session` is the provider's `sid`."""

    subject: str
    email: str | None = None
    name: str | None = None
    session: str | None = None


class Begun(NamedTuple):
    """A new visit. `state` and `nonce` go to the provider, `cookie` to the browser, and `verifier` stays."""

    state: str
    nonce: str
    verifier: Secret
    cookie: Secret


class Visit(NamedTuple):
    """A visit that has come back. `subject` and what follows are of a CHOICE."""

    nonce: str
    verifier: str
    purpose: Purpose
    session_id: SessionId | None
    next: str | None
    expires_at: datetime
    subject: str | None
    email: str | None
    name: str | None
    provider_session: str | None

    @property
    def proven(self) -> Proven:
        return Proven(self.subject or "", self.email, self.name, self.provider_session)


async def start(
    connection: AsyncConnection,
    purpose: Purpose,
    *,
    next_page: str,
    session_id: SessionId | None = None,
    proven: Proven | None = None,
) -> Begun:
    """Store a new visit. A visit with a session ends with it."""
    begun = Begun(
        secrets.token_urlsafe(32), secrets.token_urlsafe(32), Secret(secrets.token_urlsafe(48)), _new_cookie()
    )
    known = proven or Proven("")
    await _INSERT.execute(
        connection,
        state_hash=_digest(begun.state),
        browser_hash=_digest(begun.cookie.reveal()),
        nonce=begun.nonce,
        verifier=begun.verifier.reveal(),
        purpose=purpose.value,
        session_id=session_id,
        next=next_page,
        expires_at=now() + LIFETIME,
        subject=known.subject or None,
        email=known.email,
        name=known.name,
        provider_session=known.session,
    )
    return begun


async def take(connection: AsyncConnection, state: str, cookie: str) -> Visit | None:
    """Return the visit and delete it, so that it is used once. None if there is none for this state and cookie.

    A request without the right cookie does not end the visit of somebody else.
    """
    return _valid(await _TAKE.first(connection, of_state=_digest(state), of_browser=_digest(cookie)))


async def find(connection: AsyncConnection, state: str, cookie: str) -> Visit | None:
    """Return the visit and keep it, for a form that is shown again."""
    return _valid(await _FIND.first(connection, of_state=_digest(state), of_browser=_digest(cookie)))


def cookie_suffix(state: str) -> str:
    """Return what distinguishes the cookie of a visit from those of other tabs."""
    return f"_{COOKIE}_{_digest(state).hex()[:16]}"


def _valid(found: Visit | None) -> Visit | None:
    if found is None or found.expires_at <= now():
        return None
    return found._replace(purpose=Purpose(found.purpose))


def _new_cookie() -> Secret:
    return Secret(secrets.token_urlsafe(32))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


_COLUMNS = [provider_visits.c[name] for name in Visit._fields]
_ONE = (
    provider_visits.c.state_hash == bindparam("of_state"),
    provider_visits.c.browser_hash == bindparam("of_browser"),
)
_INSERT = Command(insert(provider_visits))
_FIND = Query(select(*_COLUMNS).where(*_ONE), Visit)
_TAKE = Query(delete(provider_visits).where(*_ONE).returning(*_COLUMNS), Visit)
