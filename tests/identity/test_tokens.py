"""`keyman.identity.tokens`: a format that a secret scanner can verify by itself."""

from __future__ import annotations

import hashlib
import re
from math import log2

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.errors import Unauthenticated
from keyman.identity.tokens import (
    ALL_SCOPES,
    ALPHABET,
    DEFAULT_SCOPES,
    RANDOM_CHARACTERS,
    Scope,
    Token,
    parse_scopes,
    scopes_text,
)

# Made by a CRC-32 (IEEE 802.3, reflected, 0xEDB88320) and a base62 (0-9, A-Z, a-z, six digits) written only for this.
VECTORS = (
    "km_0000000000000000000000000000002C8GjS",
    "km_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz4IlJEz",
    "km_0123456789ABCDEFGHIJKLMNOPQRST4PMbyp",
    "km_keymanKEYMANkeymanKEYMAN0123454Tozls",
)

RANDOM = st.text(ALPHABET, min_size=RANDOM_CHARACTERS, max_size=RANDOM_CHARACTERS)


def reference(random: str) -> str:
    """The token of a random part by docs/reference/api.md: bit by bit, digit by digit."""
    crc = 0xFFFFFFFF
    for byte in random.encode():
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    number, digits = crc ^ 0xFFFFFFFF, ""
    while len(digits) < 6:
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[number % 62] + digits
        number //= 62
    return f"km_{random}{digits}"


@pytest.mark.parametrize("token", VECTORS)
def test_the_vectors_are_tokens(token: str) -> None:
    assert Token.parse(token).reveal() == token
    assert reference(token[3:33]) == token


@given(random=RANDOM)
def test_a_token_is_its_random_part_and_the_check_of_it(random: str) -> None:
    assert Token.parse(reference(random)).reveal() == reference(random)


def test_a_generated_token_has_the_documented_form_and_parses() -> None:
    tokens = {Token.generate().reveal() for _ in range(500)}
    assert len(tokens) == 500
    for token in tokens:
        assert re.fullmatch(r"km_[0-9A-Za-z]{36}", token)
        assert reference(token[3:33]) == token
        Token.parse(token)
    assert RANDOM_CHARACTERS * log2(len(ALPHABET)) >= 160
    for position in range(3, 33):
        assert len({token[position] for token in tokens}) > 40, "every character is random"


@given(random=RANDOM, position=st.integers(0, 38), character=st.characters())
def test_one_wrong_character_is_noticed(random: str, position: int, character: str) -> None:
    token = reference(random)
    wrong = token[:position] + character + token[position + 1 :]
    assume(wrong != token)
    refused(wrong)


@given(random=RANDOM, position=st.integers(3, 37))
def test_two_characters_the_wrong_way_round_are_noticed(random: str, position: int) -> None:
    token = reference(random)
    wrong = token[:position] + token[position + 1] + token[position] + token[position + 2 :]
    assume(wrong != token)
    refused(wrong)


@given(random=RANDOM, start=st.integers(0, 39), end=st.integers(0, 39))
def test_a_part_of_a_token_is_none(random: str, start: int, end: int) -> None:
    assume((start, end) != (0, 39))
    refused(reference(random)[start:end])


@given(text=st.text() | st.text(ALPHABET).map("km_{}".format))
def test_any_other_text_is_none_and_is_not_repeated(text: str) -> None:
    assume(len(text) != 39)
    refused(text)


@pytest.mark.parametrize("around", [" {}", "{} ", "{}\n", "\n{}", "{}\0", "Bearer {}", "{}{}"])
def test_a_token_with_anything_around_it_is_none(around: str) -> None:
    refused(around.format(VECTORS[0], VECTORS[0]))


def refused(text: str) -> None:
    with pytest.raises(Unauthenticated) as fault:
        Token.parse(text)
    assert len(text) < 8 or text not in fault.value.detail


@given(random=RANDOM)
def test_what_is_stored_and_shown_of_it(random: str) -> None:
    token = Token.parse(reference(random))
    assert token.digest() == hashlib.sha256(token.reveal().encode()).digest()
    assert token.hint() == f"km_...{token.reveal()[-4:]}"
    assert random not in repr(token)


def test_the_scopes_are_the_documented_ones() -> None:
    assert [scope.value for scope in Scope] == ["keys:read", "keys:write", "tokens:manage", "audit:read", "keys:use"]
    assert {"keys:read", "keys:write"} == DEFAULT_SCOPES


@given(scopes=st.frozensets(st.sampled_from(sorted(ALL_SCOPES))))
def test_scopes_come_back_from_their_text(scopes: frozenset[Scope]) -> None:
    assert parse_scopes(scopes_text(scopes)) == scopes
    assert len(scopes_text(scopes)) <= 200
