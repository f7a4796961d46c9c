"""The public keys of an issuer (JWKS, RFC 7517), parsed once.

joserfc reads each key from its public members only. A key that cannot verify a signature here is left out: a symmetric
one, one for encryption, an RSA key that is too small, or one of a kind that keyman does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from keyman.errors import KeymanError

MAX_BYTES = 256 * 1024
"""Bytes of a set. One with 100 RSA keys of 4,096 bits and their certificates has about 200 KiB."""

MAX_KEYS = 100
"""Keys of a set. Large issuers publish fewer than 20."""

RSA_BITS = range(2048, 8192 + 1)
"""Sizes of RSA keys: below, they are too weak; above, a verification would take milliseconds."""

MAX_EXPONENT_BITS = 64
"""Of an RSA key. Nearly all have 65537; a verification takes longer with each bit."""

KINDS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), frozenset({"RSA"})),
    "ES256": frozenset({"P-256"}),
    "ES384": frozenset({"P-384"}),
    "ES512": frozenset({"P-521"}),
    "EdDSA": frozenset({"Ed25519", "Ed448"}),
}
"""The accepted algorithms (RFC 7518, RFC 8037), and the kinds of keys for each: a curve, or RSA."""

Key = RSAKey | ECKey | OKPKey


class Refused(KeymanError):
    """A JWT is refused because of a claim or a member of its header, which the text names. It repeats no value."""

    def __init__(self, claim: str, why: str) -> None:
        super().__init__(f"The JWT is refused: {claim} {why}.")
        self.claim = claim


class UnknownKey(Refused):
    """The set has no key with the `kid` of the JWT. A newer set may have it."""

    def __init__(self) -> None:
        super().__init__("kid", "names no key of the issuer")


@dataclass(frozen=True)
class VerificationKey:
    """A key that verifies signatures. `kind` is a curve, or RSA. `algorithm` is the only one that it is for, or None
    if it is for each algorithm of its kind.
    """

    kid: str | None
    kind: str
    algorithm: str | None
    key: Key = field(repr=False)

    def fits(self, algorithm: str) -> bool:
        return self.kind in KINDS[algorithm] and self.algorithm in (None, algorithm)


class KeySet:
    """The keys of an issuer."""

    def __init__(self, keys: Sequence[VerificationKey], kids: frozenset[str]) -> None:
        self._keys = tuple(keys)
        self._kids = kids  # with those of keys that were left out

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def parse(cls, document: bytes) -> KeySet:
        """Parse a JWKS. Raises ValueError with the end of a sentence that begins with the name of the set."""
        if len(document) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES // 1024} KiB")
        try:
            raw = msgspec.json.decode(document, type=_Document).keys
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("is not a JSON Web Key Set") from None
        if len(raw) > MAX_KEYS:
            raise ValueError(f"has more than {MAX_KEYS} keys")
        entries = [entry for entry in map(_entry, raw) if entry is not None]
        keys = [key for key in map(_usable, entries) if key is not None]
        return cls(keys, frozenset(entry.kid for entry in entries if entry.kid is not None))

    def find(self, algorithm: str, kid: str | None) -> VerificationKey:
        """Return the one key for an algorithm of KINDS. Raises Refused, and UnknownKey for a `kid` that is not known.

        Without a `kid`, exactly one key of the whole set must fit.
        """
        named = [key for key in self._keys if kid is None or key.kid == kid]
        fitting = [key for key in named if key.fits(algorithm)]
        if len(fitting) == 1:
            return fitting[0]
        if kid is None:
            raise Refused("kid", "is missing, and not exactly one key of the issuer fits the algorithm")
        if kid not in self._kids:
            raise UnknownKey
        if fitting:
            raise Refused("kid", "names more than one key of the issuer")
        raise Refused("alg", "does not fit the key that kid names")


class _Document(msgspec.Struct):
    keys: list[msgspec.Raw]


class _Entry(msgspec.Struct):
    """The public members of a key that count. All others are ignored, such as those of a private key."""

    kty: str
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    key_ops: list[str] | None = None
    crv: str = ""
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""


def _entry(raw: msgspec.Raw) -> _Entry | None:
    try:
        return msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, RecursionError):
        return None


def _usable(entry: _Entry) -> VerificationKey | None:
    """Return the key, or None for one that must not verify a signature."""
    if entry.use not in (None, "sig") or (entry.key_ops is not None and "verify" not in entry.key_ops):
        return None
    kind = entry.kty if entry.kty == "RSA" else entry.crv
    try:
        key = _import(entry)
    except (ValueError, TypeError, KeyError, JoseError, UnsupportedAlgorithm):  # it is damaged
        return None
    return None if key is None else VerificationKey(entry.kid, kind, entry.alg, key)


def _import(entry: _Entry) -> Key | None:
    match entry.kty:
        case "RSA" if _bits(entry.n) in RSA_BITS and _bits(entry.e) <= MAX_EXPONENT_BITS:
            return RSAKey.import_key({"kty": "RSA", "n": entry.n, "e": entry.e})
        case "EC" if entry.crv in ("P-256", "P-384", "P-521"):
            return ECKey.import_key({"kty": "EC", "crv": entry.crv, "x": entry.x, "y": entry.y})
        case "OKP" if entry.crv in ("Ed25519", "Ed448"):
            return OKPKey.import_key({"kty": "OKP", "crv": entry.crv, "x": entry.x})
        case _:
            return None


def _bits(number: str) -> int:
    return int.from_bytes(urlsafe_b64decode(number.encode())).bit_length()
