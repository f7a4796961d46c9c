"""What `make test-fast` leaves out: a shorter run for the inner loop, 163 s on two idle cores.

It runs on SQLite and the embedded Vault. Tests on PostgreSQL, in a browser or a container, and files that mostly start
processes are left to `make test`.
"""

from __future__ import annotations

import os

import pytest

VARIABLE = "KEYMAN_TEST_FAST"
"""Set by `make test-fast`."""

LEFT_OUT = "PostgreSQL, browser, Docker, faults, the command line and whatever else starts processes"
"""For the end of a fast run."""

SLOW = (
    "tests/cli/",
    "tests/dev/test_embedded.py",
    "tests/dev/test_run.py",
    "tests/docker/",
    "tests/faults/",
    "tests/planes/management/api/test_canary.py",
    "tests/planes/management/api/test_schemathesis.py",
    "tests/planes/management/api/test_throttling.py",
    "tests/planes/management/api/test_wire.py",
    "tests/planes/management/web/test_form.py",
    "tests/planes/management/web/test_list.py",
    "tests/planes/management/web/test_looks.py",
    "tests/planes/management/web/test_reference.py",
    "tests/planes/management/web/test_safety.py",
    "tests/planes/management/web/test_journeys.py",
    "tests/planes/management/web/test_trouble.py",
    "tests/planes/resolver/test_exchanges.py",
    "tests/planes/resolver/test_schemathesis.py",
    "tests/storage/test_plans.py",
    "tests/test_package.py",
    "tests/test_processes.py",
    "tests/test_readme.py",
    "tests/test_support.py",
    "tests/vault/test_login.py",
    "tests/vault/test_terraform.py",
    "tests/vault/test_wrapping.py",
)
"""Files and directories, most of whose time goes to processes that start or to bounds that run out."""


def is_fast(item: pytest.Item) -> bool:
    """Return True for a test that `make test-fast` runs."""
    names = getattr(item, "fixturenames", ())
    on_postgresql = "postgres" in names or "postgresql" in item.nodeid
    return not on_postgresql and not item.nodeid.startswith(SLOW)


def narrow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the other tests out of a fast run, and say so to pytest, which counts them as deselected."""
    if not os.environ.get(VARIABLE):
        return
    left_out = [item for item in items if not is_fast(item)]
    items[:] = [item for item in items if is_fast(item)]
    config.hook.pytest_deselected(items=left_out)
