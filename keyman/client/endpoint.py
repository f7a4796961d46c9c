"""Where a plane is and who asks it: an address, a token, a bound of time. Checked once, when a client is made."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from keyman.client.exchange import Call
from keyman.loopback import is_loopback
from keyman.secret import Secret
from keyman.version import __version__

DEFAULT_TIMEOUT = 10.0
"""Seconds for a whole call, retries included. The server gives Vault 5 (KEYMAN_VAULT_TIMEOUT): one slow attempt fits
in, and another one.
"""

MAX_TIMEOUT = 300.0

MAX_CONNECTIONS = 64
"""At most, of one client; what is more waits for one of them, inside its deadline."""

IDLE = 5.0
"""Seconds that a connection is kept without use: shorter than servers and balancers keep theirs."""


class Endpoint:
    """One plane of one keyman, as one holder of a token sees it.

    Raises ValueError, which repeats nothing that it was given, for an address, a token or a timeout that is none.
    """

    def __init__(self, url: str, token: Secret, timeout: float, *, allow_http: bool) -> None:
        self.base = _checked_url(url, allow_http=allow_http)
        self.token = _checked_token(token)
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
        self.timeout = timeout

    def request(self, call: Call[Any], extensions: Mapping[str, Any]) -> httpx.Request:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # nothing is unpacked, so nothing small can become large
            "Authorization": f"Bearer {self.token.reveal()}",
            "User-Agent": f"keyman-client/{__version__}",
            **({} if call.body is None else {"Content-Type": "application/json"}),
            **call.headers,
        }
        url = httpx.URL(f"{self.base}{call.path}", params=call.query or None)
        return httpx.Request(call.method, url, headers=headers, content=call.body, extensions=dict(extensions))


def url_given(value: str | None, variable: str) -> str:
    """An argument, or else what a variable of the environment holds. Raises ValueError where neither is."""
    found = value or os.environ.get(variable)
    if not found:
        raise ValueError(f"no URL: give it as an argument, or set {variable}")
    return found


def token_given(value: str | Secret | None, variable: str) -> Secret:
    """The same for a token, which can also be in the file that `…_FILE` names."""
    found = value or os.environ.get(variable)
    path = os.environ.get(f"{variable}_FILE")
    if not found and path:
        found = Path(path).read_text(encoding="utf-8").strip()
    if not found:
        raise ValueError(f"no token: give it as an argument, or set {variable} or {variable}_FILE")
    return masked(found)


def masked(value: str | Secret) -> Secret:
    """Callers put it back in the place of what they got: who reports an error with its frames shows their variables."""
    return value if isinstance(value, Secret) else Secret(value)


def tls_context(base: str, ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Verifies always: against the system's authorities, or those given. Over plain http, which needs none, it trusts
    nobody: reading the system's takes some 20 ms.
    """
    # Not ssl.create_default_context: it writes the keys of each connection to where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        context.load_verify_locations(cafile=os.fspath(ca_file))
    elif base.startswith("https:"):
        context.load_default_certs()
    return context


def _checked_url(url: str, *, allow_http: bool) -> str:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the URL must be like https://keyman.example.com")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("the URL must hold no user, no query and no fragment")
    if parsed.scheme == "http" and not allow_http and not is_loopback(parsed.host):
        raise ValueError("plain http would show token and keys to the network: use https, or say allow_http=True")
    return str(parsed).rstrip("/")


def _checked_token(token: Secret) -> Secret:
    if not re.fullmatch("km_[0-9A-Za-z]{36}", token.reveal()):
        raise ValueError("the token must be one of keyman's: km_ and 36 letters and digits")
    return token
