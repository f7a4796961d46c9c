"""Vault in a container: the same REST API as in production, from an image that `KEYMAN_TEST_VAULT_IMAGE` names.

The module that testcontainers has for Vault still uses a deprecated way of waiting, and importing it warns.
The plain container with a wait strategy does the same without it.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from typing import Any

from docker.errors import DockerException, ImageNotFound  # type: ignore[import-not-found]
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host
from testcontainers.core.wait_strategies import HttpWaitStrategy

from tests.support.vault import RunningVault

DEFAULT_IMAGE = "hashicorp/vault:1.21.4"
_PORT = 8200
_ENGINE_SECONDS = 20
_READY_SECONDS = 60


def vault_image() -> str:
    """The image that the container tests start."""
    return os.environ.get("KEYMAN_TEST_VAULT_IMAGE") or DEFAULT_IMAGE


@contextmanager
def vault_container() -> Iterator[RunningVault]:
    """Run a Vault dev server in a container of its own: ready on entry, removed on exit.

    Raises `TimeoutError`, with the container's log as a note, when it is not ready within a minute. Callers
    ask `docker_absence` first.
    """
    token = secrets.token_hex(16)
    container = (
        DockerContainer(vault_image())
        .with_exposed_ports(_PORT)
        .with_envs(VAULT_DEV_ROOT_TOKEN_ID=token, VAULT_DEV_LISTEN_ADDRESS=f"0.0.0.0:{_PORT}")
        .waiting_for(
            HttpWaitStrategy(_PORT, "/v1/sys/health")
            .for_status_code(200)
            .with_poll_interval(0.1)
            .with_startup_timeout(_READY_SECONDS)
        )
    )
    with container:
        address = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(_PORT)}"
        yield RunningVault(address, token)


@cache
def docker_absence() -> str | None:
    """None when a Docker engine answers and the image is there or can be pulled, else why not, in one line.

    Asked once a process: without an engine or a registry the answer takes a while.
    """
    host = get_docker_host() or "unix:///var/run/docker.sock"
    try:
        _knock(host)
        engine = DockerClient(timeout=_ENGINE_SECONDS).client
    except (DockerException, OSError) as error:
        return f"no Docker engine answers at {host}: {_first_line(error)}"
    image = testcontainers_config.hub_image_name_prefix + vault_image()
    with closing(engine):
        try:
            engine.images.get(image)
        except ImageNotFound:
            return _not_pullable(engine, image)
        except (DockerException, OSError) as error:
            return f"the Docker engine does not answer: {_first_line(error)}"
    return None


def _knock(host: str) -> None:
    """Raise `OSError` when nobody listens at a Unix socket; other addresses are left to the client."""
    # Docker's client forgets to close a Unix socket that refused it, and under pytest a forgotten socket is
    # an error of whichever test runs next.
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(_ENGINE_SECONDS)
            knocking.connect(host.removeprefix("unix://"))


def _not_pullable(engine: Any, image: str) -> str | None:
    # Asks for the manifest only: the layers are fetched when the container is created.
    try:
        engine.images.get_registry_data(image)
    except (DockerException, OSError) as error:
        return f"image {image} is not on this machine and cannot be pulled: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
