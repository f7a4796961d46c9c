"""`keyman.providers.pasted`: what people paste is recognised, and a message names the mistake.

`pastes.py` has the texts. The API, the pages and the client are tested with the same ones.
"""

from __future__ import annotations

from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyman.decoding import decode
from keyman.errors import InvalidRequest
from keyman.keys.schemas import NewKey
from keyman.providers.credentials import MAX_CREDENTIAL
from keyman.providers.pasted import bare
from keyman.providers.recognition import ProviderKey, check_new_key
from tests.providers.pastes import BODY, PASTES, Paste
from tests.providers.values import CATALOGUE


def message_for(paste: Paste) -> str | None:
    try:
        decode(NewKey, {"service": paste.service, "api_key": paste.text}, check_new_key(CATALOGUE))
    except InvalidRequest as refused:
        ((field, message),) = refused.errors
        assert field == "api_key"
        return str(message)
    return None


def test_the_table_has_many_different_pastes() -> None:
    assert len(PASTES) == len(set(PASTES)) >= 100


@pytest.mark.parametrize("paste", PASTES)
def test_a_paste_is_a_key_or_its_mistake_is_named(paste: Paste) -> None:
    message = message_for(paste)
    assert message == paste.message
    assert BODY not in (message or "")


@pytest.mark.parametrize(
    "around",
    [
        "{}", " {} ", '"{}"', "'{}'", "`{}`", "{},", "{};", "K={}", "k: {}", '"K": "{}",', "export OPENAI_API_KEY='{}'",
        "$env:OPENAI_API_KEY = \"{}\"", "OPENAI_API_KEY:='{}'", "Bearer {}", "Authorization: Bearer {}", "x-api-key:{}",
        "'Authorization': 'Bearer {}',", "\u201c{}\u201d", "\u201e{}\u201c", "# API_KEY={}", "'OPENAI_API_KEY={}'",
        '"{}',
    ],
)  # fmt: skip
def test_a_key_is_taken_out_of_what_is_around_it(around: str) -> None:
    for key in (f"sk-{BODY}", f"{BODY}==", "sk-ant-api03-a_b-c"):
        assert bare(around.format(key)).strip() == key


@pytest.mark.parametrize(
    "text",
    ["", " ", "K=", "K=short", "https://example.com/key=abcdefgh", "A=abcdefgh\nB=12345678", '{"a": "abcdefgh"}'],
)
def test_what_is_no_key_with_something_around_it_stays_as_it_is(text: str) -> None:
    assert bare(text) == text


@pytest.mark.parametrize("note", [": production-chat", " : production-chat", " = production-chat"])
def test_a_note_behind_a_key_does_not_take_its_place(note: str) -> None:
    for key in (f"sk-{BODY}1234", "one0two3-four-5six-7eight-nine9ten0"):
        assert bare(key + note) == key + note
        assert message_for(Paste(key + note, None)) is not None


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60))
def test_a_key_that_is_accepted_is_not_changed(text: str) -> None:
    assert bare(text) == text or message_for(Paste(text, None)) is not None


@given(around=st.sampled_from(['"{}"', "'{}'", "`{}`", "({})", "<{}>", "[{}]", "{},", "{};", "{}\\n", "K={}", "k: {}"]))
def test_two_mistakes_are_named_one_after_the_other(around: str) -> None:
    for paste in PASTES:
        if paste.message is None and len(paste.text) < 8192:
            assert message_for(paste._replace(text=around.format(paste.text.strip()))) is not None


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=60))
def test_a_key_of_letters_digits_and_the_signs_of_base64_is_accepted(text: str) -> None:
    kept = "".join(character for character in text if character.isalnum() or character in "-_+/")
    if len(kept) >= 8:
        assert ProviderKey.parse(kept).reveal() == kept
        assert ProviderKey.parse(f"{kept}==").reveal() == f"{kept}=="


@pytest.mark.parametrize("piece", ["a", "a.", "a_", "-", "=", ":", " ", "export ", '"', "\\", "a:", "x-", "key", "."])
def test_the_time_of_a_check_grows_with_the_length(piece: str) -> None:
    started = monotonic()
    for text in (piece * (MAX_CREDENTIAL * 3), f"{piece * MAX_CREDENTIAL}!"):
        try:
            ProviderKey.parse(text)
        except ValueError:
            continue
    assert monotonic() - started < 2
