"""Variables for child processes, which may hold secrets: they go through an inherited pipe, never the environment.

The environment that a process started with stays in `/proc/<pid>/environ` for as long as it runs, and its own children
inherit it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from keyman.errors import ConfigurationError
from keyman.extras import require_server

require_server()

PIPE = "_KEYMAN_PIPE"
"""The variable with the number of the pipe's descriptor."""

OWN = ("KEYMAN_", "VAULT_", "PG")
"""How the names of variables begin that only keyman's processes need. `PG` is for the PostgreSQL driver."""


class Handover:
    """Variables for the workers of this process. multiprocessing pickles it into the pipe of each worker."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def __repr__(self) -> str:
        return f"<Handover of {len(self._variables)} variables>"

    @classmethod
    def take(cls) -> Handover:
        """Take keyman's variables out of the environment, so that no process that is started later inherits them."""
        return cls({name: os.environ.pop(name) for name in list(os.environ) if name.startswith(OWN)})

    def put(self) -> None:
        """Put the variables into the environment of a worker. They do not appear in its `/proc/<pid>/environ`."""
        os.environ.update(self._variables)


def send(descriptor: int, variables: Mapping[str, str]) -> None:
    """Write variables into the pipe of a child, and close it. The child that ended needs none."""
    try:
        with os.fdopen(descriptor, "w") as pipe:
            json.dump(dict(variables), pipe)
    except BrokenPipeError:
        pass


def receive() -> None:
    """Put the variables that the parent sent into the environment. Without a pipe, do nothing."""
    descriptor = os.environ.pop(PIPE, None)
    if descriptor is None:
        return
    try:
        with os.fdopen(int(descriptor)) as pipe:
            os.environ.update(json.load(pipe))
    except (OSError, ValueError):
        raise ConfigurationError(f"{PIPE} is for `keyman dev` only: do not set it") from None
