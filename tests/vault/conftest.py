"""Servers for the whole run of a worker; a mount of its own for each test.

These are not the servers of the rest of the suite, because tests here remove policies and roles. A test with `bench`
runs twice: on the server that `keyman dev` starts, and on the container.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from keyman.dev import embedded
from keyman.dev.embedded import EmbeddedVault
from tests.support.containers import docker_absence, vault_container
from tests.support.needs import require
from tests.support.vault import RunningVault, as_running, kill
from tests.vault.bench import Bench, SealableVault, bench_at


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedVault]:
    server = asyncio.run(embedded.start(tmp_path_factory.mktemp("shared")))
    yield server
    kill(server)


@pytest.fixture(scope="session", params=["embedded", "container"])
def vault(request: pytest.FixtureRequest) -> Iterator[RunningVault]:
    if request.param == "embedded":
        yield as_running(request.getfixturevalue("shared_server"))
        return
    require("docker", docker_absence())
    with vault_container() as running:
        yield running


@pytest.fixture
async def bench(vault: RunningVault) -> AsyncIterator[Bench]:
    async with bench_at(vault) as made:
        yield made


@pytest.fixture
async def embedded_bench(shared_server: EmbeddedVault) -> AsyncIterator[Bench]:
    """For what a container cannot do: reach a peer that the test runs, or have OpenBao's namespaces."""
    async with bench_at(as_running(shared_server)) as made:
        yield made


@pytest.fixture(scope="session")
def sealable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedVault]:
    server = asyncio.run(embedded.start(tmp_path_factory.mktemp("victim")))
    yield server
    kill(server)


@pytest.fixture
async def sealable_vault(sealable_server: EmbeddedVault) -> AsyncIterator[SealableVault]:
    """Whatever the test does to it, the next one finds it awake and unsealed."""
    async with bench_at(as_running(sealable_server)) as bench:
        made = SealableVault(sealable_server, bench)
        try:
            yield made
        finally:
            made.thaw()
            await made.unseal()
