"""`keyman.dev.variables`: what `keyman dev` takes from its environment, and for which plane."""

from __future__ import annotations

import os
import re
from pathlib import Path

import certifi
import pytest

from keyman.config.gateway import OF_GATEWAY
from keyman.config.settings import OF_BOTH_PLANES, OF_MANAGEMENT, OF_RESOLVER, check_own
from keyman.dev.variables import FILES_OF_SECRETS, take
from keyman.errors import ConfigurationError
from keyman.providers.file import read_services


class Asked(dict[str, str]):
    """An empty environment that remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # one of its forms
        self.names.add(name)
        return default


def test_every_variable_that_is_read_belongs_to_a_plane() -> None:
    asked = Asked()
    check_own(asked)
    groups = (OF_BOTH_PLANES, OF_MANAGEMENT, OF_RESOLVER, OF_GATEWAY, FILES_OF_SECRETS)
    assert asked.names == frozenset().union(*groups)
    assert len(asked.names) == sum(map(len, groups))


def test_each_plane_gets_what_it_uses_and_no_other_variable() -> None:
    taken = take(
        {
            "KEYMAN_ROOT_PATH": "/keyman/\n",
            "KEYMAN_CORS_ORIGINS": "https://chat.example.com",
            "KEYMAN_RESOLVE_RATE": "7",
            "KEYMAN_GATEWAY_RATE": "8",
            "KEYMAN_GATEWAY_URL": "http://gateway.example.com",
            "KEYMAN_GATEWAY_TOKEN": "km_made_up",
            "KEYMAN_LOG_LEVEL": "debug",
            "KEYMAN_SIGNUP": " ",
            "KEYMAN_HSTS": "",
            "KEYMAN_TOKEN": "km_c4n4ry",
            "KEYMAN_TEST_SLOW": "1",
            "HOME": "/root",
        }
    )
    assert taken.management == {
        "KEYMAN_ROOT_PATH": "/keyman/",
        "KEYMAN_CORS_ORIGINS": "https://chat.example.com",
        "KEYMAN_GATEWAY_URL": "http://gateway.example.com",
        "KEYMAN_GATEWAY_TOKEN": "km_made_up",
        "KEYMAN_LOG_LEVEL": "debug",
        "KEYMAN_HSTS": "",
    }
    assert taken.resolver == {
        "KEYMAN_ROOT_PATH": "/keyman/",
        "KEYMAN_RESOLVE_RATE": "7",
        "KEYMAN_LOG_LEVEL": "debug",
    }
    assert taken.gateway == {
        "KEYMAN_ROOT_PATH": "/keyman/",
        "KEYMAN_GATEWAY_RATE": "8",
        "KEYMAN_LOG_LEVEL": "debug",
    }
    assert (taken.root_path, taken.ignored) == ("/keyman", ())


def test_each_plane_gets_an_address_of_its_own_for_its_metrics() -> None:
    for given, addresses in (
        ("127.0.0.1:9464", ["127.0.0.1:9464", "127.0.0.1:9465", "127.0.0.1:9466"]),
        ("[::1]:0", ["[::1]:0"] * 3),
        ("off", ["off"] * 3),
    ):
        taken = take({"KEYMAN_METRICS_LISTEN": given})
        planes = (taken.management, taken.resolver, taken.gateway)
        assert [plane["KEYMAN_METRICS_LISTEN"] for plane in planes] == addresses
    with pytest.raises(ConfigurationError, match="KEYMAN_METRICS_LISTEN needs the next two ports"):
        take({"KEYMAN_METRICS_LISTEN": "127.0.0.1:65534"})


def test_its_own_database_and_vault_are_not_taken_from_outside() -> None:
    outside = {"KEYMAN_VAULT_ADDR": "http://c4n4ry", "KEYMAN_DATABASE_PASSWORD": "c4n4ry", "KEYMAN_VAULT_KEY": ""}
    taken = take(outside)
    assert (taken.management, taken.resolver) == ({}, {})
    assert taken.ignored == ("KEYMAN_DATABASE_PASSWORD", "KEYMAN_VAULT_ADDR")


def test_what_is_invalid_is_said_before_anything_starts_and_not_repeated(tmp_path: Path) -> None:
    services = tmp_path / "services.json"
    services.write_text('[{"service": "c4n4ry"}]')
    bad = {"KEYMAN_CORS_ORIGINS": "c4n4ry", "KEYMAN_DRAIN": "c4n4ry", "KEYMAN_SERVICES_FILE": str(services)}
    with pytest.raises(ConfigurationError) as raised:
        take(bad)
    assert all(name in str(raised.value) for name in bad)
    assert "c4n4ry" not in str(raised.value)


class Lost(dict[str, str]):
    """An environment in which every variable has the name of a file that does not exist, but no secret is set."""

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # one of its forms
        return default if f"{name}_FILE" in FILES_OF_SECRETS else "no-such-file"


def test_a_file_is_found_from_every_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable that names one, by what the settings themselves say of it."""
    with pytest.raises(ConfigurationError) as raised:
        check_own(Lost(), read_services)
    of_files = set(re.findall(r"(\w+) names a (?:file|directory)", str(raised.value)))
    monkeypatch.chdir(tmp_path)
    Path("ca.pem").write_bytes(Path(certifi.where()).read_bytes())
    Path("keys.json").write_text('{"keys": []}')
    Path("services.json").write_text("[]")
    Path("secret").write_text("made_up")
    files = {
        "KEYMAN_GATEWAY_CACERT": "ca.pem",
        "KEYMAN_GATEWAY_TOKEN_FILE": "secret",
        "KEYMAN_GATEWAY_URL_CACERT": "ca.pem",
        "KEYMAN_JWT_CACERT": "ca.pem",
        "KEYMAN_JWT_JWKS_FILE": "keys.json",
        "KEYMAN_OIDC_CACERT": "ca.pem",
        "KEYMAN_OIDC_CLIENT_SECRET_FILE": "secret",
        "KEYMAN_SERVICES_FILE": "services.json",
    }
    assert set(files) == of_files
    needed = {
        "KEYMAN_GATEWAY_URL": "https://gateway.example.com",
        "KEYMAN_JWT_AUDIENCE": "keyman",
        "KEYMAN_JWT_ISSUER": "https://issuer.example.com",
        "KEYMAN_OIDC_CLIENT_ID": "client",
        "KEYMAN_OIDC_ISSUER": "https://provider.example.com",
    }
    taken = take(files | needed)
    found = taken.management | taken.resolver | taken.gateway
    assert {name: found[name] for name in files} == {name: str(tmp_path / file) for name, file in files.items()}


@pytest.mark.parametrize("name", ["a\nKEYMAN_VAULT_ADDR=http:", "a\x85b", os.fsdecode(b"\xff")])
def test_a_value_cannot_write_a_further_line_of_the_settings(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("[]")
    with pytest.raises(ConfigurationError, match="KEYMAN_SERVICES_FILE"):
        take({"KEYMAN_SERVICES_FILE": str(file)})
