"""JSON Web Tokens: what is accepted, and each way in which a token is refused."""

from __future__ import annotations

import base64
import hmac
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from keyman.identity.jose import BEARER_TYPES, LEEWAY, MAX_TOKEN, OF_OTHER_TOKENS, Jwt, Rules, Unverified, verified
from keyman.identity.jwks import KINDS, KeySet, Refused, UnknownKey
from tests.support.issuer import AUDIENCE, Issuer, jwks, key_for, public, sign, sign_bytes

ISSUER = Issuer("https://id.example.com", "ES256")
KID, (_, KEY) = next(iter(ISSUER.keys.items()))
RULES = Rules(
    ISSUER.url, AUDIENCE, BEARER_TYPES, refused=OF_OTHER_TOKENS, other_audiences=frozenset({"keyman-resolver"})
)
HEADER = {"alg": "ES256", "kid": KID, "typ": "JWT"}


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def refusal(token: str, keys: KeySet | None = None, rules: Rules = RULES) -> Refused:
    with pytest.raises(Refused) as refused:
        verified(token, keys or ISSUER.key_set(), rules)
    assert refused.value.claim in str(refused.value)
    return refused.value


@pytest.mark.parametrize("algorithm", KINDS)
def test_each_algorithm_is_accepted(algorithm: str) -> None:
    issuer = Issuer(ISSUER.url, algorithm)
    claims = verified(issuer.token(scope="keys:read  keys:write"), issuer.key_set(), RULES)
    assert (claims.issuer, claims.subject, claims.audiences) == (ISSUER.url, "ada", (AUDIENCE,))
    assert claims.words("scope") == {"keys:read", "keys:write"}
    assert repr(Jwt.parse(issuer.token())) == "Jwt(***)"
    assert (repr(claims), repr(Unverified.parse(issuer.token()))) == ("Claims(***)", "Unverified(***)")


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_changed_byte_anywhere_is_refused(algorithm: str) -> None:
    issuer = Issuer(ISSUER.url, algorithm)
    header, payload, signature = issuer.token().split(".")
    other = encoded(json.dumps(issuer.claims(sub="eve")).encode())
    changed = ("B" if signature[5] == "A" else "A").join((signature[:5], signature[6:]))
    for token in (
        f"{header}.{other}.{signature}",
        f"{header}.{payload}.{changed}",
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.",
        f"{header}.{payload}.{encoded(bytes(64))}",
    ):
        assert refusal(token, issuer.key_set()).claim in ("its signature", "its form")


def test_an_audience_among_others_is_accepted() -> None:
    claims = verified(ISSUER.token(aud=["other", AUDIENCE]), ISSUER.key_set(), RULES)
    assert claims.audiences == ("other", AUDIENCE)


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_the_type_of_a_bearer_token_is_accepted(kind: str | None) -> None:
    assert verified(ISSUER.token(header={"typ": kind}), ISSUER.key_set(), RULES)


@pytest.mark.parametrize("kind", ["logout+jwt", "secevent+jwt", "JWS", "", 5, ["JWT"]])
def test_another_type_is_refused(kind: object) -> None:
    assert refusal(ISSUER.token(header={"typ": kind})).claim == "typ"


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "ES256K", "RS1", "Ed25519", 5, None]
)
def test_another_algorithm_is_refused(algorithm: object) -> None:
    payload = encoded(json.dumps(ISSUER.claims()).encode())
    header = encoded(json.dumps({**HEADER, "alg": algorithm}).encode())
    for signature in ("", encoded(bytes(64))):
        assert refusal(f"{header}.{payload}.{signature}").claim == "alg"


def test_a_token_without_an_algorithm_is_refused() -> None:
    assert refusal(f"{encoded(b'{}')}.{encoded(json.dumps(ISSUER.claims()).encode())}.").claim == "alg"


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_hs256_with_the_public_key_is_refused(form: str) -> None:
    issuer = Issuer(ISSUER.url, "RS256")
    kid, (_, key) = next(iter(issuer.keys.items()))
    secret = {"pem": key.as_pem(), "der": key.as_der(), "jwk": json.dumps(public(key)).encode()}[form]
    header = encoded(json.dumps({"alg": "HS256", "kid": kid}).encode())
    signed = f"{header}.{encoded(json.dumps(issuer.claims()).encode())}"
    forged = f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"
    assert refusal(forged, issuer.key_set()).claim == "alg"


@pytest.mark.parametrize(
    ("signing", "published"), [("RS256", "ES256"), ("ES256", "RS256"), ("ES384", "ES256"), ("EdDSA", "ES256")]
)
def test_an_algorithm_of_another_kind_of_key_is_refused(signing: str, published: str) -> None:
    keys = KeySet.parse(jwks(public(key_for(published), kid="one")))
    token = sign(key_for(signing), {"alg": signing, "kid": "one"}, json.dumps(ISSUER.claims()).encode())
    assert refusal(token, keys).claim == "alg"


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "exp", None])
def test_each_crit_is_refused(crit: object) -> None:
    token = sign(KEY, {**HEADER, "crit": crit}, json.dumps(ISSUER.claims()).encode())
    assert refusal(token).claim == "crit"


def test_keys_and_addresses_in_the_header_are_ignored() -> None:
    attacker = key_for("ES256", 7)
    added = {
        "jku": "https://evil.example.com/jwks",
        "x5u": "file:///etc/passwd",
        "jwk": public(attacker),
        "x5c": ["AAAA", 5],
        "x5t": 7,
    }
    assert verified(ISSUER.token(header=added), ISSUER.key_set(), RULES)
    forged = sign(attacker, {**HEADER, **added}, json.dumps(ISSUER.claims()).encode())
    assert refusal(forged).claim == "its signature"
    named = {**added, "jwk": public(attacker, kid="mine"), "kid": "mine", "alg": "ES256"}
    assert type(refusal(sign(attacker, named, json.dumps(ISSUER.claims()).encode()))) is UnknownKey


@pytest.mark.parametrize("kid", ["../../../etc/passwd", "' OR 1=1 --", "\0", "x" * 10_000, "", "KEY-ES256-0", "é"])
def test_a_kid_is_only_compared(kid: str) -> None:
    refused = refusal(ISSUER.token(KID, header={"kid": kid}))
    assert type(refused) is UnknownKey
    assert not kid or kid not in str(refused)


@pytest.mark.parametrize("kid", [5, [], {}, True])
def test_a_kid_that_is_no_string_is_refused(kid: object) -> None:
    assert refusal(ISSUER.token(KID, header={"kid": kid})).claim == "kid"


def test_a_missing_kid_is_accepted_where_one_key_fits() -> None:
    issuer = Issuer(ISSUER.url, "ES256", "RS256")
    (kid, _) = issuer.keys
    assert verified(issuer.token(kid, header={"kid": None}), issuer.key_set(), RULES)
    issuer.rotate("ES256")
    assert refusal(issuer.token(kid, header={"kid": None}), issuer.key_set()).claim == "kid"


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("iss", "https://id.example.com/"),
        ("iss", "https://ID.example.com"),
        ("iss", None),
        ("iss", ["https://id.example.com"]),
        ("iss", 5),
        ("aud", "other"),
        ("aud", "Keyman"),
        ("aud", []),
        ("aud", None),
        ("aud", 5),
        ("aud", {"keyman": 1}),
        ("aud", ["keyman", 5]),
        ("aud", ["keyman", "keyman-resolver"]),
        ("sub", None),
        ("sub", ""),
        ("sub", 42),
        ("sub", " ada"),
        ("sub", "ada\u00a0"),
        ("sub", "a\u202eda"),
        ("sub", "a\0da"),
        ("sub", "\ud800"),
        ("sub", "x" * 256),
        ("exp", None),
        ("exp", "2030-01-01"),
        ("exp", True),
        ("exp", 0),
        ("exp", -(10**400)),
        ("exp", 1_000_000_000),
        ("nbf", 2**40),
        ("nbf", "soon"),
        ("nbf", 10**400),
        ("iat", 2**40),
        ("iat", [1]),
        ("at_hash", "x"),
        ("c_hash", "x"),
        ("events", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalnum() else "value",
)
def test_a_claim_that_is_missing_or_wrong_is_named(claim: str, value: Any) -> None:
    refused = refusal(ISSUER.token(**{claim: value}))
    assert refused.claim == claim
    assert "ada" not in str(refused)


@pytest.mark.parametrize("claim", ["sub", "exp", "iat", "nbf", "aud", "iss"])
def test_null_is_not_the_same_as_a_valid_claim(claim: str) -> None:
    token = sign(KEY, HEADER, json.dumps({**ISSUER.claims(), claim: None}).encode())
    assert refusal(token).claim == claim


def test_clocks_may_differ_by_the_leeway() -> None:
    moment = time.time()
    for claim, seconds in (("exp", -LEEWAY - 1), ("nbf", LEEWAY + 60), ("iat", LEEWAY + 60)):
        assert refusal(ISSUER.token(None, None, **{claim: moment + seconds})).claim == claim
    near = LEEWAY - 10
    assert verified(ISSUER.token(exp=moment - near, nbf=moment + near, iat=moment + near), ISSUER.key_set(), RULES)
    assert verified(ISSUER.token(exp=moment + 0.5), ISSUER.key_set(), RULES)


@pytest.mark.parametrize("far", [10**400, 10**18, 1e308])
def test_an_expiry_beyond_every_calendar_counts_as_the_last_moment(far: float) -> None:
    claims = verified(ISSUER.token(exp=far), ISSUER.key_set(), RULES)
    assert claims.expires_at == datetime(9999, 1, 1, tzinfo=UTC)


def test_other_rules_require_and_refuse_other_claims() -> None:
    rules = replace(RULES, required=frozenset({"jti"}), refused=frozenset({"nonce"}))
    assert refusal(ISSUER.token(), rules=rules).claim == "jti"
    assert refusal(ISSUER.token(jti="1", nonce="n"), rules=rules).claim == "nonce"
    claims = verified(ISSUER.token(jti="1", sub=None, exp=None), ISSUER.key_set(), rules)
    assert (claims.subject, claims.expires_at, claims.text("jti"), claims.text("exp")) == (None, None, "1", None)


def test_a_token_of_more_than_16_kib_is_refused() -> None:
    short = ISSUER.token(filling="x" * (MAX_TOKEN * 3 // 4 - 600))
    assert MAX_TOKEN - 500 < len(short) <= MAX_TOKEN
    assert verified(short, ISSUER.key_set(), RULES)
    assert refusal(ISSUER.token(filling="x" * MAX_TOKEN)).claim == "its length"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"iss": NaN}',
        b'{"exp": Infinity}',
        b'\xef\xbb\xbf{"iss": "x"}',
        '{"iss": "x"}'.encode("utf-16"),
        b'{"iss": "\xff"}',
        b"[" * 5_000,
        b'{"a":' * 2_000,
        b'{"exp": ' + b"9" * 5_000 + b"}",
    ],
)
def test_a_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    assert refusal(sign(KEY, HEADER, payload)).claim == "its payload"


def test_a_name_that_is_there_twice_is_refused() -> None:
    claims = json.dumps(ISSUER.claims())
    for twice in ('"sub": "eve"', '"iss": "https://evil.example.com"', '"x": {"y": 1, "y": 2}'):
        payload = f"{{{twice}, {claims[1:]}".encode()
        if "x" not in twice:
            assert refusal(sign(KEY, HEADER, payload)).claim == "its payload"
    header = json.dumps({"alg": "none", "kid": KID})[:-1] + ', "alg": "ES256"}'
    assert refusal(sign_bytes(KEY, "ES256", header.encode(), claims.encode())).claim == "its header"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        "é.é.é",
        f"{encoded(b'[]')}.e30.",
        f"{encoded(b'{')}.e30.",
        "e30=.e30.",
        "e30.e3A+.x",
    ],
)
def test_a_text_that_is_no_token_is_refused(token: str) -> None:
    assert Unverified.parse(token) is None
    assert refusal(token).claim == "its form"


def test_a_token_has_one_spelling() -> None:
    token = ISSUER.token()
    header, payload, signature = token.split(".")
    for other in (f"{token}=", f"{token} ", f" {token}", f"{header}\n.{payload}.{signature}", token.replace("-", "+")):
        if other != token:
            assert refusal(other).claim == "its form"
