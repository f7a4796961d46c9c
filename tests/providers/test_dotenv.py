"""`keyman.providers.dotenv` and `naming`: what several pasted lines hold, and whose keys they are."""

from __future__ import annotations

import json
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyman.providers.dotenv import Line, read_lines
from keyman.providers.naming import OTHER_NAMES, may_be_key, service_of
from tests.providers.values import CATALOGUE

ACCOUNT = {
    "type": "service_account",
    "private_key_id": "0123456789abcdef",
    "private_key": "a\nb",
    "client_email": "a@b",
}
FILE = json.dumps(ACCOUNT, indent=2)

TEXT = f"""\ufeff# The keys of production
OPENAI_API_KEY=sk-one0two3four5
export ANTHROPIC_API_KEY="sk-ant-one0two3"   # of the team

  MISTRAL_API_KEY = 'hq2v9mXbT0c7' \r
GROQ_API_KEY: gsk_one0two3\r
GOOGLE_APPLICATION_CREDENTIALS='{FILE}'
VERTEX={FILE}
{FILE}
DATABASE_URL=postgres://example.com/db
PORT=8000
EMPTY=
"openai": "sk-one0two3four6",
Bearer sk-one0two3four7
sk-one0two3four8
HASH=abc#def12
      - OPENAI_API_KEY=sk-one0two3four0
* sk-ant-one0two3four5
-----
LATER= # to be filled in
LATER_TOO=#sk-one0two3four9
UNCLOSED="abcdefgh
LAST=1"""


def test_each_value_is_found_with_its_line_and_its_name() -> None:
    assert [(line.number, line.name, line.value) for line in read_lines(TEXT)] == [
        (2, "OPENAI_API_KEY", "sk-one0two3four5"),
        (3, "ANTHROPIC_API_KEY", "sk-ant-one0two3"),
        (5, "MISTRAL_API_KEY", "hq2v9mXbT0c7"),
        (6, "GROQ_API_KEY", "gsk_one0two3"),
        (7, "GOOGLE_APPLICATION_CREDENTIALS", FILE),
        (13, "VERTEX", FILE),
        (19, "", FILE),
        (25, "DATABASE_URL", "postgres://example.com/db"),
        (26, "PORT", "8000"),
        (27, "EMPTY", ""),
        (28, "openai", "sk-one0two3four6"),
        (29, "", "sk-one0two3four7"),
        (30, "", "sk-one0two3four8"),
        (31, "HASH", "abc#def12"),
        (32, "OPENAI_API_KEY", "sk-one0two3four0"),
        (33, "", "sk-ant-one0two3four5"),
        (34, "", "-----"),
        (35, "LATER", ""),
        (36, "LATER_TOO", ""),
        (37, "UNCLOSED", "abcdefgh"),
        (38, "LAST", "1"),
    ]


def test_json_in_quotation_marks_is_unescaped_unless_it_is_json_already() -> None:
    escaped = json.dumps(FILE)
    (line,) = read_lines(f"VERTEX={escaped}")
    assert json.loads(line.value) == ACCOUNT
    (line,) = read_lines('K="a\\"b\\\\c-defgh"')
    assert line.value == 'a"b\\c-defgh'


def test_a_line_does_not_show_its_value() -> None:
    assert "sk-one" not in repr(Line(1, "OPENAI_API_KEY", "sk-one0two3four5"))


@pytest.mark.parametrize(
    "line",
    [
        "one0TWO3four5SIX7eight9TEN==",
        "one0two3four5six7eight9=",
        "sk-one0two3four5six7eight9: the key of the team",
        "sk-ant-api03-one0two3four5six7 = team",
        "one0two3-four-5six-7eight-nine9ten0: note",
    ],
)
def test_a_key_with_something_behind_it_is_not_read_as_a_name(line: str) -> None:
    """Pages show names."""
    (found,) = read_lines(line)
    assert found.name == ""


@pytest.mark.parametrize(
    "name",
    [
        "openai_api_key_2_for_production",
        "AZURE_OPENAI_API_KEY_2",
        "GPT4O_KEY_3_V2",
        "BACKUP_20300131120000000",
        "openAiKeyOfTeam",
    ],
)
def test_numbers_may_be_part_of_a_name(name: str) -> None:
    (found,) = read_lines(f"{name}=sk-one0two3four5")
    assert (found.name, found.value) == (name, "sk-one0two3four5")


@given(st.text(st.sampled_from("ab=:'\"{}\\#\n\r \t,")))
def test_no_text_is_read_wrongly_enough_to_fail(text: str) -> None:
    lines = list(read_lines(text))
    assert [line.number for line in lines] == sorted({line.number for line in lines})


@pytest.mark.parametrize("piece", ["a='", '"', "{", "a\n", "a=b\n", '\\"', " ", "#", 'a="\\', '{"a":[\n'])
def test_the_time_to_read_grows_with_the_length(piece: str) -> None:
    def seconds(number: int) -> float:
        began = monotonic()
        list(read_lines(piece * number))
        return monotonic() - began

    assert seconds(20_000) < 5


@pytest.mark.parametrize(
    ("name", "value", "service"),
    [
        ("OPENAI_API_KEY", "sk-one0two3four5", "OPENAI"),
        ("ANY", "sk-ant-one0two3", "ANTHROPIC"),
        ("OPENAI_API_KEY", "sk-ant-one0two3", "ANTHROPIC"),
        ("AZURE_OPENAI_API_KEY", "one0two3four5", "AZURE_OPENAI"),
        ("mistralApiKey", "one0two3four5", "MISTRAL"),
        ("HF_TOKEN", "one0two3four5", "HUGGINGFACE"),
        ("GEMINI_API_KEY", "one0two3four5", "GOOGLE"),
        ("AWS_BEARER_TOKEN_BEDROCK", "one0two3four5", "AWS_BEDROCK"),
        ("", "sk-one0two3four5", ""),
        ("LLM_KEY", "sk-one0two3four5", ""),
        ("COMPANY_KEY", "one0two3four5", ""),
        ("ANY", FILE, "GOOGLE_VERTEX"),
        ("OPENAI", '{"a": "b"}', ""),
    ],
)
def test_a_value_belongs_to_the_service_that_it_or_its_name_shows(name: str, value: str, service: str) -> None:
    assert service_of(CATALOGUE, name, value) == service


def test_every_other_name_is_of_a_service() -> None:
    assert all(service in CATALOGUE for service in OTHER_NAMES.values())


@pytest.mark.parametrize(
    ("name", "value", "may_be"),
    [
        ("OPENAI_API_KEY", "one0two3four5", True),
        ("LLM", "sk-one0two3four5", True),
        ("GITHUB_TOKEN", "ghp_one0two3four5", True),
        ("", "one0two3four5", True),
        ("ANY", FILE, True),
        ("OPENAI_API_KEY", "", False),
        ("PORT", "8000", False),
        ("OPENAI_BASE_URL", "https://api.openai.com/v1", False),
        ("OPENAI_MODEL", "gpt-4o", False),
        ("KEY", "https://example.com", False),
        ("CONFIG", '{"a": "b"}', False),
    ],
)
def test_settings_are_told_from_what_may_be_a_key(name: str, value: str, *, may_be: bool) -> None:
    assert may_be_key(CATALOGUE, name, value) is may_be
