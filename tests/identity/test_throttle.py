"""`keyman.identity.throttle`: the buckets of attempts.

tests/planes/management/api/test_throttling.py tests how attempts are counted.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.identity import limits
from keyman.identity.limits import login_buckets, password_buckets, signup_buckets
from keyman.ids import UserId


def networks(address: str) -> set[bytes]:
    return {bucket.digest for bucket in signup_buckets(address)}


@given(one=st.ip_addresses(v=4), other=st.ip_addresses(v=4))
def test_an_ipv4_address_is_a_client(one: ipaddress.IPv4Address, other: ipaddress.IPv4Address) -> None:
    assert (networks(str(one)) == networks(str(other))) is (one == other)
    assert networks(f"::ffff:{one}") == networks(str(one)), "also when the socket speaks IPv6"


@given(one=st.ip_addresses(v=6), other=st.ip_addresses(v=6))
def test_an_ipv6_client_is_a_64(one: ipaddress.IPv6Address, other: ipaddress.IPv6Address) -> None:
    assume(not one.ipv4_mapped and not other.ipv4_mapped)
    assert (networks(str(one)) == networks(str(other))) is (int(one) >> 64 == int(other) >> 64)


def test_addresses_and_networks_are_counted_apart() -> None:
    account, network = login_buckets("ada@example.com", "192.0.2.1")
    assert (account.limit, network.limit) == (limits.MAX_PER_ACCOUNT, limits.MAX_PER_NETWORK)
    changes = {bucket.digest for bucket in password_buckets(UserId(1), "192.0.2.1")}
    assert len({account.digest, network.digest, *changes, *networks("192.0.2.1")}) == 5
    assert login_buckets("ada@example.com", None) == (account,)
    assert signup_buckets(None) == ()


@given(email=st.text(min_size=1, max_size=50), address=st.ip_addresses().map(str))
def test_a_bucket_is_stored_as_a_hash(email: str, address: str) -> None:
    for bucket in login_buckets(email, address):
        assert len(bucket.digest) == 32


@pytest.mark.parametrize(("one", "other"), [("a|network|1", "a"), ("x", "X"), ("", "|")])
def test_no_name_is_taken_for_another(one: str, other: str) -> None:
    buckets = [*login_buckets(one, "192.0.2.1"), *login_buckets(other, "192.0.2.2")]
    assert len({bucket.digest for bucket in buckets}) == 4


def test_a_guesser_gets_few_guesses_a_day() -> None:
    a_day = limits.MAX_PER_ACCOUNT * (timedelta(days=1) / limits.WINDOW)
    assert a_day <= 1000
