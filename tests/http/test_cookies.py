"""`keyman.http.cookies`: the values of one cookie."""

from __future__ import annotations

import pytest

from keyman.http.cookies import cookie_values


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("", []),
        ("a=1", ["1"]),
        ("b=2; a=1; c=3", ["1"]),
        ("a=1; a=2", ["1", "2"]),
        ("a=1;a=2 ;\ta=3", ["1", "2", "3"]),
        ("a", [""]),
        ("a=", [""]),
        ("=a; aa=1; A=1", []),
        ("a=x=y", ["x=y"]),
        ('a="quoted"', ['"quoted"']),
        ("a=%41", ["%41"]),
        (";;; ;", []),
    ],
)
def test_the_values_are_those_that_were_sent_under_the_name(header: str, values: list[str]) -> None:
    assert cookie_values(header, "a") == values
