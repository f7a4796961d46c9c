"""The check of live checks: whether the gateway answers the management plane, and takes its token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from keyman.config.settings import Settings
from keyman.doctor.findings import Finding, failed, ok, warning
from keyman.errors import GatewayUnavailable
from keyman.loopback import is_loopback
from keyman.planes.management.checks import Gateway


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Check what is set up. Without KEYMAN_GATEWAY_URL there are no live checks, and no finding."""
    if settings.checks is None:
        return
    try:
        await Gateway(settings.checks).prove()
    except GatewayUnavailable as fault:
        yield _failure(fault)
        return
    parts = urlsplit(settings.checks.url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        yield warning(
            "live-checks",
            "the gateway makes them, but is reached without TLS: anyone who can read the network can read the token",
            "set KEYMAN_GATEWAY_URL to an https://… address, unless the network is private",
        )
        return
    yield ok("live-checks", "the gateway answers, and takes the token")


def _failure(fault: GatewayUnavailable) -> Finding:
    found = f"live checks do not work. {fault}"
    if fault.why is not None:
        return failed(
            "live-checks",
            f"{found} The certificate: {fault.why}.",
            "check KEYMAN_GATEWAY_URL, KEYMAN_GATEWAY_URL_CACERT and the certificate of the gateway",
        )
    return failed(
        "live-checks",
        found,
        "check KEYMAN_GATEWAY_URL and that the gateway runs, and set KEYMAN_GATEWAY_TOKEN to the token of an "
        "application that was registered with `keyman app create NAME --checks`",
    )
