"""`keyman.providers.masking`: masks show no more than they should, and are recognised as masks."""

from __future__ import annotations

import pytest
from hypothesis import given

from keyman.providers.masking import is_mask, mask
from keyman.providers.services import SHIPPED
from tests.providers.pastes import ACCOUNT
from tests.providers.values import CATALOGUE, SERVICES, VALUES


@given(service=SERVICES, value=VALUES)
def test_a_mask_is_the_prefix_three_dots_and_four_characters(service: str, value: str) -> None:
    shown = CATALOGUE.mask(service, value)
    if len(value) < 12:
        assert shown == "..."
    else:
        prefix = CATALOGUE.prefix_of(service, value)
        assert shown in (f"{prefix}...{value[-4:]}", f"...{value[-4:]}")
        assert shown.startswith(prefix) is value.startswith(prefix) or not prefix
        assert value not in shown
        assert len(shown) <= 64


@given(service=SERVICES, value=VALUES)
def test_every_mask_is_known_again(service: str, value: str) -> None:
    assert is_mask(CATALOGUE.mask(service, value))


@pytest.mark.parametrize(
    "text",
    [
        *("...", "...abcd", "sk-...abcd", "sk-...", "sk-proj-...abcd", "sk-ant-api03-R2D...igAA"),
        *(
            "sk-p***cdef",
            "gsk_\u2022\u2022",
            "AIza\u2026wxyz",
            "AIza\u22efwxyz",
            "\u25cf\u25cf\u25cf",
            "hf_\u00b7\u00b7",
        ),
    ],
)
def test_a_key_without_its_middle_is_a_mask(text: str) -> None:
    assert is_mask(text)


@pytest.mark.parametrize(
    "text", ["", "..", "sk-..abcd", "a.b.c", "**", "sk-**abcd", "\u00b7", "sk\u2013abcd", "xxxxxxxx"]
)
def test_what_only_looks_like_a_mask_is_none(text: str) -> None:
    assert not is_mask(text)


def test_a_long_prefix_and_a_tail_do_not_add_up_to_the_value() -> None:
    assert mask("acme-live-key-v1abcd", "acme-live-key-v1") == "...abcd"
    assert mask("acme-live-key-v1abcde", "acme-live-key-v1") == "acme-live-key-v1...bcde"


def test_an_unknown_service_of_a_stored_key_shows_no_prefix() -> None:
    assert CATALOGUE.mask("GONE", "sk-Zq7Rk2Lw9Xc4Vb6Nm1") == "...6Nm1"


def test_each_prefix_of_a_service_is_shown() -> None:
    for service in (one for one in SHIPPED if one.credential is None):
        for prefix in service.prefixes or ("",):
            assert CATALOGUE.mask(service.service, f"{prefix}Zq7Rk2Lw9Xc4Vb6Nm1") == f"{prefix}...6Nm1"


def test_a_json_credential_shows_the_end_of_the_id_of_its_key() -> None:
    assert CATALOGUE.mask("GOOGLE_VERTEX", ACCOUNT) == "...cdef"
    assert CATALOGUE.mask("GOOGLE_VERTEX", "no JSON") == "..."
