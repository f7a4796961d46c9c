"""An endpoint: the address of a plane, a token and a timeout. They are checked once, when a client is created."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx

from keyman.client.exchange import Call
from keyman.loopback import is_loopback
from keyman.secret import Secret
from keyman.version import __version__

DEFAULT_TIMEOUT = 10.0
"""Seconds for a whole call, including retries. The server gives Vault 5 seconds (KEYMAN_VAULT_TIMEOUT), so two slow
attempts fit in.
"""

MAX_TIMEOUT = 300.0

MAX_CONNECTIONS = 64
"""Connections of one client. Further calls wait for a free one, within their deadlines."""

MAX_TOKEN_FILE = 4096
"""Bytes of a token's file that are read."""

IDLE = 3.0
"""Seconds until an unused connection is closed. keyman closes its side after 5 s, the proxy of the stack after 4 s."""


class Endpoint:
    """The address of one plane, with the token and the timeout of its calls. Without a token, they show none.

    A token that came from a file is read again for each request, so that a new one counts at once. Raises ValueError
    for an invalid address, token or timeout. The error repeats none of them.
    """

    def __init__(
        self, url: str, token: Secret | None, timeout: float, *, allow_http: bool, token_file: Path | None = None
    ) -> None:
        self.base = checked_url(url, allow_http=allow_http)
        self._token = self._earlier = None if token is None else checked_token(token)
        self._token_file = token_file
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
        self.timeout = timeout

    def request(self, call: Call[object], extensions: Mapping[str, object]) -> httpx.Request:
        token = self._current_token()
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # without compression a small answer cannot unpack to a large one
            **({} if token is None else {"Authorization": f"Bearer {token.reveal()}"}),
            "User-Agent": f"keyman-client/{__version__}",
            **({} if call.body is None else {"Content-Type": "application/json"}),
            **call.headers,
        }
        url = httpx.URL(f"{self.base}{call.path}", params=call.query or None)
        return httpx.Request(call.method, url, headers=headers, content=call.body, extensions=dict(extensions))

    @property
    def tokens(self) -> tuple[Secret, ...]:
        """The token of the last request, and the one before it. No error may repeat them."""
        return tuple(token for token in (self._token, self._earlier) if token is not None)

    def _current_token(self) -> Secret | None:
        """Return the token, from its file if there is one. While that holds no valid token, return the last one."""
        if self._token_file is not None:
            with contextlib.suppress(OSError, ValueError):  # the file is just being replaced
                found = checked_token(_read_token(self._token_file))
                if found != self._token:
                    self._token, self._earlier = found, self._token
        return self._token


def find_url(value: str | None, variable: str) -> str:
    """Return the argument, or else the value of the environment variable. Raises ValueError when both are missing."""
    found = value or os.environ.get(variable, "").strip()  # a line break at the end is a copying mistake
    if not found:
        raise ValueError(f"no URL: pass it as an argument, or set {variable}")
    return found


def find_token(value: str | Secret | None, variable: str) -> tuple[Secret, Path | None]:
    """Do the same for a token, which can also be in the file that `…_FILE` names. Return the file, too."""
    found = value or os.environ.get(variable, "").strip()
    path = os.environ.get(f"{variable}_FILE", "").strip()
    if found:
        return as_secret(found), None
    if path and (token := _read_token(Path(path))).reveal():
        return token, Path(path)
    raise ValueError(f"no token: pass it as an argument, or set {variable} or {variable}_FILE")


def _read_token(path: Path) -> Secret:
    """Raises OSError."""
    with path.open("rb") as file:
        # Not decoded strictly: the error would contain the token.
        return Secret(file.read(MAX_TOKEN_FILE).decode(errors="replace").strip())


def as_secret(value: str | Secret) -> Secret:
    """Return the value as a Secret.

    Callers overwrite their own variable with it, because error reporters show the variables of each frame.
    """
    return value if isinstance(value, Secret) else Secret(value)


def tls_context(base: str, ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Return a context that verifies certificates: against `ca_file`, or else the system's authorities.

    For plain http it loads no authorities, because http needs none and reading the system's takes about 20 ms.
    """
    # Not ssl.create_default_context: it writes the keys of each connection to the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        context.load_verify_locations(cafile=os.fspath(ca_file))
    elif base.startswith("https:"):
        context.load_default_certs()
    return context


_HOST = re.compile(r"(?=.{1,254}$)([^.]{1,63}\.)*[^.]{1,63}\.?")
"""A host as the network takes it. The resolver of the system raises a UnicodeError for an empty or a longer part."""


def checked_url(url: str, *, allow_http: bool) -> str:
    """Return the URL without a slash at its end. Raises ValueError, which does not repeat it."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not _HOST.fullmatch(parsed.raw_host.decode()):
        raise ValueError("the URL must be an http or https URL, such as https://keyman.example.com")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("the URL must not have a user, a query or a fragment")
    if parsed.scheme == "http" and not allow_http and not is_loopback(parsed.host):
        raise ValueError("plain http shows the token and the keys to the network: use https, or pass allow_http=True")
    return str(parsed).rstrip("/")


def checked_token(token: Secret) -> Secret:
    """Return the token. Raises ValueError unless it has the form of a token of keyman."""
    if not re.fullmatch("km_[0-9A-Za-z]{36}", token.reveal()):
        raise ValueError("the token must be a token of keyman: km_ and 36 letters and digits")
    return token
