"""The SDKs of providers, in an environment of their own, which `make sdks` installs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.cli import environment

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.prefix) / "sdks" / "bin" / "python"
STAMP = Path(sys.prefix) / "sdks.stamp"
"""Is there once everything is installed."""

LIMIT = 120
"""Seconds for one program, whose first import compiles the SDK."""


def sdks_absence() -> str | None:
    """None if the SDKs are installed; else the reason in one line."""
    return None if STAMP.exists() else "the SDKs are not in .venv/sdks: run make sdks"


def play(name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Run the scenes of a program in tests/planes/gateway/sdks, and return what each returned or raised.

    The program sees these variables, and nothing of the developer's own.
    """
    done = subprocess.run(
        [PYTHON, "-m", f"tests.planes.gateway.sdks.with_{name}"],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    results: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return results
