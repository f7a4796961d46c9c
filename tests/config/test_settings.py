"""Settings: every bad variable is named at once, and no value is repeated."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from keyman.config.database import SCHEMES, load_database_url
from keyman.config.reader import MAX_FILE_BYTES
from keyman.config.settings import LOG_LEVELS, Settings, load
from keyman.config.vault import KUBERNETES_JWT_FILE, VaultSettings
from keyman.errors import ConfigurationError
from keyman.loopback import is_loopback
from keyman.providers.file import read_services
from keyman.secret import Secret

DATABASE = "postgresql+asyncpg://keyman:pässword@db.example.com/keyman"

COMPLETE = {
    "KEYMAN_DATABASE_URL": DATABASE,
    "KEYMAN_VAULT_ADDR": "https://vault.example.com:8200",
    "KEYMAN_VAULT_ROLE_ID": "role",
    "KEYMAN_VAULT_SECRET_ID": "secret-id",
}

SECRET_VARIABLES = (
    "KEYMAN_DATABASE_URL",
    "KEYMAN_VAULT_ROLE_ID",
    "KEYMAN_VAULT_SECRET_ID",
    "KEYMAN_VAULT_WRAPPED_SECRET_ID",
    "KEYMAN_VAULT_TOKEN",
)
"""Those that are read once. KEYMAN_DATABASE_PASSWORD_FILE is read again and again: see test_database.py."""

VARIABLES = (
    *SECRET_VARIABLES,
    "KEYMAN_DATABASE_PASSWORD",
    "KEYMAN_DATABASE_CACERT",
    "KEYMAN_DATABASE_POOLED",
    "KEYMAN_VAULT_ADDR",
    "KEYMAN_VAULT_NAMESPACE",
    "KEYMAN_VAULT_AUTH_NAMESPACE",
    "KEYMAN_VAULT_AUTH_MOUNT",
    "KEYMAN_VAULT_CACERT",
    "KEYMAN_VAULT_AUTH",
    "KEYMAN_VAULT_ROLE",
    "KEYMAN_VAULT_JWT_FILE",
    "KEYMAN_VAULT_MOUNT",
    "KEYMAN_VAULT_KEY",
    "KEYMAN_VAULT_TIMEOUT",
    "KEYMAN_PUBLIC_URL",
    "KEYMAN_SIGNUP",
    "KEYMAN_PASSWORDS",
    "KEYMAN_SERVICES_FILE",
    "KEYMAN_TRUSTED_PROXIES",
    "KEYMAN_ROOT_PATH",
    "KEYMAN_COOKIE_NAME",
    "KEYMAN_CORS_ORIGINS",
    "KEYMAN_HSTS",
    "KEYMAN_JWT_ISSUER",
    "KEYMAN_JWT_AUDIENCE",
    "KEYMAN_JWT_JWKS_URL",
    "KEYMAN_JWT_JWKS_FILE",
    "KEYMAN_JWT_SCOPES",
    "KEYMAN_JWT_SIGNUP",
    "KEYMAN_JWT_CACERT",
    "KEYMAN_RESOLVE_RATE",
    "KEYMAN_MAX_KEYS",
    "KEYMAN_MAX_WRITES",
    "KEYMAN_DUPLICATES",
    "KEYMAN_MAX_QUEUE",
    "KEYMAN_DRAIN",
    "KEYMAN_LOG_FORMAT",
    "KEYMAN_LOG_LEVEL",
)
"""Every variable that there is."""


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUdoGC/8pCy9sBM2YQRU2JPCT79KUwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGa2V5bWFuMCAXDTI2MTEyNDIyMjkyOFoYDzIxMjYxMDMxMjIy
OTI4WjARMQ8wDQYDVQQDDAZrZXltYW4wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AARfQLK3po/7ABUXmlNAD7msxd4NgKiN8VM7p1nMHQHBWFMMZbTSMf4YiCIERiYH
OA8hePDqmDgIWiLTkEirwwYCo1MwUTAdBgNVHQ4EFgQU4Dk+29bzswVrIPLUyZ9E
2fIeKkEwHwYDVR0jBBgwFoAU4Dk+29bzswVrIPLUyZ9E2fIeKkEwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAwd/x05RZv0ll4FyhYEn49a8Xw7Jo
sehe7hhkc+Q9swoCIArJjJWEZr4AyAZcP0WNkG+2C9ihhNCaxqMQ0DyG2B3/
-----END CERTIFICATE-----
"""


def faults(environ: dict[str, str]) -> dict[str, str]:
    """What is said of each variable, as lines of one message."""
    with pytest.raises(ConfigurationError) as raised:
        load(environ, read_services)
    lines = str(raised.value).splitlines()
    assert lines[0] == "Invalid configuration:"
    named = [re.fullmatch(r"  (\w+) (.+)", line) for line in lines[1:]]
    said = {match[1]: match[2] for match in named if match}
    assert len(said) == len(lines) - 1, "a variable is named once"
    assert raised.value.__cause__ is None
    return said


def test_what_has_to_be_set_is_enough() -> None:
    settings = load(COMPLETE)
    assert settings.database_url.render_as_string(hide_password=False) == DATABASE.replace("ä", "%C3%A4")
    assert settings.vault == VaultSettings(
        address="https://vault.example.com:8200", role_id="role", secret_id=Secret("secret-id")
    )
    assert (settings.vault.auth, settings.vault.mount, settings.vault.key) == ("approle", "transit", "keyman")
    assert settings.vault.timeout == 5
    assert settings.signup_open is False
    assert settings.public_url is None
    assert settings.cookies_are_secure
    assert (settings.log_format, settings.log_level) == ("json", "info")


def test_what_is_missing_is_named_all_at_once() -> None:
    assert faults({}) == {
        "KEYMAN_DATABASE_URL": "is not set (nor KEYMAN_DATABASE_URL_FILE)",
        "KEYMAN_VAULT_ADDR": "is not set",
        "KEYMAN_VAULT_ROLE_ID": "is not set (nor KEYMAN_VAULT_ROLE_ID_FILE)",
        "KEYMAN_VAULT_SECRET_ID": "is not set (nor KEYMAN_VAULT_SECRET_ID_FILE)",
    }


@pytest.mark.parametrize("name", COMPLETE)
def test_an_empty_variable_is_one_that_is_not_set(name: str) -> None:
    assert faults({**COMPLETE, name: ""}).keys() == {name}


def test_every_variable_arrives(tmp_path: Path) -> None:
    certificate, services = tmp_path / "ca.pem", tmp_path / "services.json"
    certificate.write_text(CERTIFICATE)
    services.write_text("[]")
    settings = load(
        {
            **COMPLETE,
            "KEYMAN_VAULT_NAMESPACE": "team/eu-1",
            "KEYMAN_VAULT_CACERT": str(certificate),
            "KEYMAN_VAULT_MOUNT": "transit-eu",
            "KEYMAN_VAULT_KEY": "user_keys.v1",
            "KEYMAN_VAULT_TIMEOUT": "2.5",
            "KEYMAN_PUBLIC_URL": "https://keys.example.com/",
            "KEYMAN_SIGNUP": "Open",
            "KEYMAN_SERVICES_FILE": str(services),
            "KEYMAN_TRUSTED_PROXIES": "10.0.0.0/8, 2001:db8::1",
            "KEYMAN_ROOT_PATH": "/tools/keyman/",
            "KEYMAN_COOKIE_NAME": "keyman-2",
            "KEYMAN_CORS_ORIGINS": "https://chat.example.com, http://localhost:5173,http://[::1]:8080",
            "KEYMAN_HSTS": "max-age=31536000; includeSubDomains; preload",
            "KEYMAN_RESOLVE_RATE": "0.5",
            "KEYMAN_MAX_KEYS": "0",
            "KEYMAN_MAX_WRITES": " 60 ",
            "KEYMAN_MAX_QUEUE": "1",
            "KEYMAN_LOG_FORMAT": "CONSOLE",
            "KEYMAN_LOG_LEVEL": "debug",
        }
    )
    vault = settings.vault
    assert (vault.namespace, vault.ca_certificate, vault.mount) == ("team/eu-1", certificate, "transit-eu")
    assert (vault.key, vault.timeout) == ("user_keys.v1", 2.5)
    assert settings.public_url == "https://keys.example.com"
    assert settings.is_https
    assert settings.cookies_are_secure
    assert settings.signup_open
    assert settings.services_file == services
    assert settings.trusted_proxies == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::1"))
    assert settings.cookie_name == "keyman-2"
    assert settings.root_path == "/tools/keyman"
    assert settings.session_cookie == "__Secure-keyman-2"
    assert settings.cors_origins == {"https://chat.example.com", "http://localhost:5173", "http://[::1]:8080"}
    assert settings.hsts == "max-age=31536000; includeSubDomains; preload"
    assert settings.resolve_rate == 0.5
    assert (settings.max_keys, settings.max_writes, settings.max_queue) == (0, 60, 1)
    assert (settings.log_format, settings.log_level) == ("console", "debug")


def test_each_way_to_log_in_asks_for_what_it_needs(tmp_path: Path) -> None:
    jwt = tmp_path / "jwt"
    jwt.touch()
    base = {name: COMPLETE[name] for name in ("KEYMAN_DATABASE_URL", "KEYMAN_VAULT_ADDR")}
    assert faults({**base, "KEYMAN_VAULT_AUTH": "token"}).keys() == {"KEYMAN_VAULT_TOKEN"}
    assert faults({**base, "KEYMAN_VAULT_AUTH": "kubernetes"}).keys() == {"KEYMAN_VAULT_ROLE"}
    assert faults({**base, "KEYMAN_VAULT_AUTH": "jwt"}).keys() == {"KEYMAN_VAULT_ROLE", "KEYMAN_VAULT_JWT_FILE"}
    token = load({**base, "KEYMAN_VAULT_AUTH": "token", "KEYMAN_VAULT_TOKEN": " s.token\n"}).vault
    assert token.token == Secret("s.token")
    kubernetes = load({**base, "KEYMAN_VAULT_AUTH": "kubernetes", "KEYMAN_VAULT_ROLE": "keyman"}).vault
    assert (kubernetes.role, kubernetes.jwt_file) == ("keyman", KUBERNETES_JWT_FILE)
    given_jwt = {"KEYMAN_VAULT_AUTH": "jwt", "KEYMAN_VAULT_ROLE": "keyman", "KEYMAN_VAULT_JWT_FILE": str(jwt)}
    assert load({**base, **given_jwt}).vault.jwt_file == jwt
    assert load({**base, "KEYMAN_VAULT_AUTH": "agent"}).vault == VaultSettings(
        address=COMPLETE["KEYMAN_VAULT_ADDR"], auth="agent"
    )


WITHOUT_SECRET_ID = {name: value for name, value in COMPLETE.items() if name != "KEYMAN_VAULT_SECRET_ID"}


def test_a_wrapped_secret_id_takes_the_place_of_a_plain_one() -> None:
    vault = load({**WITHOUT_SECRET_ID, "KEYMAN_VAULT_WRAPPED_SECRET_ID": " s.wrapping\n"}).vault
    assert (vault.secret_id, vault.wrapped_secret_id, vault.role) == (None, Secret("s.wrapping"), None)
    named = {"KEYMAN_VAULT_WRAPPED_SECRET_ID": "s.wrapping", "KEYMAN_VAULT_ROLE": "other"}
    assert load({**WITHOUT_SECRET_ID, **named}).vault.role == "other"


@pytest.mark.parametrize("suffix", ["", "_FILE"])
@pytest.mark.parametrize("wrapped_suffix", ["", "_FILE"])
def test_of_a_secret_id_and_a_wrapped_one_there_can_be_one(suffix: str, wrapped_suffix: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s.c4n4ry")
    both = {f"KEYMAN_VAULT_SECRET_ID{suffix}": str(file), f"KEYMAN_VAULT_WRAPPED_SECRET_ID{wrapped_suffix}": str(file)}
    said = faults({**WITHOUT_SECRET_ID, **both})
    assert said == {"KEYMAN_VAULT_SECRET_ID": "and KEYMAN_VAULT_WRAPPED_SECRET_ID are both set; keep one"}


def test_vaults_own_variable_serves_where_ours_is_not_set() -> None:
    rest = {name: value for name, value in COMPLETE.items() if name != "KEYMAN_VAULT_ADDR"}
    assert load({**rest, "VAULT_ADDR": "http://127.0.0.1:8200/"}).vault.address == "http://127.0.0.1:8200"
    both = {**COMPLETE, "VAULT_ADDR": "http://127.0.0.1:8200"}
    assert load(both).vault.address == COMPLETE["KEYMAN_VAULT_ADDR"]
    assert faults({**rest, "VAULT_ADDR": "nonsense"}).keys() == {"VAULT_ADDR"}


def test_namespace_and_ca_may_come_from_vaults_own_variables_and_keymans_come_first(tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text(CERTIFICATE)
    vault = load({**COMPLETE, "VAULT_NAMESPACE": "admin", "VAULT_CACERT": str(certificate)}).vault
    assert (vault.namespace, vault.ca_certificate) == ("admin", certificate)
    both = {**COMPLETE, "VAULT_NAMESPACE": "admin", "KEYMAN_VAULT_NAMESPACE": "team"}
    assert load(both).vault.namespace == "team"
    assert faults({**COMPLETE, "VAULT_NAMESPACE": "../x", "VAULT_CACERT": "/no/file"}).keys() == {
        "VAULT_NAMESPACE",
        "VAULT_CACERT",
    }


@pytest.mark.parametrize(
    ("namespace", "of_login", "expected"),
    [
        ("admin/team", "admin", "admin"),
        ("admin/team", "admin/team/", "admin/team"),
        ("admin/team", "/", ""),
        ("admin", "root", ""),
    ],
)
def test_the_login_may_be_in_a_namespace_above(namespace: str, of_login: str, expected: str) -> None:
    given = {**COMPLETE, "KEYMAN_VAULT_NAMESPACE": namespace, "KEYMAN_VAULT_AUTH_NAMESPACE": of_login}
    assert load(given).vault.login_namespace == expected


@pytest.mark.parametrize(
    ("namespace", "of_login"), [("admin/team", "admin/tea"), ("admin", "admin/team"), ("", "team")]
)
def test_a_login_in_a_namespace_that_is_not_above_is_refused(namespace: str, of_login: str) -> None:
    given = {**COMPLETE, "KEYMAN_VAULT_NAMESPACE": namespace, "KEYMAN_VAULT_AUTH_NAMESPACE": of_login}
    fault = "must be KEYMAN_VAULT_NAMESPACE or a namespace above it ('/' is the root namespace)"
    assert faults(given) == {"KEYMAN_VAULT_AUTH_NAMESPACE": fault}


@pytest.mark.parametrize("given", ["approle-eu", "auth/approle-eu/", "/approle-eu"])
def test_the_mount_of_the_login_is_taken_as_vault_shows_it(given: str) -> None:
    assert load({**COMPLETE, "KEYMAN_VAULT_AUTH_MOUNT": given}).vault.approle_mount == "approle-eu"


@pytest.mark.parametrize("name", ["VAULT_TOKEN", "VAULT_SKIP_VERIFY"])
def test_nothing_else_is_taken_from_vaults_own_variables(name: str) -> None:
    assert load({**COMPLETE, name: "anything"}) == load(COMPLETE)


def test_nothing_is_read_from_a_token_file_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".vault-token").write_text("s.somebody-elses")
    monkeypatch.setenv("HOME", str(tmp_path))
    base = {name: COMPLETE[name] for name in ("KEYMAN_DATABASE_URL", "KEYMAN_VAULT_ADDR")}
    assert faults({**base, "KEYMAN_VAULT_AUTH": "token"}).keys() == {"KEYMAN_VAULT_TOKEN"}


def test_the_settings_follow_what_is_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYMAN_SIGNUP", "open")
    monkeypatch.setenv("VAULT_ADDR", "http://elsewhere.example.com")
    assert load(COMPLETE).signup_open is False
    assert load(COMPLETE).vault.address == COMPLETE["KEYMAN_VAULT_ADDR"]


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n"])
def test_a_line_break_at_the_end_of_a_variable_does_not_matter(end: str, tmp_path: Path) -> None:
    certificate, services, jwt = tmp_path / "ca.pem", tmp_path / "services.json", tmp_path / "jwt"
    certificate.write_text(CERTIFICATE)
    services.write_text("[]")
    jwt.touch()
    secret_id = tmp_path / "secret_id"
    secret_id.write_text("s.secret-id")
    given_ = COMPLETE | {
        "KEYMAN_DATABASE_PASSWORD": "word",
        "KEYMAN_DATABASE_CACERT": str(certificate),
        "KEYMAN_DATABASE_POOLED": "off",
        "KEYMAN_VAULT_NAMESPACE": "team",
        "KEYMAN_VAULT_AUTH_NAMESPACE": "team",
        "KEYMAN_VAULT_AUTH_MOUNT": "approle-eu",
        "KEYMAN_VAULT_CACERT": str(certificate),
        "KEYMAN_VAULT_AUTH": "approle",
        "KEYMAN_VAULT_ROLE": "keyman",
        "KEYMAN_VAULT_MOUNT": "transit-eu",
        "KEYMAN_VAULT_KEY": "keys",
        "KEYMAN_VAULT_TIMEOUT": "2.5",
        "KEYMAN_PUBLIC_URL": "https://keys.example.com",
        "KEYMAN_SIGNUP": "open",
        "KEYMAN_PASSWORDS": "off",
        "KEYMAN_SERVICES_FILE": str(services),
        "KEYMAN_TRUSTED_PROXIES": "10.0.0.0/8",
        "KEYMAN_ROOT_PATH": "/keyman",
        "KEYMAN_COOKIE_NAME": "two",
        "KEYMAN_CORS_ORIGINS": "https://chat.example.com",
        "KEYMAN_HSTS": "max-age=60",
        "KEYMAN_JWT_ISSUER": "https://id.example.com",
        "KEYMAN_JWT_AUDIENCE": "keyman",
        "KEYMAN_JWT_JWKS_URL": "https://id.example.com/jwks",
        "KEYMAN_JWT_SCOPES": "keys:read",
        "KEYMAN_JWT_SIGNUP": "closed",
        "KEYMAN_JWT_CACERT": str(certificate),
        "KEYMAN_RESOLVE_RATE": "0.5",
        "KEYMAN_MAX_KEYS": "10",
        "KEYMAN_MAX_WRITES": "60",
        "KEYMAN_DUPLICATES": "off",
        "KEYMAN_MAX_QUEUE": "100",
        "KEYMAN_DRAIN": "7",
        "KEYMAN_LOG_FORMAT": "console",
        "KEYMAN_LOG_LEVEL": "debug",
    }
    others = {
        "KEYMAN_VAULT_WRAPPED_SECRET_ID",
        "KEYMAN_VAULT_TOKEN",
        "KEYMAN_VAULT_JWT_FILE",
        "KEYMAN_JWT_JWKS_FILE",  # instead of the address
    }
    assert given_.keys() == {*VARIABLES} - others, "every variable is tried"
    assert load({name: value + end for name, value in given_.items()}) == load(given_)
    for more in (
        {"KEYMAN_VAULT_AUTH": "token", "KEYMAN_VAULT_TOKEN": "s.token"},
        {"KEYMAN_VAULT_AUTH": "jwt", "KEYMAN_VAULT_JWT_FILE": str(jwt)},
        {"KEYMAN_VAULT_SECRET_ID": "", "KEYMAN_VAULT_WRAPPED_SECRET_ID": "s.wrapping"},
        {"KEYMAN_VAULT_SECRET_ID": "", "KEYMAN_VAULT_SECRET_ID_FILE": str(secret_id)},
    ):
        values = given_ | more
        assert load({name: value + end for name, value in values.items()}) == load(values)


@pytest.mark.parametrize("name", COMPLETE)
def test_white_space_is_no_value(name: str) -> None:
    assert faults({**COMPLETE, name: " \n"}).keys() == {name}


# --- secrets from files


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_every_secret_comes_from_a_file_as_well(name: str, tmp_path: Path) -> None:
    values = {**COMPLETE, "KEYMAN_VAULT_TOKEN": "s.token"}
    if name == "KEYMAN_VAULT_WRAPPED_SECRET_ID":
        values = {**WITHOUT_SECRET_ID, name: "s.wrapping"}
    auth = {"KEYMAN_VAULT_AUTH": "token"} if name == "KEYMAN_VAULT_TOKEN" else {}
    rest = {other: value for other, value in values.items() if other != name} | auth
    file = tmp_path / "secret"
    file.write_text(f"\n {values[name]} \n")
    read = load({**rest, f"{name}_FILE": str(file)})
    if name in ("KEYMAN_VAULT_SECRET_ID", "KEYMAN_VAULT_TOKEN"):
        assert read.vault.credential_file == file
        read = replace(read, vault=replace(read.vault, credential_file=None))
    assert read == load({**values, **auth})


@pytest.mark.parametrize("name", SECRET_VARIABLES[:3])
def test_a_secret_that_is_given_twice_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("other")
    said = faults({**COMPLETE, f"{name}_FILE": str(file)})
    assert said == {name: f"and {name}_FILE are both set; keep one"}


def _missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def _empty(path: Path) -> None:
    path.write_text(" \n")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfecanary")


def _huge(path: Path) -> None:
    path.write_bytes(b"c" * (MAX_FILE_BYTES + 1))


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_missing, _empty, _binary, _huge, _directory])
def test_a_file_that_holds_no_secret_is_said_without_its_name_or_content(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    file = tmp_path / "canary"
    make(file)
    rest = {name: value for name, value in COMPLETE.items() if name != "KEYMAN_VAULT_SECRET_ID"}
    said = faults({**rest, "KEYMAN_VAULT_SECRET_ID_FILE": str(file)})
    assert said.keys() == {"KEYMAN_VAULT_SECRET_ID_FILE"}
    assert "canary" not in said["KEYMAN_VAULT_SECRET_ID_FILE"]
    assert said["KEYMAN_VAULT_SECRET_ID_FILE"].startswith("names ")


def test_a_file_of_an_editor_that_marks_its_encoding_is_read_without_the_mark(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xef\xbb\xbfs.c4n4ry\r\n")
    read = load({**WITHOUT_SECRET_ID, "KEYMAN_VAULT_SECRET_ID_FILE": str(file)}).vault
    assert read.secret_id == Secret("s.c4n4ry")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    rest = {name: value for name, value in COMPLETE.items() if name != "KEYMAN_VAULT_SECRET_ID"}
    assert faults({**rest, "KEYMAN_VAULT_SECRET_ID_FILE": "/dev/zero"}).keys() == {"KEYMAN_VAULT_SECRET_ID_FILE"}


@pytest.mark.parametrize(
    "name", sorted(set(VARIABLES) - {*SECRET_VARIABLES, "KEYMAN_DATABASE_PASSWORD", "KEYMAN_VAULT_JWT_FILE"})
)
def test_what_is_no_secret_has_no_file_form(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("nonsense")
    assert load({**COMPLETE, f"{name}_FILE": str(file)}) == load(COMPLETE)


# --- what is refused

BAD: dict[str, list[str]] = {
    "KEYMAN_DATABASE_URL": [
        "CANARY",
        "mysql://CANARY:CANARY@db/keyman",
        "postgres://u:CANARY@db",
        "postgresql://u:CANARY@CANARY@db/keyman",
        "postgresql+psycopg://u:CANARY@db/keyman",
        "sqlite+pysqlite:///CANARY.db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///",
        "postgresql+asyncpg://u:CANARY@db",
        "postgresql+asyncpg://u:CANARY@db:CANARY/x",
        "postgresql+asyncpg://u:CANARY@db/x?sslmode=CANARY",
        "postgresql+asyncpg://u:CANARY@db/x?ssl=CANARY",
        "postgresql+asyncpg://u:CANARY@db/x?ssl=require&ssl=CANARY",
        "postgresql+asyncpg://u:CANARY@db/x?CANARY=1",
        "sqlite+aiosqlite:////x.db?CANARY=1",
        "postgresql://u:CANARY@db/x?sslrootcert=/CANARY",
        "postgresql://u:CANARY@db/x?sslmode=require&ssl=disable",
        "postgresql://u:CANARY@db/x?channel_binding=CANARY",
        "postgresql://u:CANARY@db/x?options=-cCANARY=1",
        "postgresql://u:CANARY@db/x?options=-csearch_path=a%20-cCANARY=1",
        "postgresql://u:CANARY@db/x?password_file=CANARY",
        "postgresql://u:CANARY@db/x?pooled=on",
        "postgresql://u:CANARY@db/x?pgbouncer=CANARY",
    ],
    "KEYMAN_DATABASE_CACERT": ["/CANARY", re.__file__],
    "KEYMAN_DATABASE_POOLED": ["CANARY", "true"],
    "KEYMAN_VAULT_ADDR": [
        "CANARY",
        "ftp://CANARY",
        "https://",
        "https://u:CANARY@vault",
        "https://CANARY@vault",
        "https://vault?CANARY",
        "https://vault:CANARY",
        "http://[CANARY",
        "https://:CANARY@vault",
        "https://@CANARY",
        "https://vault#CANARY",
    ],
    "KEYMAN_VAULT_SECRET_ID": ["CANARY CANARY", "CANARY\nCANARY", "CANARY\x7f", "CANARYé"],
    "KEYMAN_VAULT_NAMESPACE": ["../CANARY", "a//CANARY", "CANARY?x", "CANARY%2f", "CANARY CANARY", ".", ".."],
    "KEYMAN_VAULT_CACERT": ["/CANARY", "/CANARY" * 1000, "CANARY" * 100, re.__file__],
    "KEYMAN_VAULT_AUTH": ["CANARY"],
    "KEYMAN_VAULT_MOUNT": ["../CANARY", "CANARY/../sys", "CANARY#", "/"],
    "KEYMAN_VAULT_KEY": ["..", "CANARY/..", "CANARY\nCANARY"],
    "KEYMAN_VAULT_TIMEOUT": ["CANARY", "0", "-1", "61", "nan", "inf", "1e9"],
    "KEYMAN_PUBLIC_URL": [
        *("CANARY", "ftp://CANARY", "https://CANARY/path", "https://u:CANARY@host", "https://:CANARY@host"),
        *("https://host#CANARY", "https://CANARY:", "https://CANARY CANARY", "https://host\\CANARY"),
        *("https://CANARYé.example", "https://*.CANARY.example"),
    ],
    "KEYMAN_SIGNUP": ["CANARY", "yes", "true", "1"],
    "KEYMAN_PASSWORDS": ["CANARY", "yes", "true", "1"],
    "KEYMAN_DUPLICATES": ["CANARY", "yes", "true", "1"],
    "KEYMAN_SERVICES_FILE": ["/CANARY", "/CANARY" * 1000, "CANARY" * 100, re.__file__],
    "KEYMAN_TRUSTED_PROXIES": ["CANARY", "10.0.0.0/8,CANARY", "10.0.0.1/8"],
    "KEYMAN_COOKIE_NAME": [
        "CANARY CANARY",
        "__Host-CANARY",
        "__CANARY",
        "CANARY=",
        "CANARYé",
        "CANARY" * 11,
    ],
    "KEYMAN_CORS_ORIGINS": [
        *("*", "null", "https://*.CANARY.example", "https://CANARY.example", "canary.example", "https://"),
        *("https://a.example, *", "https://a.example/", "https://a.example/canary", "https://a.example:443"),
        *("http://a.example:80", "https://u@a.example", "https://a.example canary"),
        *("https://a.example:x", "https://a.example?canary", "https://bücher.example", "//a.example"),
    ],
    "KEYMAN_HSTS": ["CANARY", "max-age=CANARY", "max-age=1; CANARY", "max-age=1\nCANARY: x", "includeSubDomains", "0"],
    "KEYMAN_RESOLVE_RATE": ["CANARY", "0", "-1", "nan", "inf", "1e6"],
    "KEYMAN_GATEWAY_PUBLIC_URL": [
        "CANARY",
        "ftp://CANARY.example",
        "https://gateway.example.com/CANARY",
        "https://u:CANARY@a",
    ],
    "KEYMAN_MAX_KEYS": ["CANARY", "-1", "1.5", "1e3", "1_000", "10000000", "9" * 5000],
    "KEYMAN_MAX_WRITES": ["CANARY", "-1", "0x10", "1000001"],
    "KEYMAN_MAX_QUEUE": ["CANARY", "0", "-1", "100001"],
    "KEYMAN_DRAIN": ["CANARY", "-1", "301", "nan", "inf"],
    "KEYMAN_LOG_FORMAT": ["CANARY", "text"],
    "KEYMAN_LOG_LEVEL": ["CANARY", "loud"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named_by_its_variable_and_not_repeated(name: str, value: str) -> None:
    said = faults({**COMPLETE, name: value})
    assert said.keys() == {name}
    assert "CANARY" not in said[name]


@pytest.mark.parametrize("query", ["ssl=require", "host=/var/run/postgresql", "ssl=verify-full&host=a:1&host=b:2"])
def test_a_database_url_may_have_what_the_driver_takes(query: str) -> None:
    assert load({**COMPLETE, "KEYMAN_DATABASE_URL": f"{DATABASE}?{query}"}).database_url.query


def test_a_services_file_is_read_with_the_other_settings_and_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "CANARY.json"
    file.write_text('[{"service": "ACME", "name": "Acme", "CANARY": "CANARY"}]')
    said = faults({**COMPLETE, "KEYMAN_SERVICES_FILE": str(file), "KEYMAN_SIGNUP": "maybe"})
    assert said.keys() == {"KEYMAN_SERVICES_FILE", "KEYMAN_SIGNUP"}
    assert "entry 1" in said["KEYMAN_SERVICES_FILE"]
    assert "CANARY" not in said["KEYMAN_SERVICES_FILE"]


def test_a_file_behind_a_closed_door_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, **_how: object) -> bool:
        raise PermissionError(13, "CANARY")  # as for anybody but root, whom no door stops

    monkeypatch.setattr(Path, "stat", refuse)
    said = faults({**COMPLETE, "KEYMAN_VAULT_CACERT": str(tmp_path / "CANARY")})
    assert said == {"KEYMAN_VAULT_CACERT": "names a file that cannot be reached"}


@given(data=st.data())
def test_any_number_of_bad_values_is_named_at_once(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(set(BAD) - {"KEYMAN_VAULT_AUTH"})), min_size=1))
    environ = {**COMPLETE, **{name: data.draw(st.sampled_from(BAD[name])) for name in sorted(names)}}
    assert faults(environ).keys() == names


def _texts() -> SearchStrategy[str]:
    """What an environment can hold, and none of keyman's own words: Hypothesis also tries strings of the modules that
    are imported, such as parts of messages.
    """
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=12, max_size=60) | st.from_regex(
        r"(https?|postgresql\+asyncpg|sqlite\+aiosqlite)://[!-~]{8,40}", fullmatch=True
    )
    return texts.map(lambda text: f"{text}kNrY")


def fault_of(read: Callable[[], object]) -> ConfigurationError | None:
    try:
        read()
    except ConfigurationError as fault:
        return fault
    return None


@given(name=st.sampled_from(VARIABLES), value=_texts())
def test_no_message_repeats_a_value(name: str, value: str) -> None:
    assume(value.strip() and not any(value.strip() in driver for driver in SCHEMES.values()))  # which messages name
    fault = fault_of(lambda: load({**COMPLETE, name: value}))
    if fault is not None:
        assert name in str(fault)
        assert value.strip() not in str(fault)
        assert fault.__cause__ is None
        assert fault.__suppress_context__ or fault.__context__ is None


@given(value=_texts())
def test_no_message_repeats_a_value_that_commands_read(value: str) -> None:
    assume(value.strip() and not any(value.strip() in driver for driver in SCHEMES.values()))
    fault = fault_of(lambda: load_database_url({"KEYMAN_DATABASE_URL": value}))
    assert fault is None or value.strip() not in str(fault)


@given(st.floats())
def test_a_timeout_is_a_bounded_number_of_seconds(seconds: float) -> None:
    environ = {**COMPLETE, "KEYMAN_VAULT_TIMEOUT": repr(seconds)}
    if 0.1 <= seconds <= 60:
        assert load(environ).vault.timeout == seconds
    else:
        assert faults(environ).keys() == {"KEYMAN_VAULT_TIMEOUT"}


@given(st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), min_size=1, max_size=4))
def test_a_mount_can_be_a_path_and_loses_its_outer_slashes(parts: list[str]) -> None:
    path = "/".join(parts)
    assert load({**COMPLETE, "KEYMAN_VAULT_MOUNT": f"/{path}/"}).vault.mount == path


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_every_log_level_is_one_that_logging_knows(level: str) -> None:
    assert load({**COMPLETE, "KEYMAN_LOG_LEVEL": level.upper()}).log_level == level


# --- what settings show of themselves


def test_settings_can_be_logged_without_a_secret() -> None:
    settings = load({**COMPLETE, "KEYMAN_VAULT_SECRET_ID": "c4n4ry-secret"})
    for shown in (repr(settings), str(settings), f"{settings.vault}", repr(settings.database_url)):
        assert "c4n4ry-secret" not in shown
        assert "pässword" not in shown
        assert "p%C3%A4ssword" not in shown


@pytest.mark.parametrize("kind", [Settings, VaultSettings])
def test_settings_do_not_change_once_they_are_read(kind: type[Settings] | type[VaultSettings]) -> None:
    settings = load(COMPLETE)
    given_: Settings | VaultSettings = settings if kind is Settings else settings.vault
    for field in fields(kind):
        with pytest.raises(AttributeError):
            setattr(given_, field.name, None)


@pytest.mark.parametrize(
    ("url", "secure"),
    [
        (None, True),
        ("https://keys.example.com", True),
        ("https://localhost", True),
        ("HTTPS://keys.example.com", True),
        ("HTTP://127.0.0.1:8000", False),
        ("http://keys.example.com", True),
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://keyman.localhost", False),
        ("http://[::1]:8000", False),
        ("http://127.0.0.1.example.com", True),
        ("http://localhost.example.com", True),
        ("http://10.0.0.1", True),
    ],
)
def test_cookies_need_https_but_on_this_machine(url: str | None, secure: bool) -> None:
    assert load({**COMPLETE, **({"KEYMAN_PUBLIC_URL": url} if url else {})}).cookies_are_secure is secure


def test_an_empty_hsts_turns_it_off_and_none_is_the_default() -> None:
    assert load(COMPLETE).hsts == "max-age=63072000"
    assert load({**COMPLETE, "KEYMAN_HSTS": ""}).hsts == ""


@pytest.mark.parametrize("url", [None, "https://keys.example.com", "http://127.0.0.1:8000"])
def test_only_over_https_the_session_cookie_has_the_prefix_for_this_host(url: str | None) -> None:
    settings = load({**COMPLETE, **({"KEYMAN_PUBLIC_URL": url} if url else {})})
    assert settings.session_cookie == ("__Host-keyman_session" if settings.is_https else "keyman_session")


def test_a_public_url_in_upper_case_is_https() -> None:
    settings = load({**COMPLETE, "KEYMAN_PUBLIC_URL": "HTTPS://Keys.Example.com"})
    assert settings.public_url == "https://keys.example.com"
    assert settings.is_https


@pytest.mark.parametrize("host", ["", "localhosts", "example.com", "0.0.0.0", "::", "128.0.0.1", "127.1"])  # noqa: S104
def test_what_is_not_this_machine_is_not_taken_for_it(host: str) -> None:
    assert not is_loopback(host)
