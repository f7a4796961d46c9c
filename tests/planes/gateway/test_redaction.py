"""`keyman.planes.gateway.redaction`: whatever the chunks are, the value does not come through."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.planes.gateway.redaction import Pattern, Redaction, TooMuchWork, redact
from keyman.secret import Secret
from tests.support.fast import examples

PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
VALUES = st.text(PRINTABLE, min_size=8, max_size=40)
AROUND = st.binary(max_size=20) | st.sampled_from([b"sk-", b"\\", b"%", b"%2", b"\\u00", b"data: "])


def as_dotnet_does(value: str) -> str:
    """JSON as System.Text.Json writes it, which escapes more than JSON asks for."""
    return re.sub(r"""["&'+<>`\\]""", lambda found: f"\\u{ord(found[0]):04X}", value)


WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": lambda value: value,
    "JSON": lambda value: json.dumps(value)[1:-1],
    "JSON with escaped slashes": lambda value: json.dumps(value)[1:-1].replace("/", "\\/"),
    "JSON of .NET": as_dotnet_does,
    "percent": lambda value: quote(value, safe=""),
    "percent in lower case": lambda value: re.sub("%..", lambda found: found[0].lower(), quote(value, safe="")),
    "percent of a path": lambda value: quote(value, safe="/:@!$&'()*+,;="),
}


def passed(pattern: Pattern, chunks: list[bytes]) -> bytes:
    redaction = Redaction(pattern)
    return b"".join([*(redaction.feed(chunk) for chunk in chunks), redaction.finish()])


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(text) + 1) for place in places})
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@settings(max_examples=examples(1000))
@given(
    value=VALUES,
    writer=st.sampled_from(sorted(WRITERS)),
    before=AROUND,
    after=AROUND,
    places=st.lists(st.integers(0, 400), max_size=8),
)
def test_the_value_never_comes_through(value: str, writer: str, before: bytes, after: bytes, places: list[int]) -> None:
    written = WRITERS[writer](value).encode()
    text = before + written + after
    found = passed(Pattern(Secret(value), "sk-...abcd"), cut(text, places))
    assert len(found) == len(text)
    assert written not in found
    assert value.encode() not in found
    assert value not in unquote(found.decode("latin-1"))


@settings(max_examples=examples(300))
@given(value=VALUES, text=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=8))
def test_a_text_without_the_value_is_passed_on_as_it_is(value: str, text: bytes, places: list[int]) -> None:
    found = passed(Pattern(Secret(value), "..."), cut(text, places))
    assert found == text or value.encode()[:1] in text or b"%" in text or b"\\" in text


@settings(max_examples=examples(300))
@given(places=st.lists(st.integers(0, 400), max_size=10))
def test_the_mask_is_padded_to_the_length_of_what_it_replaces(places: list[int]) -> None:
    value = "sk-proj-abc/def+ghi=1234"
    text = f'{{"error": "wrong key {value}, {quote(value, safe="")}"}}'.encode()
    found = passed(Pattern(Secret(value), "sk-proj-...1234"), cut(text, places))
    raw, encoded = len(value), len(quote(value, safe=""))
    mask = "sk-proj-...1234"
    assert found.decode() == f'{{"error": "wrong key {mask.ljust(raw, "*")}, {mask.ljust(encoded, "*")}"}}'


@given(places=st.lists(st.integers(0, 100), max_size=10))
def test_a_value_that_ends_with_a_backslash_is_found_at_the_end_of_the_answer(places: list[int]) -> None:
    """There a longer form could have followed."""
    value = "abcdefgh\\"
    for text in (b"xabcdefgh\\", b"xabcdefgh\\\\", b"xabcdefgh\\u005c"):
        assert passed(Pattern(Secret(value), "..."), cut(text, places)) == b"x...".ljust(len(text), b"*")


def test_an_event_that_cannot_hold_the_value_is_not_held_back() -> None:
    redaction = Redaction(Pattern(Secret("sk-proj-0123456789"), "sk-proj-...6789"))
    for event in (b'data: {"delta": "Hello"}\n\n', b"data: [DONE]\n\n", b"", b": ping\n\n", b"kkkkk-", b"sk-prox"):
        assert redaction.feed(event) == event


def test_only_what_can_be_the_beginning_is_held_back() -> None:
    redaction = Redaction(Pattern(Secret("sk-proj-0123456789"), "sk-proj-...6789"))
    assert redaction.feed(b"a task") == b"a ta"
    assert redaction.feed(b"-") == b""
    assert redaction.feed(b" ") == b"sk- "
    assert redaction.feed(b"the end: sk-pro") == b"the end: "
    assert redaction.finish() == b"sk-pro"


@pytest.mark.parametrize("value", ["a" * 8192, "/" * 8192, "\\" * 8192, "ab" * 4096, "%2F" * 2700])
def test_a_value_and_an_answer_that_were_made_for_it_do_not_keep_keyman_busy(value: str) -> None:
    """There is no time limit here: without the bound these would take minutes."""
    pattern = Pattern(Secret(value), "...")
    part = value[:3000].encode()
    for text in (part * 20, (part + b"x") * 20, part + value.encode() + part):
        try:
            found = redact(pattern, text)
        except TooMuchWork:
            continue
        assert value.encode() not in found


def test_the_pattern_shows_nothing() -> None:
    assert repr(Pattern(Secret("sk-0123456789"), "...")) == "Pattern(***)"


def test_an_answer_that_is_made_to_be_slow_is_given_up_however_it_is_split() -> None:
    """Each part by itself needs less than a whole answer may."""
    redaction = Redaction(Pattern(Secret("a/" * 17 + "b"), "..."))
    with pytest.raises(TooMuchWork):
        deque(map(redaction.feed, [b"a/" * 2_000] * 100))
