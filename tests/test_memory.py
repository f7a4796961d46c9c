"""What is in the memory of keyman's processes leaves it in no core dump."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyman import memory
from keyman.processes import spawn
from tests.support.cli import core_limits, environment, serve, variables
from tests.support.database import copied
from tests.support.needs import quick
from tests.support.planes import Vault
from tests.support.waiting import until

PR_GET_DUMPABLE = 3

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's prctl and /proc")


def test_a_protected_process_leaves_no_dump_and_cannot_undo_it() -> None:
    code = (
        "import ctypes, resource\n"
        "from keyman.memory import protect\n"
        "protect()\n"
        f"print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}), *resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.split() == ["0", "0", "0"]


def test_every_command_is_protected_before_anything_else() -> None:
    code = (
        "import ctypes, sys\n"
        "from keyman import __main__\n"
        "def first(name):\n"
        f"    print(name, ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}))\n"
        "    raise SystemExit\n"
        "__main__.import_module = first\n"
        "__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.split() == ["keyman.cli", "0"]


def test_a_worker_is_protected_before_its_plane_is_loaded(tmp_path: Path) -> None:
    """It inherits the limit of its parent, and not the other protection."""
    (tmp_path / "plane.py").write_text(
        f"import ctypes\ndef from_environment():\n    print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}))\n"
    )
    code = (
        "from keyman.cli.serve import load_application\n"
        "from keyman.handover import Handover\n"
        "from keyman.http.worker import Listener\n"
        "load_application('plane', Handover({}), Listener(8000, 1, 0))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.split() == ["0"]


def test_no_connection_writes_its_keys_to_a_file(tmp_path: Path) -> None:
    code = (
        "import ssl\n"
        "from keyman import __main__\n"
        "def first(_name):\n"
        "    import aiohttp.connector\n"
        "    print(ssl.create_default_context().keylog_filename)\n"
        "    print(aiohttp.connector._SSL_CONTEXT_VERIFIED.keylog_filename)\n"
        "    raise SystemExit\n"
        "__main__.import_module = first\n"
        "__main__.main()"
    )
    given = environment(SSLKEYLOGFILE=str(tmp_path / "keys"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given)
    assert done.stdout.split() == ["None", "None"]
    assert not (tmp_path / "keys").exists()


def test_a_program_that_keyman_starts_leaves_no_dump() -> None:
    code = "import resource, sys; sys.exit(resource.getrlimit(resource.RLIMIT_CORE) != (0, 0))"
    assert spawn([sys.executable, "-c", code], environment()).wait(30) == 0


@pytest.fixture
def dumping(tmp_path: Path) -> Iterator[Path]:
    """A directory where a process that aborts leaves its core dump."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] != resource.RLIM_INFINITY:
        pytest.skip("core dumps: the hard limit of this machine forbids them")
    where = tmp_path / "dumps"
    where.mkdir()
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        subprocess.run([sys.executable, "-c", "import os; os.abort()"], cwd=where, check=False, env=environment())
        dumps = list(where.iterdir())
        if not dumps:
            pytest.skip(f"core dumps: this machine writes them elsewhere ({memory.CORE_PATTERN})")
        for dump in dumps:
            dump.unlink()
        yield where
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize("number", quick([signal.SIGABRT], [signal.SIGSEGV]))
def test_neither_a_worker_nor_its_parent_leaves_a_dump(
    dumping: Path, tmp_path: Path, provisioned: Vault, migrated_sqlite: Path, number: signal.Signals
) -> None:
    env = variables(provisioned.settings, copied(migrated_sqlite, tmp_path / "keyman.db"))
    with serve(env, tmp_path, cwd=dumping) as service:
        (worker,) = service.workers
        for pid in (worker, service.live.pid):
            assert core_limits(pid) == ["0", "0"]
        os.kill(worker, number)
        until(lambda: set(service.workers) - {worker}, "a new worker")
        service.live.send(number)
        assert service.live.wait().code == -number
    assert list(dumping.iterdir()) == []
