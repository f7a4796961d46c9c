"""JSON Web Tokens signed with ES256 in plain Python, for Vault's JWT login to verify.

No dependency of keyman signs anything, and not every machine has `openssl`. For tests only: not constant in time.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping

# NIST P-256 (SEC 2, 2.4.2): the field, the order of the group, its generator.
_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""The DER of a SubjectPublicKeyInfo for P-256, up to the point (RFC 5480)."""

Point = tuple[int, int] | None


def _add(left: Point, right: Point) -> Point:
    if left is None or right is None:
        return left or right
    if left[0] == right[0]:
        if (left[1] + right[1]) % _P == 0:
            return None
        slope = (3 * left[0] * left[0] - 3) * pow(2 * left[1], -1, _P)
    else:
        slope = (right[1] - left[1]) * pow(right[0] - left[0], -1, _P)
    x = (slope * slope - left[0] - right[0]) % _P
    return x, (slope * (left[0] - x) - left[1]) % _P


def _times(scalar: int, point: Point) -> Point:
    result: Point = None
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Signer:
    """A fresh key."""

    def __init__(self) -> None:
        self._secret = secrets.randbelow(_N - 1) + 1
        public = _times(self._secret, _G)
        assert public is not None
        point = b"\x04" + public[0].to_bytes(32, "big") + public[1].to_bytes(32, "big")
        body = base64.encodebytes(_SPKI + point).decode()
        self.public_pem = f"-----BEGIN PUBLIC KEY-----\n{body}-----END PUBLIC KEY-----\n"

    def token(self, claims: Mapping[str, object]) -> str:
        """A signed JWT."""
        head = _encoded(json.dumps({"alg": "ES256", "typ": "JWT"}).encode())
        signed = f"{head}.{_encoded(json.dumps(claims).encode())}"
        digest = int.from_bytes(hashlib.sha256(signed.encode()).digest(), "big")
        nonce = secrets.randbelow(_N - 1) + 1
        point = _times(nonce, _G)
        assert point is not None
        r = point[0] % _N
        s = pow(nonce, -1, _N) * (digest + r * self._secret) % _N
        return f"{signed}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
