"""Reading assignments: what a shell and the usual libraries read."""

from __future__ import annotations

import pytest

from keyman.cli.owner.dotenv import assignments


def read(text: str) -> dict[str, str]:
    return {one.name: one.value.reveal() for one in assignments(text)}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=sk-1", "sk-1"),
        ("  A = sk-1  ", "sk-1"),
        ("export A=sk-1", "sk-1"),
        ("set A=sk-1", "sk-1"),
        ('A="sk-1"', "sk-1"),
        ("A='sk-1'", "sk-1"),
        ("A=`sk-1`", "sk-1"),
        ('A="sk-1" # mine', "sk-1"),
        ("A=sk-1 # mine", "sk-1"),
        ("A=sk#1", "sk#1"),
        ("A=sk-1;", "sk-1"),
        ('A="a \\"b\\" $c"', 'a "b" $c'),
        ('A=\'{"a": "b"}\'', '{"a": "b"}'),
        ("A=c2sK==", "c2sK=="),
        ("\ufeffA=sk-1", "sk-1"),
    ],
)
def test_a_value_is_what_a_shell_would_take(line: str, value: str) -> None:
    assert read(line) == {"A": value}


@pytest.mark.parametrize("line", ["", "# A=sk-1", "A=", "A=''", "A=# nothing", "no assignment", "1A=x", "A-B=x"])
def test_other_lines_are_none(line: str) -> None:
    assert read(line) == {}


def test_lines_are_counted_and_line_ends_of_every_system_are_read() -> None:
    found = list(assignments("# first\r\nA=1\r\n\r\nB=2\n"))
    assert [(one.line, one.name, one.value.reveal()) for one in found] == [(2, "A", "1"), (4, "B", "2")]
    assert "1" not in repr(found[0].value)
