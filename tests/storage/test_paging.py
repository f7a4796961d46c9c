"""`keyman.storage.paging`: cursors are opaque, short and exact.

tests/planes/management/api/test_listing.py tests the pages.
"""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyman.ids import MAX_ID
from keyman.storage.paging import DEFAULT_LIMIT, MAX_LIMIT, UNSAID, Cursor, Limit


@given(number=st.integers(1, MAX_ID))
@example(number=1)
@example(number=MAX_ID)
def test_a_cursor_comes_back_as_it_went_out(number: int) -> None:
    text = str(Cursor(number))
    assert re.fullmatch("[0-9A-Za-z_-]{11}", text), "fit for a URL as it is"
    assert Cursor.parse(text) == number


@given(text=st.text(max_size=20) | st.text("ABCabc019-_=", min_size=9, max_size=13))
@example(text="")
@example(text="AAAAAAAAAAA")
@example(text="__________8")
@example(text="AAAAAAAAAAo=")
def test_any_other_text_is_refused_or_within_bounds(text: str) -> None:
    with suppress(ValueError):
        assert 0 < Cursor.parse(text) <= MAX_ID


@pytest.mark.parametrize("raw", [None, 7, True, b"AAAAAAAAAAo", ["AAAAAAAAAAo"]])
def test_a_cursor_is_a_text(raw: object) -> None:
    with pytest.raises(ValueError, match="must be a cursor"):
        Cursor.parse(raw)


@given(number=st.integers())
def test_a_limit_is_a_number_from_1_to_200(number: int) -> None:
    if 1 <= number <= MAX_LIMIT:
        assert Limit.parse(str(number)) == number
    else:
        with pytest.raises(ValueError, match="from 1 to 200"):
            Limit.parse(str(number))


@pytest.mark.parametrize("raw", [None, 7, True, 1.0, "", " 1", "+1", "1.0", "1_0", "٣", "²", "1" * 5000, ["1"]])
def test_what_is_not_spelt_as_one_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match="from 1 to 200"):
        Limit.parse(raw)


def test_the_limit_that_is_not_said_is_50() -> None:
    assert UNSAID == DEFAULT_LIMIT == 50
