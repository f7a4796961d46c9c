"""`keyman.values`: JSON becomes a valid value, or an error message that does not repeat it."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema_rs
import time_machine
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st

from keyman.characters import DEFAULT_IGNORABLE, REFUSED_IN_ADDRESSES
from keyman.identity.tokens import ScopeName
from keyman.keys.sorting import Flag, KeyCursor, SortName, StatusName, VerdictName
from keyman.patterns import BIDIRECTIONAL
from keyman.providers.catalogue import ServiceSlug
from keyman.providers.recognition import ProviderKey
from keyman.secret import Secret
from keyman.storage.paging import Cursor, Limit
from keyman.values import (
    EmailAddress,
    FutureTime,
    GivenPassword,
    Label,
    NewPassword,
    RequiredLabel,
    SearchText,
    Value,
)
from tests.support.fast import examples

TYPES: tuple[type[Value], ...] = (
    Label, RequiredLabel, SearchText, EmailAddress, NewPassword, GivenPassword, ProviderKey, FutureTime, ScopeName,
    ServiceSlug, Limit, Cursor, KeyCursor, SortName, StatusName, VerdictName, Flag,
)  # fmt: skip
QUERY = (Limit, Cursor, KeyCursor)
"""Parsed from text in a query, where the schema tells of the number."""

TEXT = st.text(st.characters() | st.sampled_from("\0\n\x7f\x85\u2028\u202e\u200b\ufeff\ud800é🔑 @."), max_size=130)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["keys:read", "OPENAI", "a@b.c"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=4,
)


def parsed(kind: type[Value], raw: object) -> Any:
    """The value, or the ValueError that says what is wrong."""
    try:
        return kind.parse(raw)
    except ValueError as fault:
        return fault


@settings(max_examples=examples(400))
@given(kind=st.sampled_from(TYPES), raw=ANYTHING)
def test_whatever_comes_becomes_a_value_or_a_sentence_that_repeats_nothing(kind: type[Value], raw: object) -> None:
    outcome = parsed(kind, raw)
    if isinstance(outcome, ValueError):
        message = str(outcome)
        assert message
        assert message[0].islower()
        assert not message.endswith(".")
        if isinstance(raw, str) and len(raw) > 25:
            assert raw not in message
    else:
        assert isinstance(outcome, kind)


@settings(max_examples=examples(400))
@given(kind=st.sampled_from([kind for kind in TYPES if kind not in QUERY]), raw=ANYTHING)
@example(kind=Label, raw="a\nb")
@example(kind=Label, raw="\u202e")
@example(kind=RequiredLabel, raw="a\0")
@example(kind=RequiredLabel, raw=" ")
@example(kind=RequiredLabel, raw="\u3000")
@example(kind=SearchText, raw="\0")
@example(kind=EmailAddress, raw="a\0@b")
@example(kind=EmailAddress, raw="a\u200b@b")
@example(kind=EmailAddress, raw="x" * 65 + "@b")
@example(kind=EmailAddress, raw="\ue000@b")
@example(kind=ProviderKey, raw="x" * 513)
def test_the_schema_of_a_value_takes_what_its_parser_takes(kind: type[Value], raw: object) -> None:
    """Both ways, but for white space around a value, which is stripped, and for what is past."""
    assume(not isinstance(raw, str) or _is_unicode(raw))  # else it is not JSON in UTF-8, and no schema is asked
    assume(not isinstance(raw, float) or math.isfinite(raw))
    validator = jsonschema_rs.Draft202012Validator({**kind.schema}, validate_formats=True)
    is_taken = not isinstance(parsed(kind, raw), ValueError)
    stripped = raw.strip() if isinstance(raw, str) and kind in (EmailAddress, ProviderKey) else raw
    fits = validator.is_valid(stripped)
    if kind is FutureTime:
        assert fits or not is_taken
    elif kind is EmailAddress and isinstance(stripped, str):
        normal = unicodedata.normalize("NFC", stripped)
        assert is_taken == (validator.is_valid(normal) and not any(map(REFUSED_IN_ADDRESSES.holds, normal))), raw
    else:
        assert is_taken == fits, raw


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@given(text=TEXT)
def test_a_label_is_kept_as_it_is(text: str) -> None:
    outcome = parsed(Label, text)
    bad = any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or re.match(f"[{BIDIRECTIONAL}]", c) for c in text)
    if bad or len(text) > 100:
        assert isinstance(outcome, ValueError)
    else:
        blank = all(c.isspace() or c == "\u2800" or DEFAULT_IGNORABLE.holds(c) for c in text)
        assert outcome == ("" if blank else text)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_a_password_is_kept_as_it_is(text: str) -> None:
    outcome = parsed(NewPassword, text)
    if 10 <= len(text) <= 256:
        assert outcome == Secret(text)
    else:
        assert isinstance(outcome, ValueError)


@given(local=st.text("abcXYZ.+-_é", min_size=1, max_size=20), domain=st.text("abc.xyz-ü", min_size=1, max_size=30))
def test_an_address_is_kept_as_it_is_spelt_and_known_by_any_spelling(local: str, domain: str) -> None:
    address = EmailAddress.parse(f" {local}@{domain} ")
    assert address == unicodedata.normalize("NFC", f"{local}@{domain}")
    for spelling in (address.upper(), address.lower(), unicodedata.normalize("NFD", address)):
        assert EmailAddress.parse(spelling).key == address.key


def test_the_key_of_an_address_fits_its_column() -> None:
    """Whatever folding and composing do to it: PostgreSQL refuses what is too long for a column."""
    worst = max(range(0x110000), key=lambda point: len(unicodedata.normalize("NFC", chr(point).casefold())))
    assert len(unicodedata.normalize("NFC", chr(worst).casefold())) <= 3
    longest = EmailAddress.parse("ΐ" * 32 + "@" + "ΐ" * 94)
    assert len(longest) <= 254
    assert len(longest.key) <= 762


@settings(max_examples=examples(200))
@given(moment=st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_a_time_to_come_is_the_same_instant_in_utc(moment: datetime) -> None:
    try:
        expected = moment.astimezone(UTC)
    except OverflowError:
        reject()
    outcome = parsed(FutureTime, moment.isoformat())
    offset = moment.utcoffset()
    # An offset of seconds, as before railways, is not RFC 3339.
    assume(offset is None or offset.total_seconds() % 60 == 0)
    if expected <= datetime.now(UTC):
        assert isinstance(outcome, ValueError)
    else:
        assert outcome == expected
        assert outcome.tzinfo is UTC


@settings(max_examples=examples(200))
@given(
    year=st.integers(0, 99_999),
    rest=st.text("0123456789-:.TtZz+ ", max_size=24),
    form=st.sampled_from(["{year}-01-01T00:00:00Z", "{year}-12-31T23:59:60Z", "{year:04}-01-01T{rest}", "{rest}"]),
)
def test_what_is_no_time_is_said_to_be_none(year: int, rest: str, form: str) -> None:
    outcome = parsed(FutureTime, form.format(year=year, rest=rest))
    assert isinstance(outcome, ValueError | datetime)


def test_a_time_is_to_come_until_it_is_there() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    for offset, is_taken in ((-1, True), (0, False), (1, False)):
        with time_machine.travel(moment + timedelta(seconds=offset), tick=False):
            assert (not isinstance(parsed(FutureTime, "2030-01-01T00:00:00Z"), ValueError)) is is_taken
