"""The compose file as text: what every service must have. `test_stack` runs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

JOBS = {"prepare", "vault-init", "migrate"}

PUBLISHING = {"proxy", "prometheus", "grafana"}
"""Who has a port on the machine: the proxy, and what only the monitoring profile starts, on loopback."""

SEVERAL = {
    "public": set(SERVICES),  # the authority's certificate
    "vault-unseal": {"prepare", "vault-init", "vault-unseal"},
    "vault-data": {"prepare", "vault"},
    "management-secrets": {"prepare", "vault-init", "management"},
    "resolver-secrets": {"prepare", "vault-init", "resolver"},
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
        # The image of both planes brings its own.
        assert "test" in definition.get("healthcheck", {}) or service in {"management", "resolver"}
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
        "vault-init": {"vault-unseal", "management-secrets", "resolver-secrets"},
        "prometheus": {"prometheus-data"},
        "grafana": {"grafana-data"},
    }
    for service in set(SERVICES) - {"prepare"}:
        writing = {volume for volume, mode in mounts(service).items() if mode != "ro"}
        assert writing == written.get(service, set()), service


def test_the_management_plane_shares_no_network_and_no_secret_with_the_resolver() -> None:
    assert not networks("management") & networks("resolver")
    shared = mounts("management").keys() & mounts("resolver").keys()
    assert shared == {"public"}


def test_only_the_proxy_stands_between_outside_and_inside() -> None:
    inner = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    assert set(COMPOSE["networks"]) - inner == {"outside"}
    assert {service for service in SERVICES if "outside" in networks(service)} == PUBLISHING
    assert {service for service in SERVICES if "ports" in SERVICES[service]} == PUBLISHING
    assert {service for service in SERVICES if "profiles" in SERVICES[service]} == PUBLISHING - {"proxy"}
    assert networks("proxy") == {"outside", "proxy"}
    assert {service for service in SERVICES if "proxy" in networks(service)} == {"proxy", "management"}
    assert {service for service in SERVICES if "applications" in networks(service)} == {"resolver-proxy"}
    assert networks("resolver-proxy") == {"applications", "resolver-proxy"}
    assert {service for service in SERVICES if "resolver-proxy" in networks(service)} == {"resolver", "resolver-proxy"}


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
