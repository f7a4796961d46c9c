"""`keyman.doctor.configuration`: what `keyman serve` warns of. The report of `keyman doctor`: cli/test_doctor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from keyman import memory
from keyman.config.database import load_database_url
from keyman.config.gateway import GatewaySettings
from keyman.config.metrics import Address, Listen
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings
from keyman.doctor.configuration import examine, unsafe
from keyman.doctor.findings import Finding

TLS = "https://vault.example.com:8200"
SITE = "https://keys.example.com"


def settings(vault: str = TLS, public_url: str | None = SITE) -> Settings:
    return Settings(make_url("sqlite+aiosqlite:///x"), VaultSettings(vault), public_url=public_url)


@pytest.mark.parametrize(
    ("given", "plane", "host", "checks"),
    [
        (settings(), "management", "0.0.0.0", []),  # noqa: S104
        (settings(), "resolver", "127.0.0.1", []),
        (settings(), "resolver", "0.0.0.0", ["address"]),  # noqa: S104
        (settings(), "gateway", "127.0.0.1", []),
        (settings(), "gateway", "0.0.0.0", ["address"]),  # noqa: S104
        (settings(vault="http://vault.example.com:8200"), "management", "127.0.0.1", ["vault-address"]),
        (settings(vault="http://vault.example.com:8200"), "resolver", "::1", ["vault-address"]),
        (settings(vault="http://127.0.0.1:8200"), "management", "127.0.0.1", []),
        (settings(public_url=None), "management", "127.0.0.1", ["public-url"]),
        (settings(public_url=None), "resolver", "127.0.0.1", []),
        (settings(public_url="http://keys.example.com"), "management", "127.0.0.1", ["public-url"]),
        (settings(public_url="http://127.0.0.1:8000"), "management", "127.0.0.1", []),
    ],
)
def test_a_start_is_warned_of_what_is_unsafe_about_it(
    given: Settings, plane: str, host: str, checks: list[str]
) -> None:
    found = list(unsafe(given, plane, host))
    assert [finding.check for finding in found] == checks
    assert all(finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("listen", "state"),
    [
        (None, "ok"),
        ("off", "ok"),
        (Address("127.0.0.1", 1), "ok"),
        (Address("::1", 1), "ok"),
        (Address("localhost", 1), "ok"),
        (Address("0.0.0.0", 1), "warning"),  # noqa: S104
        (Address("::", 1), "warning"),
        (Address("10.1.0.5", 1), "warning"),
    ],
)
def test_metrics_that_other_machines_reach_are_warned_of(listen: Listen | None, state: str) -> None:
    given = replace(settings(), metrics_listen=listen)
    (finding,) = (finding for finding in examine(given, {}) if finding.check == "metrics")
    assert finding.state == state
    warned = [finding.check for finding in unsafe(given, "gateway", "127.0.0.1")]
    assert warned == (["metrics"] if state == "warning" else [])


@pytest.mark.parametrize(
    ("pattern", "state"),
    [
        (b"core\n", "ok"),
        (b"/var/cores/%e.%p\n", "ok"),
        (b"|/usr/lib/systemd/systemd-coredump %P\n", "warning"),
        (None, "ok"),
    ],
)
def test_a_program_that_gets_core_dumps_is_warned_of(
    pattern: bytes | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pattern is not None:
        (tmp_path / "core_pattern").write_bytes(pattern)
    monkeypatch.setattr(memory, "CORE_PATTERN", tmp_path / "core_pattern")
    (finding,) = (finding for finding in examine(settings(), {}) if finding.check == "core-dumps")
    assert finding.state == state
    assert "systemd" not in finding.found


def test_a_start_and_the_report_say_the_same() -> None:
    given = settings(vault="http://vault.example.com:8200", public_url=None)
    report = list(examine(given, {}))
    assert all(finding in report for finding in unsafe(given, "management", "127.0.0.1"))


@pytest.mark.parametrize(
    ("query", "checks"),
    [
        ("channel_binding=require", ["database-tls"]),
        ("sslmode=require&channel_binding=require", ["database-tls"]),
        ("sslmode=verify-full&channel_binding=require", []),
        ("sslmode=require", []),
    ],
)
def test_channel_binding_that_is_required_and_replaced_by_nothing_is_warned_of(query: str, checks: list[str]) -> None:
    url = load_database_url({"KEYMAN_DATABASE_URL": f"postgres://u:x@db/keyman?{query}"})
    found = [finding.check for finding in unsafe(replace(settings(), database_url=url), "management", "127.0.0.1")]
    assert found == checks


def _secret_files(environ: dict[str, str]) -> Finding:
    (finding,) = (finding for finding in examine(settings(), environ) if finding.check == "secret-files")
    return finding


def test_a_file_is_checked_also_if_its_variable_ends_with_a_line_break(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    secret.chmod(0o644)
    found = _secret_files({"KEYMAN_VAULT_SECRET_ID_FILE": f"{secret}\n"})
    assert (found.state, "KEYMAN_VAULT_SECRET_ID_FILE" in found.found) == ("failed", True)


def test_a_file_with_public_keys_may_be_read_by_everybody(tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.touch()
    keys.chmod(0o644)
    assert _secret_files({"KEYMAN_JWT_JWKS_FILE": str(keys)}).state == "ok"


@pytest.mark.parametrize("name", ["KEYMAN_JWT_JWKS_FILE", "KEYMAN_SERVICES_FILE", "KEYMAN_VAULT_CACERT"])
def test_a_file_that_says_whom_to_trust_may_be_written_by_its_owner_only(tmp_path: Path, name: str) -> None:
    def found() -> list[tuple[str, bool]]:
        findings = [one for one in examine(settings(), {name: f"{file}\n"}) if one.check == "trusted-files"]
        assert not any(str(file) in one.found for one in findings)
        return [(str(one.state), name in one.found) for one in findings]

    file = tmp_path / "file"
    file.touch()
    for mode, state in ((0o644, "ok"), (0o600, "ok"), (0o664, "warning"), (0o646, "warning")):
        file.chmod(mode)
        assert found() == [(state, state == "warning")], oct(mode)


def test_without_such_a_file_the_report_has_no_line_of_it() -> None:
    assert not [one for one in examine(settings(), {}) if one.check == "trusted-files"]


def test_an_empty_variable_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    assert _secret_files({"KEYMAN_VAULT_SECRET_ID_FILE": ""}).state == "ok"


def test_a_file_behind_a_closed_door_does_not_end_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, **_how: object) -> None:
        raise PermissionError(13, "c4n4ry")  # as for anybody but root, whom no door stops

    monkeypatch.setattr(Path, "stat", refuse)
    assert _secret_files({"KEYMAN_TOKEN_FILE": str(tmp_path / "token")}).state == "ok"


@pytest.mark.parametrize(("passwords_on", "state"), [(False, "warning"), (True, None)])
def test_a_plane_that_nobody_can_sign_in_to_is_warned_of(passwords_on: bool, state: str | None) -> None:
    given = replace(settings(), passwords_on=passwords_on)
    found = {finding.check: finding.state for finding in examine(given, {})}
    assert found.get("sign-in") == state


def test_without_passwords_nobody_can_sign_up() -> None:
    given = replace(settings(), passwords_on=False, signup_open=True)
    (sign_up,) = [finding for finding in examine(given, {}) if finding.check == "sign-up"]
    assert (sign_up.state, "closed" in sign_up.found) == ("ok", True)


def test_a_proxy_of_the_gateway_is_warned_of() -> None:
    given = replace(settings(), gateway=GatewaySettings(proxy="http://proxy.example.com:3128"))
    (found,) = [finding for finding in examine(given, {}) if finding.check == "gateway-proxy"]
    assert found.state == "warning"
    assert not [finding for finding in examine(settings(), {}) if finding.check == "gateway-proxy"]
