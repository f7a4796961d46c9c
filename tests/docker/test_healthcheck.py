"""The health check of the image: it finds the plane on whichever host and port its command names."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import healthcheck
import pytest
from sqlalchemy.engine import URL

from tests.support.cli import Service, environment, serve, variables
from tests.support.planes import Vault
from tests.support.waiting import PATIENCE, freeze, until

DOCKER = Path(__file__).parents[2] / "docker"


def checked(pid: int) -> int:
    """Run the check as the image does, as if this process were the first one of a container."""
    program = [sys.executable, "-I", str(DOCKER / "healthcheck.py"), str(pid)]
    return subprocess.run(program, env=environment(), capture_output=True, check=False, timeout=PATIENCE).returncode


def is_healthy(pid: int) -> bool:
    return healthcheck.main(str(pid)) == 0


BINDINGS = [(plane, host) for plane in ("management", "resolver") for host in ("127.0.0.1", "0.0.0.0", "::1", "::")]  # noqa: S104  # a test of this machine


@pytest.mark.parametrize(
    ("plane", "host"),
    [pytest.param(*one, marks=[] if one == ("resolver", "::1") else pytest.mark.slow) for one in BINDINGS],
)
def test_a_plane_is_healthy_on_any_port_and_without_ipv4(
    plane: str, host: str, sqlite: URL, provisioned: Vault, tmp_path: Path
) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("IPv6: this machine has no ::1")
    env = variables(provisioned.settings if plane == "management" else provisioned.resolver, sqlite)
    with serve(env, tmp_path, "--plane", plane, f"--host={host}", ready=False) as service:
        until(lambda: is_healthy(service.live.pid) or _has_ended(service), "health")
        assert not _has_ended(service), service.live.err
        assert checked(service.live.pid) == 0
        freeze(service.workers[0])  # it accepts connections, and answers nothing
        assert checked(service.live.pid) == 1


def test_the_image_runs_this_check() -> None:
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n  CMD (.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert command == '["python3", "-I", "/opt/keyman/healthcheck.py"]'


def _has_ended(service: Service) -> bool:
    return service.live.process.poll() is not None


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
