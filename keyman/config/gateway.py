"""The variables of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from keyman.config import network
from keyman.config.reader import Reader, certificate_file, number, one_of, whole_number

MEBIBYTE = 1024 * 1024

OF_GATEWAY = frozenset(
    {
        "KEYMAN_GATEWAY_PERSONAL",
        "KEYMAN_GATEWAY_RATE",
        "KEYMAN_GATEWAY_CONCURRENCY",
        "KEYMAN_GATEWAY_TIMEOUT",
        "KEYMAN_GATEWAY_MAX_BODY",
        "KEYMAN_GATEWAY_DRAIN",
        "KEYMAN_GATEWAY_PROXY",
        "KEYMAN_GATEWAY_CACERT",
    }
)


@dataclass(frozen=True)
class GatewaySettings:
    """What the gateway allows, and how it reaches providers.

    With `personal`, users may send requests with their own tokens. `rate` is in requests per second and `concurrency`
    in requests at once, of one application or user in one process. `timeout` is in seconds between two parts of an
    answer, and `drain` in seconds for answers that are under way when the process stops. `max_body` is in bytes.
    `proxy` is the way out; without it, the gateway connects to providers itself. `ca_certificate` replaces the CAs of
    the system.
    """

    personal: bool = True
    rate: float = 100.0
    concurrency: int = 100
    timeout: float = 600.0
    max_body: int = 64 * MEBIBYTE
    drain: float = 30.0
    proxy: str | None = None
    ca_certificate: Path | None = None


def read_gateway(reader: Reader) -> GatewaySettings:
    """Read the variables of the gateway. The reader collects faults."""
    personal = reader.optional("KEYMAN_GATEWAY_PERSONAL", one_of("on", "off"))
    read = {
        "personal": None if personal is None else personal == "on",
        "rate": reader.optional("KEYMAN_GATEWAY_RATE", number(0.1, 100_000, "requests a second")),
        "concurrency": reader.optional("KEYMAN_GATEWAY_CONCURRENCY", whole_number(1, 100_000, "requests")),
        "timeout": reader.optional("KEYMAN_GATEWAY_TIMEOUT", number(1, 86_400, "seconds")),
        "max_body": reader.optional("KEYMAN_GATEWAY_MAX_BODY", whole_number(1, 999_999_999, "bytes")),
        "drain": reader.optional("KEYMAN_GATEWAY_DRAIN", number(0, 600, "seconds")),
        "proxy": reader.optional("KEYMAN_GATEWAY_PROXY", network.address),
        "ca_certificate": reader.optional("KEYMAN_GATEWAY_CACERT", certificate_file),
    }
    given = {name: value for name, value in read.items() if value is not None}
    return GatewaySettings(**given)  # type: ignore[arg-type]  # each value was parsed for its field
