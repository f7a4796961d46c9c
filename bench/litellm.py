"""LiteLLM's proxy in its fastest set-up: production mode, one worker, no database, no tokens, the prices it ships.

It is installed into a separate environment in the user's cache directory, because keyman does not need it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import click

from bench.servers import Machine

VERSION = "1.108.0"

INSTALL_TIMEOUT = 900.0
"""Seconds for some 150 packages on a slow line."""

_QUIET = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
    "NO_PROXY": "127.0.0.1",
}


def install() -> Path:
    """Return the command of LiteLLM, and install it first if it is not there. Raises ClickException."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "keyman-bench" / f"litellm-{VERSION}"
    done = directory / "installed"
    if not done.exists():
        click.echo(f"Installing LiteLLM {VERSION} into {directory} …", err=True)
        try:
            venv.create(directory, with_pip=True, clear=True)
            _run([directory / "bin" / "python", "-m", "pip", "install", "-q", f"litellm[proxy]=={VERSION}"])
        except (OSError, subprocess.SubprocessError) as fault:
            raise click.ClickException(f"LiteLLM {VERSION} could not be installed: {fault}") from None
        done.touch()
    return directory / "bin" / "litellm"


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT, stdin=subprocess.DEVNULL, stdout=sys.stderr)  # noqa: S603  # the command is ours


def start(machine: Machine, name: str, command: Path, models: Mapping[str, str]) -> str:
    """Start the proxy and return its address. `models` are base URLs of a provider by the name of a model."""
    config = {
        "model_list": [
            {
                "model_name": model,
                "litellm_params": {"model": "openai/bench", "api_base": url, "api_key": "sk-bench"},
            }
            for model, url in models.items()
        ],
        "litellm_settings": {"set_verbose": False, "num_retries": 0, "request_timeout": 60},
        "general_settings": {
            "disable_spend_logs": True,
            "disable_error_logs": True,
            # It asks for no token, and listens on loopback.
            "dangerously_permit_weak_or_unset_master_key": True,
        },
    }
    file = machine.directory / "litellm.yaml"
    file.write_text(json.dumps(config))  # which is YAML, too
    home = machine.directory / "litellm"
    home.mkdir()
    arguments: list[str | Path] = [
        "--config",
        file,
        "--host",
        "127.0.0.1",
        "--num_workers",
        "1",
        "--telemetry",
        "False",
    ]
    return machine.program(name, [command, *arguments], HOME=str(home), PYTHONPATH="", **_QUIET)
