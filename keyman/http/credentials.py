"""Finds the access token or the JWT in the headers of a request.

A proxy in front of keyman may add its own `Authorization`, such as Basic or a JWT. Only a bearer token that begins like
one of keyman's counts, and a JWT of an issuer that this plane knows. Anything else is ignored, as if the header were
not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from keyman.errors import InvalidRequest
from keyman.identity.jose import Jwt
from keyman.identity.tokens import PREFIX

_BEARER = re.compile(r"bearer +(.*)", re.IGNORECASE | re.DOTALL)

KnowsIssuer = Callable[[object], bool]
"""Returns True for the `iss` of a JWT that counts on a plane. Nothing of the JWT is verified at that time."""


class Claimed(NamedTuple):
    """What the Authorization header claims to be: an access token, or a JWT of a known issuer. `is_foreign` says that
    it is a JWT that does not count: of another issuer, or on a plane without issuers.
    """

    token: str | None = None
    jwt: Jwt | None = None
    is_foreign: bool = False


Claim = Callable[[Mapping[str, Any]], Claimed]
"""Returns what a request claims. Raises InvalidRequest for one that claims several things."""


def for_issuers(knows: KnowsIssuer | None) -> Claim:
    """Return a Claim that reads access tokens and JWTs of known issuers."""
    return lambda scope: claimed(scope, knows)


def of_authorization(scope: Mapping[str, Any]) -> Claimed:
    """Return what the request claims, on a plane without issuers."""
    return claimed(scope, None)


def claimed(scope: Mapping[str, Any], knows: KnowsIssuer | None) -> Claimed:
    """Return what the request claims. `knows` is None on a plane without issuers.

    Raises InvalidRequest for two Authorization headers.

    Which of the two counts would depend on who reads them: the proxy, or keyman.
    """
    found = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(found) > 1:
        raise InvalidRequest("The request has more than one Authorization header. Send one.")
    text = bearer_of(found[0]) if found else None
    return Claimed() if text is None else recognised(text, knows)


def bearer_of(authorization: str) -> str | None:
    """Return the credential of an Authorization header with the scheme Bearer, or None for another scheme."""
    bearer = _BEARER.fullmatch(authorization.strip())
    return None if bearer is None else bearer[1]


def recognised(text: str, knows: KnowsIssuer | None) -> Claimed:
    """Return what a credential claims to be: an access token, a JWT, or nothing that counts."""
    if text.startswith(PREFIX):
        return Claimed(token=text)
    jwt = Jwt.parse(text)
    if jwt is None:
        return Claimed()
    return Claimed(jwt=jwt) if knows is not None and knows(jwt.parts.issuer) else Claimed(is_foreign=True)
