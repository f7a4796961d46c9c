"""Reads what a browser brings back from the identity provider, and verifies the ID token behind it.

The rules are those of OpenID Connect Core 1.0 (3.1.3.7), and of RFC 9207 against a provider that answers in the name of
another one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from keyman.clock import now
from keyman.errors import InvalidRequest, IssuerUnavailable, Sentence
from keyman.identity import key_sets
from keyman.identity.jose import LEEWAY, Claims, Rules, Unverified
from keyman.identity.jwks import Refused
from keyman.identity.provider import AWAY, Metadata, Provider, Tokens
from keyman.identity.visits import ENDED, PROVES_PRESENCE, Proven, Visit
from keyman.logs import log
from keyman.values import EmailAddress

MAX_AGE = timedelta(minutes=5)
"""How old the sign-in at the provider may be that proves presence."""

MAX_CODE = 8192
"""Characters of a code. Some providers put a whole token into it."""

CANCELLED = "The sign-in was cancelled at the provider."
NOT_OF_THIS_PROVIDER = "The answer is not of the provider that was asked."

NOT_SIGNED_IN = frozenset({"login_required", "interaction_required", "consent_required", "account_selection_required"})
NOT_ACCEPTED = frozenset({"invalid_request", "invalid_scope", "unauthorized_client", "unsupported_response_type"})
IN_TROUBLE = frozenset({"server_error", "temporarily_unavailable"})
"""Errors of a provider (RFC 6749, 4.1.2.1; OpenID Connect Core 1.0, 3.1.2.6)."""

_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512, "DSA": hashlib.sha512}
"""The hash of `at_hash`, by the end of the algorithm of the token (`EdDSA` with Ed25519 hashes with SHA-512)."""


class Callback(NamedTuple):
    """The parameters with which the provider sends a browser back."""

    state: str
    code: str | None
    error: str | None
    issuer: str | None

    @classmethod
    def parse(cls, pairs: Sequence[tuple[str, str]]) -> Callback:
        """Raises InvalidRequest for parameters that are missing or there twice."""
        names = [name for name, _ in pairs]
        query = dict(pairs)
        are_twice = any(names.count(name) > 1 for name in ("state", "code", "error", "iss"))
        code = query.get("code")
        if (
            are_twice
            or not query.get("state")
            or (code is None) == ("error" not in query)
            or len(code or "") > MAX_CODE
        ):
            raise InvalidRequest(ENDED)
        return cls(query["state"], code, query.get("error"), query.get("iss"))

    @property
    def is_invalid_request(self) -> bool:
        """Whether the provider says that keyman asked in a way that it does not understand."""
        return self.error == "invalid_request"

    def require_code(self, metadata: Metadata, issuer: str) -> str:
        """Return the code. Raises InvalidRequest for an answer of another issuer, and for an error of this one."""
        is_absent_as_announced = self.issuer is None and not metadata.sends_issuer
        if self.issuer != issuer and not is_absent_as_announced:
            raise InvalidRequest(NOT_OF_THIS_PROVIDER)
        if self.code is None:
            raise _refusal(self.error or "")
        return self.code


def _refusal(error: str) -> InvalidRequest | IssuerUnavailable:
    """Return what an error of the provider means to a person."""
    if error == "access_denied":
        return InvalidRequest(CANCELLED)
    if error in NOT_SIGNED_IN:
        return InvalidRequest("The provider wants you to sign in there first.")
    # The operator needs the reason: it is a word such as invalid_scope. A browser could send any other text.
    word = error if re.fullmatch("[a-z_]{1,50}", error) else "no word"
    log.warning("the identity provider refused a sign-in", error=word)
    if error in IN_TROUBLE:
        return IssuerUnavailable(AWAY)
    if error in NOT_ACCEPTED:
        return InvalidRequest("The provider does not accept the way in which keyman asks. Tell the operator.")
    return InvalidRequest("The provider refused the sign-in.")


class Person(NamedTuple):
    """Who has signed in at the provider. `claims` are those of the ID token, and those of userinfo that it lacks."""

    proven: Proven
    claims: Mapping[str, object]
    signed_in_at: datetime | None


async def identify(provider: Provider, visit: Visit, answer: Callback) -> Person:
    """Return the person of an answer, for the visit that it belongs to. Raises InvalidRequest and IssuerUnavailable."""
    settings = provider.settings
    code = answer.require_code(await provider.metadata(), settings.issuer)
    tokens = await provider.exchange(code, visit.verifier)
    try:
        verified = await key_sets.verify(tokens.id_token, provider.keys, _rules(settings.issuer, settings.client_id))
        _check(verified, settings.client_id, visit, tokens)
        subject = str(verified.subject)
        at = _signed_in_at(verified.members)
        if visit.purpose in PROVES_PRESENCE:
            _check_presence(at)
    except Refused as fault:
        raise InvalidRequest(
            Sentence("The answer of the provider is refused. This is wrong: {claim}", claim=fault.claim)
        ) from None
    claims = await _completed(verified.members, provider, tokens, subject)
    session = _text(verified.members, "sid")
    return Person(Proven(subject, _email(claims), _text(claims, "name"), session), claims, at)


async def _completed(
    claims: Mapping[str, object], provider: Provider, tokens: Tokens, subject: str
) -> Mapping[str, object]:
    """Return the claims of an ID token, with those of userinfo that it lacks, if it lacks one that is needed."""
    settings = provider.settings
    wanted = {"email"} if "email" in settings.scopes.split() else set[str]()
    wanted |= {settings.claim.name} if settings.claim is not None else set()
    if tokens.access_token is None or wanted <= claims.keys():
        return claims
    said = await provider.userinfo(tokens.access_token, subject)
    # An address and the word that it is verified come from one place, or they could be about two addresses.
    without = said if "email" in claims else claims
    without = {name: value for name, value in without.items() if name not in ("email", "email_verified")}
    return {**without, **claims} if "email" in claims else {**said, **without}


def _rules(issuer: str, client_id: str) -> Rules:
    return Rules(issuer, client_id, required=frozenset({"sub", "exp", "iat", "nonce"}), refused=frozenset({"events"}))


def _check(claims: Claims, client_id: str, visit: Visit, tokens: Tokens) -> None:
    """Check what an ID token has besides the claims of every token. Raises Refused."""
    nonce = claims.text("nonce") or ""
    if not hmac.compare_digest(nonce.encode("utf-8", "replace"), visit.nonce.encode()):
        raise Refused("nonce", "is not that of this sign-in")
    party = claims.members.get("azp")
    if party is None and len(claims.audiences) > 1:
        raise Refused("azp", "is missing, and there are several audiences")
    if party is not None and party != client_id:
        raise Refused("azp", "is another client")
    said = claims.members.get("at_hash")
    if said is not None and said != _hash_of(tokens):
        raise Refused("at_hash", "is not that of the access token")


def _hash_of(tokens: Tokens) -> str | None:
    """Return the `at_hash` of the access token: the left half of its hash, by the algorithm of the ID token."""
    parts = Unverified.parse(tokens.id_token)
    if parts is None or tokens.access_token is None:
        return None
    digest = _HASHES[str(parts.header["alg"])[-3:]](tokens.access_token.reveal().encode()).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def _signed_in_at(claims: Mapping[str, object]) -> datetime | None:
    at = claims.get("auth_time")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 1e11:
        return None
    return datetime.fromtimestamp(at, UTC)


def _check_presence(at: datetime | None) -> None:
    """Raise Refused unless the person signed in at the provider just now."""
    if at is None or not -timedelta(seconds=LEEWAY) <= now() - at <= MAX_AGE:
        raise Refused("auth_time", "is missing or not of the last five minutes")


def _email(claims: Mapping[str, object]) -> str | None:
    """Return the address, if the provider says that it is verified: with the JSON value true, and not a text."""
    if claims.get("email_verified") is True:
        with suppress(ValueError):
            return str(EmailAddress.parse(claims.get("email")))
    return None


def _text(claims: Mapping[str, object], name: str) -> str | None:
    """Return a text to store or show, or None for one that is too long or has characters that cannot be seen."""
    text = claims.get(name)
    return text if isinstance(text, str) and 0 < len(text) <= 255 and text.isprintable() else None
