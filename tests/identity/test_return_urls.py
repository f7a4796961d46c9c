"""Return URLs: what can be registered, and what an application may name in a link."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from keyman.errors import InvalidRequest
from keyman.identity.return_urls import ReturnUrl, choose

SHOP = "https://shop.example.com"


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        (SHOP, f"{SHOP}/"),
        (f"{SHOP}/", f"{SHOP}/"),
        ("HTTPS://Shop.Example.COM/Settings", f"{SHOP}/Settings"),
        (f"{SHOP}:443/a", f"{SHOP}/a"),
        (f"{SHOP}:08443/a", f"{SHOP}:8443/a"),
        (f"{SHOP}/a/b?tab=keys&next=%2Fa%2Fb", f"{SHOP}/a/b?tab=keys&next=%2Fa%2Fb"),
        (f"{SHOP}?tab=keys", f"{SHOP}/?tab=keys"),
        (f"{SHOP}/m%C3%BCsli/.well-known/..a/b..", f"{SHOP}/m%C3%BCsli/.well-known/..a/b.."),
        ("http://localhost:3000/", "http://localhost:3000/"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("http://[::1]:3000/", "http://[::1]:3000/"),
        ("http://shop.localhost:80/", "http://shop.localhost/"),
        ("https://xn--mnchen-3ya.example/", "https://xn--mnchen-3ya.example/"),
    ],
)
def test_a_return_url_is_written_in_one_way(raw: str, parsed: str) -> None:
    assert ReturnUrl.parse(raw) == parsed
    assert ReturnUrl.parse(parsed) == parsed


REFUSED = [
    "",
    "/settings",
    "//shop.example.com/",
    "shop.example.com",
    "javascript:alert(1)",
    "data:text/html,x",
    "ftp://shop.example.com/",
    "https:/shop.example.com/",
    "https:shop.example.com/",
    "https:///shop.example.com/",
    "http://shop.example.com/",
    "http://127.0.0.1.example.com/",
    "http://localhost.example.com/",
    "http://0x7f.1/",
    "http://10.0.0.1/",
    "https://ada@shop.example.com/",
    "https://ada:pw@shop.example.com/",
    "https://shop.example.com@evil.example/",
    "https://shop.example.com:443@evil.example/",  # pragma: allowlist secret
    f"{SHOP}/#a",
    f"{SHOP}#",
    f"{SHOP}\\@evil.example/",
    "https:\\\\shop.example.com/",
    f"{SHOP}/a\\b",
    f"{SHOP}/..",
    f"{SHOP}/a/../b",
    f"{SHOP}/a/./b",
    f"{SHOP}/a/.",
    f"{SHOP}/%2e%2e/b",
    f"{SHOP}/a/%2E/b",
    f"{SHOP}/.%2e/b",
    f"{SHOP}/a%2fb",
    f"{SHOP}/a%5Cb",
    f"{SHOP}/a%0d%0aSet-Cookie:x",
    f"{SHOP}/a%00",
    f"{SHOP}/a%7F",
    f"{SHOP}/a%",
    f"{SHOP}/a%zz",
    f"{SHOP}/?a=%",
    f"{SHOP}/?a=\\",
    f" {SHOP}/",
    f"{SHOP}/ ",
    f"{SHOP}/\n",
    f"{SHOP}/\t",
    f"{SHOP}/a b",
    f"{SHOP}/\x00",
    f"{SHOP}/é",
    "https://münchen.example/",
    "https://shop.example.com。evil.example/",
    "https://shop.example.com./",
    "https://.shop.example.com/",
    "https://shop.example.com:/",
    "https://shop.example.com:0/",
    "https://shop.example.com:65536/",
    "https://shop.example.com:８４/",
    "https://[::1/",
    "https://*.example.com/",
    f"{SHOP}/{'a' * 2048}",
    f'{SHOP}/"><script>',
]


@pytest.mark.parametrize("raw", REFUSED)
def test_what_a_program_may_read_in_another_way_is_refused(raw: str) -> None:
    with pytest.raises(ValueError, match="must"):
        ReturnUrl.parse(raw)


HIDDEN = st.sampled_from(["%2e", "%2E", "%2f", "%2F", "%5c", "%5C"])
"""Escapes of a dot, a slash and a backslash: a browser or a server may decode them."""


@given(HIDDEN, st.sampled_from([SHOP, f"{SHOP}:8443", f"{SHOP}/a/b", f"{SHOP}/%C3%BC/"]), st.integers(0, 60))
def test_no_dot_slash_or_backslash_is_hidden_before_the_query(hidden: str, url: str, place: int) -> None:
    place = min(place, len(url))
    for query in ("", "?next=/a"):
        with pytest.raises(ValueError, match="must"):
            ReturnUrl.parse(f"{url[:place]}{hidden}{url[place:]}{query}")


@given(HIDDEN, st.sampled_from(["%2e", "a", "/", "%2E%2e", "?b=", ""]), st.sampled_from(["", "/", "/a/b"]))
def test_in_the_query_they_are_the_applications_own_text(hidden: str, more: str, path: str) -> None:
    """A browser sends a query as it is: nothing in it changes the address."""
    kept = f"?next={more}{hidden}{more}"
    assert ReturnUrl.parse(f"{SHOP}{path}{kept}") == f"{SHOP}{path or '/'}{kept}"


PIECES = [*"/.?a%:@#\\", "%2e", "%2F", "%5c", "..", "%25", "2e", "//"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_an_accepted_url_has_one_reading(end: str) -> None:
    try:
        url = ReturnUrl.parse(f"{SHOP}/{end}")
    except ValueError:
        reject()
    before, _, _ = url.partition("?")
    assert before.startswith(f"{SHOP}/")
    assert not re.search(r"%(?:2e|2f|5c)|[\\#]|/\.{1,2}(?:/|\Z)", before[len(SHOP) :], re.IGNORECASE)


@pytest.mark.parametrize("raw", [None, 7, True, ["https://shop.example.com/"]])
def test_only_text_is_a_url(raw: object) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        ReturnUrl.parse(raw)


@pytest.mark.parametrize(
    ("registered", "wanted", "allowed"),
    [
        (f"{SHOP}/", f"{SHOP}", True),
        (f"{SHOP}/", f"{SHOP}/a/b?c", True),
        (SHOP, f"{SHOP}/a", True),
        (f"{SHOP}/app", f"{SHOP}/app", True),
        (f"{SHOP}/app", f"{SHOP}/app/", True),
        (f"{SHOP}/app", f"{SHOP}/app/keys", True),
        (f"{SHOP}/app", f"{SHOP}/app?tab=keys", True),
        (f"{SHOP}/app?a=1", f"{SHOP}/app/b", True),
        (f"{SHOP}/app", f"{SHOP}/application", False),
        (f"{SHOP}/app", f"{SHOP}/app.evil", False),
        (f"{SHOP}/app", f"{SHOP}/", False),
        (f"{SHOP}/app", f"{SHOP}/APP", False),
        (f"{SHOP}/app/", f"{SHOP}/app", False),
        (f"{SHOP}/app", f"{SHOP}//app", False),
        (f"{SHOP}/", "https://shop.example.com.evil.example/", False),
        (f"{SHOP}/", "https://evil.example/", False),
        (f"{SHOP}/", "https://evil.example/shop.example.com/", False),
        (f"{SHOP}/", "https://a.shop.example.com/", False),
        (f"{SHOP}/", f"{SHOP}:8443/", False),
        (f"{SHOP}:8443/", f"{SHOP}/", False),
        ("http://localhost:3000/", "http://localhost:3001/", False),
        ("http://localhost/", "https://localhost/", False),
        ("http://localhost/", "http://127.0.0.1/", False),
    ],
)
def test_a_link_leads_only_to_a_registered_url_or_below_it(registered: str, wanted: str, allowed: bool) -> None:
    known, other = ReturnUrl.parse("https://other.example/x"), ReturnUrl.parse(registered)
    given = ReturnUrl.parse(wanted)
    assert other.covers(given) is allowed
    if not allowed:
        with pytest.raises(InvalidRequest) as refused:
            choose([known, other], given)
        assert refused.value.errors[0].field == "return_url"
        assert wanted not in str(refused.value.errors)
    else:
        assert choose([known, other], given) == given


def test_the_first_registered_url_is_the_default() -> None:
    first, second = ReturnUrl.parse(f"{SHOP}/a"), ReturnUrl.parse(f"{SHOP}/b")
    assert choose([first, second], None) == first
