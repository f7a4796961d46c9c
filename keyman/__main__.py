"""The command `keyman`, which is also `python -m keyman`.

A plain install has this command but not its libraries, so this module imports none of them. It is the one place that
says which extra a command lacks; everything else is in `keyman.cli`.
"""

from __future__ import annotations

import sys
from importlib import import_module

from keyman.extras import missing
from keyman.memory import protect

OF_OWNERS = ("completion", "key", "login", "logout", "open", "run")

EXTRAS = {"": "cli", "dev": "dev"} | dict.fromkeys(OF_OWNERS, "cli")
"""The extra that each command needs; those that are not listed need [server]. "" is `keyman` without a command."""


def main() -> None:
    protect()
    try:
        import_module("keyman.cli").main()
    except ModuleNotFoundError as fault:
        library = (fault.name or "").partition(".")[0]
        if library == "keyman":  # a mistake of ours, and no library
            raise
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        extra = EXTRAS.get(command, "server")
        sys.stderr.write(f"keyman: {missing(extra, library)}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
