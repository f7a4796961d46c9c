# ruff: noqa: INP001  # a program for the image, which belongs to no package
"""Asks `/livez` of the plane that runs in this container. It exits with 1 unless the answer is 200.

Host and port are those of the container's command, which is its first process: a plane may listen on any port, and
without IPv4. It uses neither the database nor Vault, so that a container is not replaced because they are down.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection
from pathlib import Path

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound
"""Where a plane that listens on every address can be asked."""

TIMEOUT = 4.0
"""Seconds: less than Docker waits for this program."""


def address_of(command: list[str]) -> tuple[str, int]:
    """Return where a `keyman serve` can be asked. Without the options, it listens on the defaults of `found`."""
    found = {"--host": "127.0.0.1", "--port": "8000"}
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in found:
            found[name] = value if equals else following
    return ANYWHERE.get(found["--host"], found["--host"]), int(found["--port"])


def main(pid: str = "1") -> int:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    connection = HTTPConnection(*address_of(command), timeout=TIMEOUT)
    try:
        connection.request("GET", "/livez")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
