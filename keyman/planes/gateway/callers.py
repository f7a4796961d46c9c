"""Who calls the gateway, and whose key is meant.

SDKs of providers put their key into one of four headers. There the gateway expects a token: an application's, or one of
a user with the scope `keys:use`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from keyman.config.gateway import GatewaySettings
from keyman.config.identity import JwtSettings
from keyman.errors import FieldError, InvalidRequest, Unauthenticated
from keyman.http.credentials import Claimed, bearer_of, recognised
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.issuers import Issuer
from keyman.identity.jose import parts_of
from keyman.identity.jwt import JwtProof
from keyman.identity.key_sets import KeySource
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.principals import Credentials, Principal, Proof
from keyman.identity.tokens import Token
from keyman.identity.workloads import WorkloadProof
from keyman.keys.request import Request
from keyman.planes.gateway.headers import plain
from keyman.providers.catalogue import ServiceSlug
from keyman.storage.transactions import Database
from keyman.values import Purpose, RowNumber, Subject

T = TypeVar("T")

ADVICE = (
    "This is not a token of keyman. Where the SDK takes an API key, give it the token of an application, or your own "
    "access token with the scope keys:use."
)

_ENDED = "This is the token of neither an application nor a user, or it has expired or been revoked."
"""Said where both count. A token that has ended is not known to have been one of the two."""

_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key"})


def claimed(scope: Mapping[str, Any]) -> Claimed:
    """Return the one credential of a request. Raises InvalidRequest for several.

    An `Authorization` with another scheme, such as Basic from a proxy, does not count.
    """
    found = [(name.lower(), value.decode("latin-1").strip()) for name, value in scope["headers"]]
    if sum(name == b"authorization" for name, _ in found) > 1:
        raise InvalidRequest("The request has more than one Authorization header. Send one.")
    shown = {
        bearer_of(value) if name == b"authorization" else value for name, value in found if name in _CREDENTIAL_HEADERS
    } - {None}
    if len(shown) > 1:
        raise InvalidRequest("The request has several different credentials. Send one token, in one header.")
    return recognised(shown.pop() or "", lambda _issuer: True) if shown else Claimed()


class TokenOfAnybody:
    """A Proof that identifies an application by its token, and a user by a personal access token."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._proofs: list[Proof] = [ApplicationProof()]
        if settings.personal:
            self._proofs.append(TokenProof(with_address=False))

    def find(self, credentials: Credentials) -> str | None:
        return credentials.bearer

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        if len(self._proofs) == 1:
            return await self._proofs[0].verify(db, credential, credentials)
        Token.parse(credential)  # its own sentence is for a token that was not copied completely
        for proof in self._proofs:
            try:
                return await proof.verify(db, credential, credentials)
            except Unauthenticated:
                continue  # it may be a token of the other kind
        raise Unauthenticated(_ENDED)


class JwtOfAnybody:
    """A Proof that identifies a user by a JWT of the issuer in the settings, and an application by any other."""

    def __init__(
        self, settings: GatewaySettings, jwt: JwtSettings | None, keys: KeySource | None, workloads: WorkloadProof
    ) -> None:
        self._workloads = workloads
        self._jwt = jwt if settings.personal else None
        self._users: JwtProof | None = None
        if self._jwt is not None and keys is not None:
            self._users = JwtProof(self._jwt, keys, reads_only=True)

    def find(self, credentials: Credentials) -> str | None:
        return credentials.jwt

    async def verify(self, db: Database, credential: str, credentials: Credentials) -> Principal:
        if self._users is not None and self._is_of_user(credential):
            return await self._users.verify(db, credential, credentials)
        return await self._workloads.verify(db, credential, credentials)

    def _is_of_user(self, credential: str) -> bool:
        """Say who is to verify it. Nothing of the JWT is verified yet."""
        parts = parts_of(credential)
        if self._jwt is None or parts is None or parts.issuer != self._jwt.issuer:
            return False
        audience = (parts.claims or {}).get("aud")
        return self._jwt.audience in (audience if isinstance(audience, list) else [audience])


def requested_key(headers: Sequence[tuple[bytes, bytes]], caller: Principal, service: str) -> Request:
    """Return the key that a request asks for. Raises InvalidRequest, which names the header.

    An application names the user or the key. A user gets own keys only.
    """
    given = _given(headers)
    key = _parsed(given, "Keyman-Key", _row_number)
    purpose = _parsed(given, "Keyman-Purpose", Purpose.parse)
    user, subject = _parsed(given, "Keyman-User", _row_number), _subject(given)
    issuer = _parsed(given, "Keyman-Issuer", Issuer.parse)
    named = sum(value is not None for value in (user, subject))
    if caller.application is None:
        if named or issuer is not None:
            raise _fault("Keyman-User", "is for applications; with your own token, your own keys are used")
        user = RowNumber(caller.user_id)
    elif named > 1 or (named == 0 and key is None):
        raise _fault("Keyman-User", "must name the user, or Keyman-Subject or Keyman-Key instead: exactly one of them")
    if issuer is not None and subject is None:
        raise _fault("Keyman-Issuer", "must come with Keyman-Subject")
    return Request(
        key_id=_or_unset(key),
        user_id=_or_unset(user),
        subject=_or_unset(subject),
        issuer=_or_unset(issuer),
        service=ServiceSlug(service),
        purpose=purpose,
    )


def _given(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the values of keyman's own headers, by lower-case name. Raises InvalidRequest for one given twice."""
    given: dict[str, str] = {}
    for name, value in headers:
        compared = plain(name)
        if not compared.startswith(b"keyman-"):
            continue
        own = compared.decode("latin-1")
        if own in given:
            raise InvalidRequest("A Keyman-… header was sent twice. Send it once.")
        try:
            given[own] = value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(
                "A Keyman-… header has a value that is not UTF-8. Use Keyman-Subject* for a subject."
            ) from None
    return given


def _parsed(given: Mapping[str, str], header: str, parse: Callable[[str], T]) -> T | None:
    value = given.get(header.lower())
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as fault:
        raise _fault(header, str(fault)) from None


def _row_number(text: str) -> RowNumber:
    return RowNumber.parse(int(text) if re.fullmatch("[1-9][0-9]{0,18}", text) else 0)


_EXTENDED = re.compile(r"utf-8'[A-Za-z0-9-]*'((?:[A-Za-z0-9!#$&+.^_`|~-]|%[0-9A-Fa-f]{2})*)", re.IGNORECASE)


def _subject(given: Mapping[str, str]) -> Subject | None:
    """Return the subject, which `Keyman-Subject*` can give in other characters than ASCII (RFC 8187)."""
    if "keyman-subject" in given and "keyman-subject*" in given:
        raise InvalidRequest("Send either Keyman-Subject or Keyman-Subject*.")
    if (text := given.get("keyman-subject")) is not None and not re.fullmatch("[ -~]*", text):
        raise _fault("Keyman-Subject", "must be printable ASCII; use Keyman-Subject*: UTF-8''… for other characters")
    extended = _parsed(given, "Keyman-Subject*", _extended)
    return extended if extended is not None else _parsed(given, "Keyman-Subject", Subject.parse)


def _extended(text: str) -> Subject:
    found = _EXTENDED.fullmatch(text)
    if found is None:
        raise ValueError("must be UTF-8'' and the percent-encoded subject")
    return Subject.parse(unquote_to_bytes(found[1]).decode())


def _or_unset(value: T | None) -> T | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value


def _fault(header: str, message: str) -> InvalidRequest:
    return InvalidRequest.at(FieldError(header, message))
