"""`keyman.config.gateway` and `keyman.config.checks`: the variables, and the limits that the documents promise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import certifi
import pytest

from keyman.config.checks import CheckSettings, read_checks
from keyman.config.gateway import GatewaySettings, read_gateway
from keyman.config.reader import Reader
from keyman.errors import ConfigurationError
from keyman.identity import limits
from keyman.keys import checks, reports
from keyman.planes.gateway import app, checking, upstream
from keyman.providers import verdicts
from keyman.secret import Secret

TOKEN = "km_0000000000000000000000000000002C8GjS"


def gateway(environ: Mapping[str, str]) -> GatewaySettings:
    reader = Reader(environ)
    found = read_gateway(reader)
    reader.finish()
    return found


def test_without_variables_the_limits_are_those_of_the_documents() -> None:
    assert gateway({}) == GatewaySettings(
        personal=True,
        rate=100,
        concurrency=100,
        timeout=600,
        max_body=64 * 1024 * 1024,
        drain=30,
        proxy=None,
        ca_certificate=None,
    )


def test_each_variable_is_read() -> None:
    assert gateway(
        {
            "KEYMAN_GATEWAY_PERSONAL": "off",
            "KEYMAN_GATEWAY_RATE": "0.5",
            "KEYMAN_GATEWAY_CONCURRENCY": "7",
            "KEYMAN_GATEWAY_TIMEOUT": "30",
            "KEYMAN_GATEWAY_MAX_BODY": "1000",
            "KEYMAN_GATEWAY_DRAIN": "0",
            "KEYMAN_GATEWAY_PROXY": "http://proxy.example:3128",
            "KEYMAN_GATEWAY_CACERT": certifi.where(),
        }
    ) == GatewaySettings(False, 0.5, 7, 30, 1000, 0, "http://proxy.example:3128", Path(certifi.where()))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("PERSONAL", ["CANARY", "yes", "1"]),
        ("RATE", ["CANARY", "0", "-1", "nan", "inf"]),
        ("CONCURRENCY", ["CANARY", "0", "1.5"]),
        ("TIMEOUT", ["CANARY", "0", "86401", "inf"]),
        ("MAX_BODY", ["CANARY", "0", "64 MiB"]),
        ("DRAIN", ["CANARY", "-1", "601"]),
        ("PROXY", ["CANARY", "ftp://CANARY.example", "socks5://CANARY.example"]),
        ("CACERT", ["/CANARY", __file__]),
    ],
)
def test_a_wrong_value_is_named_and_not_repeated(name: str, values: list[str]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError) as refused:
            gateway({f"KEYMAN_GATEWAY_{name}": value})
        assert f"KEYMAN_GATEWAY_{name}" in str(refused.value), value
        assert "CANARY" not in str(refused.value)


def checks_of(environ: Mapping[str, str]) -> CheckSettings | None:
    reader = Reader(environ)
    found = read_checks(reader)
    reader.finish()
    return found


CHECKS = {
    "KEYMAN_GATEWAY_URL": "https://gateway.example.com",
    "KEYMAN_GATEWAY_TOKEN": TOKEN,
    "KEYMAN_GATEWAY_URL_CACERT": certifi.where(),
}


def test_live_checks_need_both_variables_or_none() -> None:
    assert checks_of({}) is None
    url = {"KEYMAN_GATEWAY_URL": CHECKS["KEYMAN_GATEWAY_URL"]}
    token = {"KEYMAN_GATEWAY_TOKEN": TOKEN}
    assert checks_of(url | token) == CheckSettings(url["KEYMAN_GATEWAY_URL"], Secret(TOKEN))
    with pytest.raises(ConfigurationError, match=r"KEYMAN_GATEWAY_TOKEN is not set .*, but KEYMAN_GATEWAY_URL is"):
        checks_of(url)
    with pytest.raises(ConfigurationError, match="KEYMAN_GATEWAY_URL is not set, but KEYMAN_GATEWAY_TOKEN is"):
        checks_of(token)


def test_the_ca_of_the_gateway_is_read_and_needs_an_https_address() -> None:
    found = checks_of(CHECKS)
    assert found == CheckSettings("https://gateway.example.com", Secret(TOKEN), Path(certifi.where()))
    alone = {"KEYMAN_GATEWAY_URL_CACERT": certifi.where()}
    with pytest.raises(ConfigurationError, match="KEYMAN_GATEWAY_URL is not set, but KEYMAN_GATEWAY_URL_CACERT is"):
        checks_of(alone)
    with pytest.raises(ConfigurationError, match="URL_CACERT is set, but KEYMAN_GATEWAY_URL is not an https"):
        checks_of({**CHECKS, "KEYMAN_GATEWAY_URL": "http://gateway.example.com"})


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/CANARY", "names a file that does not exist"),
        (__file__, "names a file that cannot be read as PEM certificates"),
    ],
)
def test_a_file_without_the_ca_of_the_gateway_stops_the_start(file: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        checks_of({**CHECKS, "KEYMAN_GATEWAY_URL_CACERT": file})
    assert str(refused.value) == f"Invalid configuration:\n  KEYMAN_GATEWAY_URL_CACERT {said}"


def test_the_limits_that_no_variable_changes_are_those_of_the_documents() -> None:
    assert upstream.CONNECT_TIMEOUT == 5
    assert app.BODY_PAUSE == 30
    assert verdicts.MOST == 8 * 1024
    assert timedelta(seconds=10) == limits.CHECK_PAUSE == checks.PAUSE == reports.PAUSE
    assert (limits.MAX_CHECKS_PER_ACCOUNT, limits.MAX_CHECKS_PER_NETWORK) == (30, 100)
    assert timedelta(hours=1) == limits.HOUR == reports.RESOLVED_WITHIN
    assert limits.CHECK_PAUSE.total_seconds() > checking.PATIENCE
