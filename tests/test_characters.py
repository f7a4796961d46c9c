"""Look-alike addresses, and labels that show nothing."""

from __future__ import annotations

import unicodedata

import pytest

from keyman.characters import DEFAULT_IGNORABLE, REFUSED_IN_ADDRESSES, UNICODE_VERSION
from keyman.values import EmailAddress, Label, RequiredLabel
from tests.support.unicode_data import MODULE, RFC_5321_SYMBOLS, generate

CHANGES_DIRECTION = "\u061c"
INVISIBLE = [
    "\u00ad",
    "\u034f",
    "\u115f",
    "\u17b4",
    "\u180b",
    "\u180e",
    "\u200b",
    "\u200d",
    "\u2060",
    "\u2062",
    "\u3164",
    "\ufe0f",
    "\ufeff",
    "\uffa0",
    "\U000e0041",
    "\U000e0100",
    "\U0001d173",
]
NOT_DISPLAYED_BY_ALL = ["\ufff9", "\u2800", "\u00a0", "\u3000", "\u2028", "\u0085", "\ue000", "\uffff", "\U000f0000"]
SYMBOLS = ["<", ">", "\u00a9", "\u2190", "\uffe8", "\U0001f600"]


@pytest.mark.skipif(unicodedata.unidata_version != UNICODE_VERSION, reason="this Python has another version of Unicode")
def test_the_module_is_what_its_generator_writes() -> None:
    assert MODULE.read_text() == generate()


@pytest.mark.parametrize(
    "character",
    [*INVISIBLE, CHANGES_DIRECTION, *NOT_DISPLAYED_BY_ALL, *SYMBOLS],
    ids=lambda c: f"U+{ord(c):04X}",
)
@pytest.mark.parametrize("form", ["ada{}@example.com", "ada@exam{}ple.com", "a{}a{}@example.com"])
def test_an_address_with_a_character_that_is_not_seen_is_refused(form: str, character: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        EmailAddress.parse(form.replace("{}", character))
    assert character not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        *(f"a{symbol}b@example.com" for symbol in RFC_5321_SYMBOLS),
        "o'hara+keys@example.com",
        "gr\u00fc\u00dfe@b\u00fccher.example",
        "\u7528\u6237@\u4f8b\u5b50.\u5e7f\u544a",
        "\u0905\u091c\u092f@\u0921\u093e\u091f\u093e.\u092d\u093e\u0930\u0924",
    ],
)
def test_an_address_of_any_script_is_accepted(address: str) -> None:
    assert EmailAddress.parse(address) == unicodedata.normalize("NFC", address)


@pytest.mark.parametrize("character", [*INVISIBLE, "\u2800", " ", "\u3000"], ids=lambda c: f"U+{ord(c):04X}")
def test_a_label_of_characters_that_show_nothing_is_empty(character: str) -> None:
    for text in (character, character * 3, f" {character} "):
        assert Label.parse(text) == ""
        with pytest.raises(ValueError, match="must not be empty"):
            RequiredLabel.parse(text)


@pytest.mark.parametrize(
    "label",
    [
        "\u0646\u0627\u0645\u0647\u200c\u0647\u0627",  # Persian, with a zero-width non-joiner
        "\u0d28\u0d4d\u200d",  # Malayalam, with a zero-width joiner
        "\u2764\ufe0f production",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
    ],
)
def test_a_label_keeps_the_joiners_and_selectors_of_its_text(label: str) -> None:
    assert Label.parse(label) == RequiredLabel.parse(label) == label


def test_what_is_not_displayed_is_refused_in_addresses() -> None:
    for first, last in DEFAULT_IGNORABLE.ranges():
        assert all(REFUSED_IN_ADDRESSES.holds(chr(point)) for point in range(first, last + 1))
