"""How often something may be tried, by account and by network. `throttle` counts.

Failed sign-ins are limited, and so is what costs others something: new accounts, visits to an identity provider, live
checks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta

from keyman.identity.networks import network_of
from keyman.ids import KeyId, UserId

WINDOW = timedelta(minutes=15)
"""The time for which failures count, from the first one on."""

MAX_PER_ACCOUNT = 10
"""The maximum number of failures for one e-mail address in a window. That is 960 guesses a day, for passwords of at
least ten characters.
"""

MAX_PER_NETWORK = 100
"""The maximum number of failures from one address (IPv6: one /64) in a window. An office behind one address mistypes
less often.
"""

MAX_SIGNUPS_PER_NETWORK = 50
"""The maximum number of new accounts from one address in a window."""

MAX_VISITS_PER_NETWORK = 1000
"""The maximum number of sign-ins at an identity provider that one address can begin in a window: each stores a row, and
a large office signs in in the morning.
"""

CHECK_PAUSE = timedelta(seconds=10)
"""The time between two live checks of a key."""

HOUR = timedelta(hours=1)

MAX_CHECKS_PER_ACCOUNT = 30
"""The maximum number of live checks of the keys of one account within an hour."""

MAX_CHECKS_PER_NETWORK = 100
"""The maximum number of live checks that one address can ask for within an hour."""

TOO_MANY_FAILURES = "Too many attempts failed. Wait up to 15 minutes before you try again."
TOO_MANY_VISITS = "Too many sign-ins were begun from your network. Wait up to 15 minutes before you try again."
TOO_MANY_CHECKS = "This key was checked a moment ago, or too many keys were checked within an hour. Check it later."
TOO_MANY_SIGNUPS = "Too many accounts were created from your network. Wait before you create another one."


@dataclass(frozen=True)
class Bucket:
    """A common property of attempts, and the number of attempts that a window allows."""

    name: str
    limit: int
    window: timedelta = WINDOW

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.name.encode()).digest()


def login_buckets(email_key: str, address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of sign-ins: of the account, and of the network that the address is in."""
    return (Bucket(f"login|account|{email_key}", MAX_PER_ACCOUNT), *_by_network("login", address, MAX_PER_NETWORK))


def password_buckets(user_id: UserId, address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of a password change.

    They are separate from the buckets of sign-ins. Anyone who knows the address can fill those, and the user could then
    not change the password.
    """
    return (Bucket(f"password|account|{user_id}", MAX_PER_ACCOUNT), *_by_network("password", address, MAX_PER_NETWORK))


def signup_buckets(address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of new accounts."""
    return _by_network("signup", address, MAX_SIGNUPS_PER_NETWORK)


def visit_buckets(address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of sign-ins that begin at an identity provider. Each stores a row."""
    return _by_network("visit", address, MAX_VISITS_PER_NETWORK)


def check_buckets(key_id: KeyId, user_id: UserId, address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of live checks. Each opens a value and sends a request to a provider."""
    networks = _by_network("check", address, MAX_CHECKS_PER_NETWORK)
    return (
        Bucket(f"check|key|{key_id}", 1, CHECK_PAUSE),
        Bucket(f"check|account|{user_id}", MAX_CHECKS_PER_ACCOUNT, HOUR),
        *(replace(bucket, window=HOUR) for bucket in networks),
    )


def logout_buckets(address: str | None) -> tuple[Bucket, ...]:
    """Return the buckets of logout tokens that are refused."""
    return _by_network("logout", address, MAX_PER_NETWORK)


def _by_network(what: str, address: str | None, limit: int) -> tuple[Bucket, ...]:
    return (Bucket(f"{what}|network|{network_of(address)}", limit),) if address else ()
