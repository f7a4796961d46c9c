"""Key sets of issuers: which keys count, and sets that are hostile."""

from __future__ import annotations

import json

import pytest

from keyman.identity.jwks import KINDS, MAX_BYTES, MAX_KEYS, KeySet, Refused, UnknownKey
from tests.support.issuer import Key, jwks, key_for, new_key, public

ES256 = key_for("ES256")
RSA = key_for("RS256")


def one(key: Key, **members: object) -> KeySet:
    return KeySet.parse(jwks(public(key, kid="one", **members)))


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_key_is_found_for_each_algorithm_of_its_kind(algorithm: str) -> None:
    found = one(key_for(algorithm)).find(algorithm, "one")
    assert found.kid == "one"
    assert "key=" not in repr(found)


@pytest.mark.parametrize(
    ("key", "members", "algorithm"),
    [
        (ES256, {}, "RS256"),
        (ES256, {}, "EdDSA"),
        (ES256, {}, "ES384"),
        (key_for("ES512"), {}, "ES256"),
        (RSA, {}, "ES256"),
        (key_for("EdDSA"), {}, "ES256"),
        (RSA, {"alg": "RS256"}, "PS256"),
        (RSA, {"alg": "RS256"}, "RS512"),
        (RSA, {"alg": "RSA-OAEP"}, "RS256"),
        (ES256, {"use": "enc"}, "ES256"),
        (ES256, {"use": "SIG"}, "ES256"),
        (ES256, {"key_ops": ["sign"]}, "ES256"),
        (ES256, {"key_ops": []}, "ES256"),
        (new_key("RSA", 1024), {}, "RS256"),
        (new_key("OKP", "X25519"), {}, "EdDSA"),
    ],
)
def test_a_key_that_does_not_fit_the_algorithm_is_refused(key: Key, members: dict[str, object], algorithm: str) -> None:
    with pytest.raises(Refused) as refused:
        one(key, **members).find(algorithm, "one")
    assert (refused.value.claim, type(refused.value)) == ("alg", Refused)


def test_a_key_for_verification_may_say_so() -> None:
    assert one(ES256, use=None, key_ops=["verify"], alg="ES256").find("ES256", "one")
    assert one(ES256, use=None).find("ES256", "one")


def test_a_symmetric_key_never_counts() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "kid": "one"}
    for algorithm in KINDS:
        with pytest.raises(Refused):
            KeySet.parse(jwks(secret)).find(algorithm, "one")


def test_an_unknown_kid_is_told_apart_from_a_key_that_does_not_fit() -> None:
    with pytest.raises(UnknownKey):
        one(ES256).find("ES256", "two")


def test_without_a_kid_exactly_one_key_must_fit() -> None:
    both = KeySet.parse(jwks(public(ES256, kid="one"), public(RSA, kid="two"), public(RSA, kid="enc", use="enc")))
    assert both.find("ES256", None).kid == "one"
    assert both.find("PS384", None).kid == "two"
    for found in (both, KeySet.parse(jwks(public(ES256), public(key_for("ES256", 1))))):
        with pytest.raises(Refused, match="kid is missing") as refused:
            found.find("EdDSA" if found is both else "ES256", None)
        assert type(refused.value) is Refused


def test_a_kid_of_two_keys_of_one_kind_is_refused() -> None:
    twice = KeySet.parse(jwks(public(ES256, kid="one"), public(key_for("ES256", 1), kid="one")))
    with pytest.raises(Refused, match="more than one"):
        twice.find("ES256", "one")


def test_the_private_part_of_a_published_key_is_left_out() -> None:
    for key in (RSA, ES256, key_for("EdDSA")):
        document = jwks({**key.as_dict(private=True), "kid": "one"})
        found = KeySet.parse(document).find({"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[key.key_type], "one")
        assert not found.key.is_private


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>not found</html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'\xff\xfe{"keys": []}',
        b"[" * 100_000,
        b'{"keys": ' + b"[" * 100_000,
        jwks(*[public(ES256, kid=str(number)) for number in range(MAX_KEYS + 1)]),
        b'{"keys": [], "more": "' + b"x" * MAX_BYTES + b'"}',
    ],
)
def test_a_document_that_is_no_set_or_too_large_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(is|has) ") as fault:
        KeySet.parse(document)
    assert "xxxx" not in str(fault.value)


def test_a_set_of_a_hundred_keys_is_accepted() -> None:
    found = KeySet.parse(jwks(*[public(ES256, kid=str(number)) for number in range(MAX_KEYS)]))
    assert (len(found), found.find("ES256", "99").kid) == (MAX_KEYS, "99")


@pytest.mark.parametrize(
    "hostile",
    [
        5,
        None,
        [],
        {},
        {"kty": 5},
        {"kty": "EC", "kid": {"a": 1}},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "bad"},
        {"kty": "EC", "crv": "P-256", "x": "!!", "y": "é", "kid": "bad"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "bad"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "bad"},
        {"kty": "RSA", "n": "", "e": "", "kid": "bad"},
        {"kty": "RSA", "n": "A" * 100_000, "e": "AQAB", "kid": "bad"},
        {"kty": "RSA", "n": "_" * 20_000, "e": "AQAB", "kid": "bad"},
        {"kty": "RSA", "n": RSA.as_dict()["n"], "e": RSA.as_dict()["n"], "kid": "bad"},
        {"kty": "RSA", "n": RSA.as_dict()["n"], "e": "AQ", "kid": "bad"},
        {"kty": "RSA", "n": RSA.as_dict()["n"], "e": "BA", "kid": "bad"},
        {"kty": "\0", "kid": "../../etc/passwd"},
    ],
)
def test_a_damaged_key_leaves_the_others_usable(hostile: object) -> None:
    found = KeySet.parse(json.dumps({"keys": [hostile, public(ES256, kid="one")]}).encode())
    assert len(found) == 1
    assert found.find("ES256", "one").kid == "one"
