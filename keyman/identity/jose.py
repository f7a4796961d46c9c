"""Verifies signed JSON Web Tokens (RFC 7519): bearer tokens, workload tokens, ID tokens and logout tokens.

joserfc verifies the signature with a key of the issuer (`jwks.py`). This module decides which tokens are accepted. The
members `jku`, `jwk`, `x5u` and `x5c` of a header are ignored: the keys of an issuer come from its settings only.

Nothing that is raised here repeats a value of a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn

from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode

from keyman.clock import now
from keyman.errors import raise_alone
from keyman.identity.jwks import KINDS, KeySet, Refused
from keyman.values import Subject

MAX_TOKEN = 16 * 1024
"""Characters of a token. Those of large directories, which list hundreds of groups, have up to 8 KiB."""

LEEWAY = 60
"""Seconds by which the clock of an issuer may differ from that of this machine."""

LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC)
"""The latest expiry. A later one counts as this one."""

_LAST_SECOND = LAST_MOMENT.timestamp()

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")

_ALGORITHMS = {name: JWSRegistry.algorithms[name] for name in KINDS}


@dataclass(frozen=True)
class Rules:
    """Which tokens are accepted.

    `issuer` is compared byte for byte. `aud` contains `audience`, and none of `other_audiences`. `types` are the values
    of `typ` in lower case; a token without `typ` is accepted, too. `required` are claims that must be there, and
    `refused` those that must not. `exp`, `nbf` and `iat` are checked if they are there.
    """

    issuer: str
    audience: str
    types: frozenset[str] = frozenset({"jwt"})
    required: frozenset[str] = frozenset({"sub", "exp"})
    refused: frozenset[str] = frozenset()
    other_audiences: frozenset[str] = frozenset()


BEARER_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Values of `typ` of a token that is sent with requests (RFC 9068, 2.1)."""

OF_OTHER_TOKENS = frozenset({"at_hash", "c_hash", "events"})
"""Claims of ID tokens, logout tokens and security events, which must not be used as bearer tokens."""


SHARED_AUDIENCE = "contains the audience of users and that of applications"
"""What is wrong with `aud` of a token that would be good for both."""


@dataclass(frozen=True)
class Claims:
    """The claims of a verified token. `members` are all of them, as they were sent."""

    issuer: str
    audiences: tuple[str, ...]
    subject: Subject | None
    issued_at: datetime | None
    expires_at: datetime | None
    members: Mapping[str, object] = field(repr=False)

    def __repr__(self) -> str:
        return "Claims(***)"

    def text(self, name: str) -> str | None:
        """Return a claim that is a string, or None."""
        value = self.members.get(name)
        return value if isinstance(value, str) else None

    def words(self, name: str) -> frozenset[str]:
        """Return the words of a claim: a string separated by spaces, or an array of strings."""
        value = self.members.get(name)
        words = value.split(" ") if isinstance(value, str) else value if isinstance(value, list) else []
        return frozenset(word for word in words if isinstance(word, str) and word)


@dataclass(frozen=True)
class Unverified:
    """A token in its parts, before anything of it is verified. `claims` is None if the payload is no JSON object."""

    header: Mapping[str, object]
    claims: Mapping[str, object] | None
    signed: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "Unverified(***)"

    @classmethod
    def parse(cls, text: str) -> Unverified | None:
        """Return the parts of a token. None for a text that is not three base64url parts with a JSON header."""
        if not _SHAPE.fullmatch(text):
            return None
        header, payload, signature = text.encode().split(b".")
        members = _json_object(_decoded(header))
        if members is None:
            return None
        return cls(members, _json_object(_decoded(payload)), header + b"." + payload, _decoded(signature))

    @property
    def issuer(self) -> object:
        """The claim `iss`, which may be of any type."""
        return None if self.claims is None else self.claims.get("iss")


class Jwt(str):
    """The text of a token with its parts, so that a request parses it once."""

    parts: Unverified

    @classmethod
    def parse(cls, text: str) -> Jwt | None:
        """Return the token. None for a text that is no JWT: see `Unverified.parse`."""
        parts = Unverified.parse(text)
        if parts is None:
            return None
        token = cls(text)
        token.parts = parts
        return token

    def __repr__(self) -> str:
        return "Jwt(***)"


def parts_of(token: str) -> Unverified | None:
    """Return the parts of a token, parsed only if nobody has yet. See `Unverified.parse`."""
    return token.parts if isinstance(token, Jwt) else Unverified.parse(token)


def verified(token: str, keys: KeySet, rules: Rules) -> Claims:
    """Return the claims of a token that `keys` verify and `rules` accept. Raises Refused, and UnknownKey."""
    if len(token) > MAX_TOKEN:
        raise Refused("its length", f"is more than {MAX_TOKEN // 1024} KiB")
    parts = parts_of(token)
    if parts is None:
        raise Refused("its form", "is not three base64url parts with a JSON header")
    _verify_signature(parts, keys, rules)
    if parts.claims is None:
        raise Refused("its payload", "is not a JSON object")
    return _checked(parts.claims, rules)


def _verify_signature(parts: Unverified, keys: KeySet, rules: Rules) -> None:
    header = parts.header
    if isinstance(header, _Ambiguous):
        raise Refused("its header", "has a member twice")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in KINDS:
        raise Refused("alg", f"is not one of {', '.join(KINDS)}")
    if "crit" in header:
        raise Refused("crit", "is not supported")
    kind = header.get("typ")
    if "typ" in header and (not isinstance(kind, str) or kind.lower() not in rules.types):
        raise Refused("typ", "is not that of a token that is accepted here")
    if "kid" in header and not isinstance(kid, str):
        raise Refused("kid", "is not a string")
    key = keys.find(algorithm, kid if isinstance(kid, str) else None)
    if not _ALGORITHMS[algorithm].verify(parts.signed, parts.signature, key.key):
        raise Refused("its signature", "is not valid")


def _checked(claims: Mapping[str, object], rules: Rules) -> Claims:
    if isinstance(claims, _Ambiguous):
        raise Refused("its payload", "has a claim twice")
    for name in sorted(rules.refused & claims.keys()):
        raise Refused(name, "must not be in a token that is used here")
    for name in sorted(rules.required - claims.keys()):
        raise Refused(name, "is missing")
    if claims.get("iss") != rules.issuer:
        raise Refused("iss", "is not the expected issuer")
    audiences = _audiences(claims.get("aud"))
    if rules.audience not in audiences:
        raise Refused("aud", "does not contain the expected audience")
    if not rules.other_audiences.isdisjoint(audiences):
        raise Refused("aud", SHARED_AUDIENCE)
    expires, issued = _check_times(claims)
    return Claims(rules.issuer, audiences, _subject(claims), issued, expires, claims)


def _audiences(claim: object) -> tuple[str, ...]:
    given: Sequence[object] = claim if isinstance(claim, list) else [claim]
    found = tuple(one for one in given if isinstance(one, str))
    if len(found) != len(given):
        raise Refused("aud", "is not a string or an array of strings")
    return found


def _subject(claims: Mapping[str, object]) -> Subject | None:
    if "sub" not in claims:
        return None
    try:
        return Subject.parse(claims["sub"])
    except ValueError as fault:
        raise Refused("sub", str(fault)) from None


def _check_times(claims: Mapping[str, object]) -> tuple[datetime | None, datetime | None]:
    """Return `exp` and `iat`. Raises Refused for a token that has expired, or that is from the future."""
    moment = now().timestamp()
    expires, begins, issued = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is not None and moment >= expires + LEEWAY:
        raise Refused("exp", "is in the past")
    if begins is not None and begins > moment + LEEWAY:
        raise Refused("nbf", "is in the future")
    if issued is not None and issued > moment + LEEWAY:
        raise Refused("iat", "is in the future")
    return _moment(expires), _moment(issued)


def _seconds(claims: Mapping[str, object], name: str) -> int | float | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(name, "is not a number of seconds")
    return value


def _moment(seconds: int | float | None) -> datetime | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(max(0, min(seconds, _LAST_SECOND)), UTC)


def _decoded(part: bytes) -> bytes:
    """Return the bytes of a base64url part. They are none for a part that does not have its one spelling."""
    try:
        return urlsafe_b64decode(part)
    except ValueError:
        return b""


class _Ambiguous(dict[str, object]):
    """An object with a name twice. Programs differ in which of the two counts, so a token with it is refused."""


def _json_object(text: bytes) -> Mapping[str, object] | None:
    try:
        found = _DECODER.decode(text.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Ambiguous(found)


def _refuse_constant(_name: str) -> NoReturn:
    raise_alone(ValueError("NaN and Infinity are not JSON"))


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse_constant)
