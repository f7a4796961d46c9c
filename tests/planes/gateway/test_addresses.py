"""`keyman.planes.gateway.addresses`: only public addresses are connected to."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyman.planes.gateway.addresses import AddressRefused, is_public, public_socket
from tests.support.fast import examples

INSIDE = [
    "127.0.0.1",
    "127.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104  # nobody listens there
    "255.255.255.255",
    "224.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:a00:1::",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "::10.0.0.1",
    "::127.0.0.1",
    "::8.8.8.8",
    "0.1.2.3",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.170",
    "192.88.99.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "239.255.255.250",
    "240.0.0.1",
    "fec0::1",
    "feff::1",
    "ff0e::1",
    "100::1",
    "100:0:0:1::1",
    "200::1",
    "4000::1",
    "5f00::1",
    "64:ff9b:1::808:808",
    "64:ff9b:0:1::808:808",
    "2001::1",
    "2001:0:808:808::1",  # Teredo
    "2001:1::1",
    "2001:2::1",
    "2001:3::1",
    "2001:4:112::1",
    "2001:10::1",
    "2001:20::1",
    "2001:30::1",
    "2002:e000:1::1",
    "2002:6440:1::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "::ffff:100.64.0.1",
    "::ffff:240.0.0.1",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f000001",
]

OUTSIDE = [
    "1.1.1.1",
    "8.8.8.8",
    "104.18.6.192",
    "2606:4700::6810:1",
    "2a00:1450:4001::8a",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
    "2001:4860:4860::8888",
    "2001:200::1",
    "3fff:1000::1",
]


@pytest.mark.parametrize("address", [*INSIDE, ""])
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_is_public(address: str) -> None:
    assert is_public(address)


@settings(max_examples=examples(500))
@given(address=st.ip_addresses(v=4))
def test_no_form_of_ipv6_hides_an_ipv4_address(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    hidden = (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80)
    for one in map(ipaddress.IPv6Address, hidden):
        assert is_public(str(one)) == is_public(str(address)), one
    assert not is_public(str(ipaddress.IPv6Address(number)))  # a form that is no more in use


@settings(max_examples=examples(500))
@given(address=st.ip_addresses(v=6))
def test_only_what_is_assigned_for_the_internet_is_public(address: ipaddress.IPv6Address) -> None:
    translated = address.ipv4_mapped is not None or address in ipaddress.ip_network("64:ff9b::/96")
    assert not is_public(str(address)) or translated or address in ipaddress.ip_network("2000::/3")


def test_the_address_that_is_checked_is_the_one_that_is_connected_to() -> None:
    with pytest.raises(AddressRefused):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443)))
    with pytest.raises(AddressRefused):
        public_socket((socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::ffff:10.0.0.1", 443, 0, 0)))
    public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 443))).close()
