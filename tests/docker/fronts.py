"""The stack's own HAProxy configurations, with addresses of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

_DIRECTORY = Path(__file__).parents[2] / "docker" / "proxy"

CONFIGURATIONS = {
    "management": _DIRECTORY / "haproxy.cfg",
    "resolver": _DIRECTORY / "resolver.cfg",
    "gateway": _DIRECTORY / "gateway.cfg",
}
"""The configuration of the proxy in front of each plane."""


def configuration(plane: str, port: int, replicas: list[str]) -> str:
    """The stack's configuration without TLS and Docker's name server, with these replicas."""
    text = CONFIGURATIONS[plane].read_text()
    text, bound = re.subn(r"bind :8\d+ .*|bind :8000$", f"bind 127.0.0.1:{port}", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^  bind :8\d+ .*\n", "", text, flags=re.MULTILINE)  # the gateway's other one, without TLS
    text = text.replace("bind 127.0.0.1:8404", f"bind 127.0.0.1:{port + 1}")
    text = re.sub(r"^resolvers docker\n(  .*\n)*", "", text, flags=re.MULTILINE)
    text = text.replace(" resolvers docker init-addr none", "")
    servers = "\n".join(f"  server {number} {urlsplit(url).netloc}" for number, url in enumerate(replicas))
    text, used = re.subn(r"  server-template .*", servers, text)
    assert (bound, used) == (1, 2)
    return text
