"""An issuer of JSON Web Tokens on loopback: keys, tokens, discovery and JWKS over real HTTP.

joserfc makes the keys and signs. `served` runs the issuer; what it answers can be replaced, for an issuer that is down
or hostile.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64encode

from keyman.identity.jwks import KeySet
from tests.support.http import FaultyServer, Reply, Request, answer, faulty_server

Key = RSAKey | ECKey | OKPKey

AUDIENCE = "keyman"

KEY_OF: Mapping[str, tuple[str, str | int]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", 2048)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""A kind of key for each algorithm."""


def key_for(algorithm: str, number: int = 0) -> Key:
    """Return a key for an algorithm. Another `number` is another key."""
    return new_key(*KEY_OF[algorithm], number)


@cache
def new_key(kind: str, what: str | int, number: int = 0) -> Key:
    """Return a key, which the process keeps: an RSA key takes long to make."""
    assert number >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of small keys, which a test makes on purpose
        if kind == "RSA":
            return RSAKey.generate_key(int(what))
        return ECKey.generate_key(str(what)) if kind == "EC" else OKPKey.generate_key(what)  # type: ignore[arg-type]


def public(key: Key, **members: object) -> dict[str, object]:
    """Return a key as an issuer publishes it. A member that is None is left out."""
    entry = {**key.as_dict(private=False), "use": "sig", **members}
    return {name: value for name, value in entry.items() if value is not None}


def jwks(*entries: Mapping[str, object]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def sign(key: Key, header: Mapping[str, object], payload: bytes) -> str:
    """Return a token with exactly this header and payload."""
    return sign_bytes(key, str(header["alg"]), json.dumps(header).encode(), payload)


def sign_bytes(key: Key, algorithm: str, header: bytes, payload: bytes) -> str:
    signed = urlsafe_b64encode(header) + b"." + urlsafe_b64encode(payload)
    signature = JWSRegistry.algorithms[algorithm].sign(signed, key)
    return (signed + b"." + urlsafe_b64encode(signature)).decode()


class Issuer:
    """Signs tokens with its keys, of which the last one is the newest. `replies` replaces an answer, by path."""

    def __init__(self, url: str = "https://id.example.com", *algorithms: str) -> None:
        self.url = url
        self.keys: dict[str, tuple[str, Key]] = {}
        self.replies: dict[str, Callable[[], Reply]] = {}
        self.server: FaultyServer | None = None
        self._made = 0
        for algorithm in algorithms or ("ES256",):
            self.rotate(algorithm)

    def rotate(self, algorithm: str = "ES256", *, keep: bool = True) -> str:
        """Add a key, and return its `kid`. Without `keep` it replaces all others."""
        kid = f"key-{algorithm}-{self._made}"
        if not keep:
            self.keys.clear()
        self.keys[kid] = (algorithm, key_for(algorithm, self._made))
        self._made += 1
        return kid

    def jwks(self) -> bytes:
        return jwks(*(public(key, kid=kid, alg=algorithm) for kid, (algorithm, key) in self.keys.items()))

    def key_set(self) -> KeySet:
        return KeySet.parse(self.jwks())

    def claims(self, **changes: object) -> dict[str, object]:
        """Return the claims of a token for `ada`. A change to None leaves the claim out."""
        moment = int(time.time())
        claims = {"iss": self.url, "sub": "ada", "aud": AUDIENCE, "exp": moment + 300, "iat": moment, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, kid: str | None = None, header: Mapping[str, object] | None = None, **changes: object) -> str:
        """Return a signed token. `header` changes its header, and `changes` its claims."""
        kid = kid or list(self.keys)[-1]
        algorithm, key = self.keys[kid]
        members = {"alg": algorithm, "kid": kid, "typ": "JWT", **(header or {})}
        members = {name: value for name, value in members.items() if value is not None}
        return sign(key, members, json.dumps(self.claims(**changes)).encode())

    def requests(self, path: str = "/jwks") -> int:
        """Return how often this path was asked for."""
        return 0 if self.server is None else sum(request.target == path for request in self.server.requests)

    def reply(self, request: Request) -> Reply:
        path = request.target.partition("?")[0]
        if path in self.replies:
            return self.replies[path]()
        if request.target == "/jwks":
            return Reply(200, self.jwks())
        if request.target == "/.well-known/openid-configuration":
            return answer({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})
        return answer({}, 404)


@asynccontextmanager
async def served(*algorithms: str) -> AsyncIterator[Issuer]:
    """Run an issuer on loopback."""
    issuer = Issuer("", *algorithms)
    async with faulty_server(issuer.reply) as server:
        issuer.server, issuer.url = server, server.address
        yield issuer


def decoded(token: str) -> Any:
    """Return the payload of a token, without a check."""
    return json.loads(jws.extract_compact(token.encode()).payload)
