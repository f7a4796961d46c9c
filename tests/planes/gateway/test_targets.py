"""`keyman.planes.gateway.targets`: a path or a query that could be read in two ways is refused."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.errors import InvalidRequest
from keyman.planes.gateway.targets import CREDENTIAL_MEMBERS, Target, check_query, parse_target
from tests.support.fast import examples


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"*",
        b"openai/v1/models",
        b"http://evil.example/openai/v1/models",
        b"//evil.example/v1",
        b"/openai//v1",
        b"/openai/../anthropic/v1",
        b"/openai/..",
        b"/openai/.",
        b"/openai/./v1",
        b"/openai/%2e%2e/v1",
        b"/openai/v1%2fmodels",
        b"/openai/v1;x=1/models",
        b"/openai\\v1",
        b"/openai/v1 /models",
        b"/openai/v1\t",
        b"/openai/\x00",
        b"/openai/v1\r\nX: y",
        "/openai/é".encode(),
        b"/openai/\xff",
    ],
)
def test_an_unclear_path_is_refused(path: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_target(path)


@settings(max_examples=examples(500))
@given(path=st.binary(max_size=40).map(lambda rest: b"/openai/" + rest))
def test_a_path_that_passes_is_what_was_sent(path: bytes) -> None:
    try:
        target = parse_target(path)
    except InvalidRequest:
        target, path = Target("openai", ""), b"/openai"  # it was refused
    assert f"/{target.slug}{target.path}".encode() == path
    segments = target.path.split("/")
    assert not {".", ".."} & set(segments)
    assert not set("%\\;") & set(target.path)
    assert "" not in segments[1:-1]


@given(path=st.sampled_from(["/openai/v1/chat/completions", "/google/v1beta/models/gemini-2.5-pro:countTokens"]))
def test_ordinary_paths_pass(path: str) -> None:
    slug, _, rest = path[1:].partition("/")
    assert parse_target(path.encode()) == (slug, f"/{rest}")


@settings(max_examples=examples(300))
@given(
    name=st.sampled_from(sorted(one.decode() for one in CREDENTIAL_MEMBERS)),
    write=st.sampled_from(
        [str, quote, quote_plus, str.upper, str.title, lambda text: f"%{ord(text[0]):02x}{text[1:]}"]
    ),
    before=st.sampled_from(["", "a=1&", "a;", "&", "=&"]),
)
def test_a_credential_in_the_query_is_refused_however_it_is_written(name: str, write: object, before: str) -> None:
    assert callable(write)
    with pytest.raises(InvalidRequest):
        check_query(f"{before}{write(name)}=sk-123".encode())


def test_these_members_of_a_query_are_credentials() -> None:
    """The test above takes the names from the code."""
    for name in ("key", "api_key", "api-key", "access_token", "token", "subscription-key", "$key"):
        for query in (name, f"{name}=x", f"a=1&{name.upper()}=x"):
            with pytest.raises(InvalidRequest):
                check_query(query.encode())


@pytest.mark.parametrize(
    "query", [b"$alt=sse", b"%24key=1", b"a=1&$fields=x", b"a b", b"a\x00", "é".encode(), b"key", b"+key=1", b"a=1#b"]
)
def test_other_unclear_queries_are_refused(query: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_query(query)


@pytest.mark.parametrize(
    "query", [b"", b"alt=sse", b"api-version=2024-10-21", b"monkey=1", b"a=key", b"keys=1", b"a=$x"]
)
def test_ordinary_queries_pass(query: bytes) -> None:
    check_query(query)
