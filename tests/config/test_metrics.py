"""`keyman.config.metrics`: the addresses of the metrics."""

from __future__ import annotations

import pytest

from keyman.config.metrics import DEFAULTS, Address, listen


def test_each_plane_has_a_default_of_its_own_on_loopback() -> None:
    assert {plane: str(address) for plane, address in DEFAULTS.items()} == {
        "management": "127.0.0.1:9464",
        "resolver": "127.0.0.1:9465",
        "gateway": "127.0.0.1:9466",
    }


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9464", "127.0.0.1", 9464),
        ("0.0.0.0:0", "0.0.0.0", 0),  # noqa: S104
        ("localhost:65535", "localhost", 65535),
        ("metrics_1.example-site.com:1", "metrics_1.example-site.com", 1),
        ("[::1]:9464", "::1", 9464),
        ("[::]:9464", "::", 9464),
        ("[fe80::1%eth0]:9464", "fe80::1%eth0", 9464),
    ],
)
def test_an_address_is_read_and_written_the_same_way(text: str, host: str, port: int) -> None:
    assert listen(text) == Address(host, port)
    assert str(listen(text)) == text


@pytest.mark.parametrize("text", ["off", "OFF", "Off"])
def test_metrics_can_be_off(text: str) -> None:
    assert listen(text) == "off"


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "9464",
        ":9464",
        "*:9464",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:x",
        "::1:9464",
        "[::1]",
        "[127.0.0.1]:9464",
        "[x]:9464",
        "[]:9464",
        "http://127.0.0.1:9464",
        "127.0.0.1:9464/metrics",
        "a b:9464",
        "127.0.0.1:٩٤٦٤",
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9464"):
        listen(text)


def test_the_next_ports_up_end_where_ports_do() -> None:
    assert str(Address("::1", 9464).after(2)) == "[::1]:9466"
    assert Address("::1", 0).after(2) == Address("::1", 0)
    with pytest.raises(ValueError, match="lower"):
        Address("::1", 65534).after(2)
