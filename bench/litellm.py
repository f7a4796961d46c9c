"""LiteLLM's proxy in its fastest set-up: production mode, one worker, no database, no tokens, the prices it ships.

It is installed into a separate environment in the user's cache directory, because keyman does not need it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bench.peers import install
from bench.servers import Machine

VERSION = "1.108.0"

_QUIET = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
    "NO_PROXY": "127.0.0.1",
}


def start(machine: Machine, name: str, models: Mapping[str, str]) -> str:
    """Start the proxy and return its address. `models` are base URLs of a provider by the name of a model.

    Raises ClickException.
    """
    commands = install("litellm[proxy]", VERSION)
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
    return machine.program(name, [commands / "litellm", *arguments], HOME=str(home), PYTHONPATH="", **_QUIET)
