"""`keyman.planes.gateway.headers`: what is sent to a provider, and what comes back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.errors import InvalidRequest, ProviderAnswerRefused
from keyman.planes.gateway.headers import Fields, credential, forwardable, to_return, to_send
from tests.support.fast import examples

KEY = credential("bearer", "sk-the-key")

NEVER_SENT = [
    "Authorization",
    "Proxy-Authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-goog-iam-authority",
    "x-amz-security-token",
    "Ocp-Apim-Subscription-Key",
    "x-functions-key",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "Expect",
    "Max-Forwards",
    "Via",
    "Host",
    "Cookie",
    "Keyman-User",
    "Keyman-Anything",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "Forwarded",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-HTTP-Method",
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Origin",
    "Referer",
    "Sec-Fetch-Site",
    "Range",
    "If-Range",
]

NEVER_RETURNED = [
    "Connection",
    "Keep-Alive",
    "Transfer-Encoding",
    "Trailer",
    "Upgrade",
    "Set-Cookie",
    "Keyman-Key-ID",
    "Access-Control-Allow-Origin",
    "Strict-Transport-Security",
    "Clear-Site-Data",
    "Alt-Svc",
    "Refresh",
    "Proxy-Authenticate",
    "Via",
    "Server",
    "X-Accel-Redirect",
    "X-Accel-Buffering",
    "X-Accel-Expires",
    "X-Sendfile",
    "X-Sendfile2",
    "X-Lighttpd-Send-File",
    "X-LiteSpeed-Location",
    "X-Reproxy-URL",
]


def sent(*fields: tuple[str, str]) -> dict[bytes, bytes]:
    return dict(to_send(forwardable([(name.encode(), value.encode()) for name, value in fields]), KEY, ()))


@pytest.mark.parametrize("name", NEVER_SENT)
@pytest.mark.parametrize("write", [str, str.lower, str.upper, lambda name: name.replace("-", "_")])
def test_these_fields_never_reach_the_provider(name: str, write: object) -> None:
    assert callable(write)
    assert sent((write(name), "x")) == {b"accept-encoding": b"identity", b"authorization": b"Bearer sk-the-key"}


def test_what_connection_names_never_reaches_the_provider() -> None:
    found = sent(
        ("Connection", "close, X-One ,x_two"),
        ("connection", "X-Three"),
        ("x-one", "1"),
        ("X-Two", "2"),
        ("X_Three", "3"),
        ("x-four", "4"),
    )
    assert set(found) == {b"x-four", b"accept-encoding", b"authorization"}


def test_connection_cannot_take_the_key_away() -> None:
    assert sent(("Connection", "authorization"))[b"authorization"] == b"Bearer sk-the-key"


def test_the_key_is_in_the_header_of_the_service_and_nowhere_else() -> None:
    own = credential("x-acme-key", "the-key")
    mine = [(b"X-Acme-Key", b"mine"), (b"X_ACME_KEY", b"mine"), (b"authorization", b"Bearer km_x")]
    fields = to_send(forwardable(mine), own, ())
    assert fields == [(b"accept-encoding", b"identity"), (b"x-acme-key", b"the-key")]
    assert "the-key" not in repr(own)


def test_a_default_is_sent_unless_the_client_sends_its_own() -> None:
    defaults = [("anthropic-version", "2023-06-01")]
    assert (b"anthropic-version", b"2023-06-01") in to_send([], KEY, defaults)
    mine = to_send([(b"Anthropic-Version", b"2024-01-01")], KEY, defaults)
    assert [value for name, value in mine if name.lower() == b"anthropic-version"] == [b"2024-01-01"]


def test_other_fields_are_sent_as_they_are() -> None:
    for name in ("Content-Type", "Content-Length", "OpenAI-Organization", "User-Agent", "Accept", "X-Stainless-Lang"):
        assert sent((name, "x"))[name.encode()] == b"x"


@pytest.mark.parametrize("name", ["Content_Length", "Content_Type", "X_Mine", "anthropic_version", "_"])
def test_a_name_with_an_underscore_is_not_sent(name: str) -> None:
    """Some servers read it as a hyphen, so it could be a second length of the body, for example."""
    assert sent((name, "x")) == {b"accept-encoding": b"identity", b"authorization": b"Bearer sk-the-key"}


@pytest.mark.parametrize(
    ("name", "value"), [(b"x-a", b"\xff"), (b"x-\xff", b"1"), (b"x a", b"1"), (b"x-a", b"a\r\nb: c")]
)
def test_a_field_that_cannot_be_sent_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        forwardable([(name, value)])


@pytest.mark.parametrize("name", NEVER_RETURNED)
def test_these_fields_never_come_back(name: str) -> None:
    for write in (name, name.lower(), name.replace("-", "_")):
        assert to_return([(write.encode(), b"x")], bytes) == []


NAMES = st.sampled_from([name.encode() for name in (*NEVER_RETURNED, "X-Request-ID", "Content-Type", "Retry-After")])
STAYS = {b"x-request-id", b"content-type", b"retry-after"}


@settings(max_examples=examples(300))
@given(fields=st.lists(st.tuples(NAMES, st.text("xyz", max_size=9).map(str.encode))))
def test_values_that_come_back_are_redacted_and_their_order_stays(fields: Fields) -> None:
    found = to_return(fields, lambda value: value.replace(b"x", b"*"))
    assert found == [(name.lower(), value.replace(b"x", b"*")) for name, value in fields if name.lower() in STAYS]


@pytest.mark.parametrize(
    ("name", "value"), [(b"x", b"a\rb: c"), (b"x", b"a\nb"), (b"x", b"\x00"), (b"x y", b"1"), (b"", b"1")]
)
def test_a_field_that_could_become_two_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(ProviderAnswerRefused):
        to_return([(name, value)], bytes)
