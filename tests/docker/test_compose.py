"""The compose file as text: what every service must have. `test_stack` runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.engine import make_url

from keyman.cli.serve import FINISH_SECONDS
from keyman.config.settings import Settings
from keyman.config.vault import VaultSettings

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

JOBS = {"prepare", "vault-init", "migrate"}

PUBLISHING = {"proxy", "gateway-proxy", "prometheus", "grafana"}
"""Who has a port on the machine: the proxies with TLS, and what only the monitoring profile starts, on loopback."""

SEVERAL = {
    "public": set(SERVICES),  # the authority's certificate
    "vault-unseal": {"prepare", "vault-init", "vault-unseal"},
    "vault-data": {"prepare", "vault"},
    "management-secrets": {"prepare", "vault-init", "management"},
    "resolver-secrets": {"prepare", "vault-init", "resolver"},
    "gateway-secrets": {"prepare", "vault-init", "gateway"},
}
"""Which services may mount a volume, where that is more than one besides the job that fills it."""


def mounts(service: str) -> dict[str, str]:
    """The named volumes of a service, with their mode."""
    parts = (mount.split(":") for mount in SERVICES[service].get("volumes", []))
    return {source: (rest[1] if len(rest) > 1 else "rw") for source, *rest in parts if not source.startswith(".")}


def networks(service: str) -> set[str]:
    return set(SERVICES[service].get("networks", []))


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_can_write_to_its_root_file_system_or_gain_a_privilege(service: str) -> None:
    definition = SERVICES[service]
    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "userns_mode"} & definition.keys()
    assert definition["pids_limit"] > 0


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_is_root(service: str) -> None:
    if "build" in SERVICES[service]:
        # The image's own user: the last stage of each target inherits it.
        assert re.findall(r"^USER (.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE) == ["65532:65532"]
    else:
        assert re.fullmatch(r"[1-9]\d*:\d+", SERVICES[service]["user"])


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_health_check_and_every_job_is_done_once(service: str) -> None:
    definition = SERVICES[service]
    if service in JOBS:
        assert definition["restart"].startswith("on-failure")
        assert definition["healthcheck"] == {"disable": True}
    else:
        assert definition["restart"] == "unless-stopped"
        # The image of the planes brings its own.
        assert "test" in definition.get("healthcheck", {}) or service in {"management", "resolver", "gateway"}
    assert "\nHEALTHCHECK " in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_in_the_environment(service: str) -> None:
    secret = re.compile(r"PASSWORD|TOKEN|SECRET|ROLE_ID|DATABASE_URL|KEY$")
    for name, value in SERVICES[service].get("environment", {}).items():
        if secret.search(name):
            assert name.endswith("_FILE"), f"{service} has {name} itself"
            assert value.startswith("/secrets/")


def test_a_volume_of_secrets_is_mounted_only_by_services_that_use_it() -> None:
    for volume in COMPOSE["volumes"]:
        mounting = {service for service in SERVICES if volume in mounts(service)}
        allowed = SEVERAL.get(volume)
        if allowed is None:
            assert len(mounting - {"prepare"}) <= 1, volume
        else:
            assert mounting <= allowed, volume


def test_what_a_service_only_reads_it_mounts_read_only() -> None:
    written = {
        "vault": {"vault-data"},
        "database": {"database-data"},
        "vault-init": {"vault-unseal", "management-secrets", "resolver-secrets", "gateway-secrets"},
        "prometheus": {"prometheus-data"},
        "grafana": {"grafana-data"},
    }
    for service in set(SERVICES) - {"prepare"}:
        writing = {volume for volume, mode in mounts(service).items() if mode != "ro"}
        assert writing == written.get(service, set()), service


@pytest.mark.parametrize(
    ("one", "other"), [("management", "resolver"), ("management", "gateway"), ("resolver", "gateway")]
)
def test_no_plane_shares_a_network_or_a_secret_with_another(one: str, other: str) -> None:
    assert not networks(one) & networks(other)
    shared = mounts(one).keys() & mounts(other).keys()
    assert shared == {"public"}


def test_only_the_gateway_has_a_way_out() -> None:
    """Of the networks that are not internal, the other one forwards no answer from outside, and is for ports."""
    out = {name for name, network in COMPOSE["networks"].items() if not (network or {}).get("internal")}
    assert out == {"outside", "providers"}
    options = COMPOSE["networks"]["outside"]["driver_opts"]
    assert options == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert not COMPOSE["networks"]["providers"]
    assert {service for service in SERVICES if "providers" in networks(service)} == {"gateway"}
    assert "outside" not in networks("gateway")
    assert not {service for service in SERVICES if SERVICES[service].get("network_mode", "none") != "none"}


def test_only_a_proxy_stands_between_outside_and_inside() -> None:
    assert {service for service in SERVICES if "outside" in networks(service)} == PUBLISHING
    assert {service for service in SERVICES if "ports" in SERVICES[service]} == PUBLISHING
    assert {service for service in SERVICES if "profiles" in SERVICES[service]} == {"prometheus", "grafana"}
    assert networks("proxy") == {"outside", "proxy"}
    assert {service for service in SERVICES if "proxy" in networks(service)} == {"proxy", "management"}
    assert {service for service in SERVICES if "applications" in networks(service)} == {
        "resolver-proxy",
        "gateway-proxy",
    }
    assert networks("resolver-proxy") == {"applications", "resolver-proxy"}
    assert {service for service in SERVICES if "resolver-proxy" in networks(service)} == {"resolver", "resolver-proxy"}
    assert networks("gateway-proxy") == {"outside", "applications", "gateway-proxy"}
    assert {service for service in SERVICES if "gateway-proxy" in networks(service)} == {"gateway", "gateway-proxy"}


def test_answers_that_are_under_way_may_end_before_a_container_is_killed() -> None:
    grace = {name: int(service.get("stop_grace_period", "10s").rstrip("s")) for name, service in SERVICES.items()}
    defaults = Settings(make_url("sqlite+aiosqlite:///"), VaultSettings("http://127.0.0.1:8200"))
    planes = FINISH_SECONDS + defaults.drain
    assert grace["management"] >= planes
    assert grace["resolver"] >= planes
    assert grace["gateway"] >= planes + defaults.gateway.drain
    (proxy,) = re.findall(r"(?m)^  hard-stop-after (\d+)s$", (DOCKER / "proxy" / "gateway.cfg").read_text())
    assert SERVICES["gateway-proxy"]["stop_signal"] == "SIGUSR1"
    assert grace["gateway-proxy"] >= int(proxy) >= defaults.drain + defaults.gateway.drain


def test_nobody_talks_to_vault_or_the_database_on_a_network_of_somebody_else() -> None:
    for server, network in (("vault", "vault-"), ("database", "database-")):
        for name in networks(server):
            assert name.startswith(network)
            others = {service for service in SERVICES if name in networks(service)} - {server}
            assert len(others) == (2 if name == "vault-admin" else 1), name


def test_a_port_is_published_only_to_this_machine_by_default() -> None:
    for service in PUBLISHING:
        (port,) = SERVICES[service]["ports"]
        assert port.startswith(("127.0.0.1:", "${KEYMAN_BIND:-127.0.0.1}:"))


def test_every_image_can_be_named_and_has_a_version() -> None:
    for service, definition in SERVICES.items():
        named = re.fullmatch(r"\$\{(\w+_IMAGE):-([^:}]+):([^}]+)\}", definition["image"])
        assert named, service
        assert named[3] != "latest"


def test_the_stand_ins_stand_in_for_every_image_but_one() -> None:
    variables = {re.findall(r"\w+_IMAGE", definition["image"])[0] for definition in SERVICES.values()}
    lines = (DOCKER / "stand-ins" / "images.env").read_text().splitlines()
    assert {line.partition("=")[0] for line in lines if "=" in line} == variables - {"GRAFANA_IMAGE"}
