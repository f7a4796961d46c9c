"""Which keyman a command asks, as whom, and what its errors mean for the person at the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import click

from keyman.cli.owner.logins import Logins
from keyman.client import (
    BadAnswer,
    ClientError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    Keyman,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Unauthenticated,
    Unreachable,
)
from keyman.client.endpoint import checked_token, checked_url, find_token
from keyman.client.exchange import Lost
from keyman.client.management import TOKEN, URL
from keyman.errors import FieldError, KeymanError
from keyman.loopback import is_loopback
from keyman.secret import Secret

C = TypeVar("C", bound=Callable[..., object])

PAGES = re.compile("/(settings|sign-in|sign-up|docs)(/.*)?$")
"""The pages that an address from a browser may lead to."""


@dataclass(frozen=True)
class Server:
    """A keyman, and the token to ask it with. `variable` is where the token is from, if it is from the environment."""

    url: str
    token: Secret
    variable: str | None = None

    def raw_client(self) -> Keyman:
        """Return a client, which raises ClientError."""
        return Keyman(self.url, self.token)

    @contextmanager
    def client(self) -> Iterator[Keyman]:
        """Return a client. An error of a call becomes a KeymanError with advice."""
        with advice(self.url, self.variable), self.raw_client() as client:
            yield client


def url_option(command: C) -> C:
    return click.option(
        "--url", help=f"The keyman to ask, if not the one of the last login.  [env var: {URL}]", metavar="URL"
    )(command)


def server_url(text: str) -> str:
    """Return the address of a keyman as it is stored and compared. Raises KeymanError.

    An address without a scheme is https, or http on this machine. What follows the root of the pages is left out.
    """
    text = text.strip()
    if "://" not in text:
        host = text.partition("/")[0]
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        text = f"{'http' if is_loopback(name) else 'https'}://{text}"
    text = PAGES.sub("", text.partition("?")[0].partition("#")[0])
    try:
        url = checked_url(text, allow_http=True)
    except ValueError as fault:
        raise KeymanError(f"{str(fault)[0].upper()}{str(fault)[1:]}.") from None
    if url.startswith("http:"):
        require_safe(url)
    return url


def require_safe(url: str) -> None:
    """Raise KeymanError for plain http to another machine."""
    try:
        checked_url(url, allow_http=False)
    except ValueError:
        raise KeymanError(
            "Plain http would show the token and the keys to everybody on the network. Use an https address."
        ) from None


def find_url(url: str | None) -> str:
    """Return the keyman that the option, the environment or the last login names, in this order. Raises KeymanError."""
    return server_url(url or os.environ.get(URL, "").strip() or Logins.load().current or _nowhere())


def find_server(url: str | None) -> Server:
    """Return the keyman that `find_url` finds, with the token for it. Raises KeymanError without one.

    KEYMAN_TOKEN counts only for the server of KEYMAN_URL, so that no other server gets it.
    """
    where = find_url(url)
    of_environment = os.environ.get(URL, "").strip()
    if of_environment and where == server_url(of_environment) and (own := _own_token()) is not None:
        return Server(where, own, TOKEN)
    token = Logins.load().token_of(where)
    if token is None:
        raise KeymanError(f"You are not signed in to {where}. Run: keyman login {where}")
    return Server(where, token)


def _nowhere() -> str:
    raise KeymanError(f"You are not signed in. Run: keyman login URL (in a script, set {URL} and {TOKEN} instead)")


def _own_token() -> Secret | None:
    """Return the token of the environment. Raises KeymanError for one that cannot be a token."""
    if not any(os.environ.get(name, "").strip() for name in (TOKEN, f"{TOKEN}_FILE")):
        return None
    try:
        return checked_token(find_token(None, TOKEN)[0])
    except OSError:
        raise KeymanError(f"The file that {TOKEN}_FILE names cannot be read.") from None
    except ValueError as fault:
        raise KeymanError(f"{TOKEN}: {fault}.") from None


@contextmanager
def advice(url: str, variable: str | None = None) -> Iterator[None]:
    """Turn an error of the client into a KeymanError that says what to do. No message repeats a value."""
    try:
        yield
    except ClientError as fault:
        raise KeymanError(explain(fault, url, variable)) from None


FIELDS = {
    "": "The request",
    "api_key": "The key",
    "name": "--name",
    "expires_at": "The expiry",
    "service": "The service",
    "email": "The e-mail address",
    "password": "The password",
    "settings": "--setting",
    "q": "--search",
}
"""What people call the fields of a request here."""


ADVICE: dict[type[ClientError], str] = {
    Unauthenticated: "Your token for {url} has expired or was revoked. Run: keyman login {url}",
    Forbidden: "{fault} `keyman login {url}` gets a token that can read, change and use keys.",
    NotFound: "You have no such key at {url}. `keyman key list` shows those that you have.",
    PreconditionFailed: "The key was changed a moment ago, so nothing was done. Look at it with `keyman key list`.",
    RateLimited: "{fault} Try again in {retry_after} s.",
    DeadlineExceeded: "{url} did not answer in time. Try again; if it was a change, look first whether it was made.",
    BadAnswer: "{url} does not answer as keyman does. Check the address. {fault}",
}
"""What to do about each kind of error."""

BAD_TOKEN = "The token in {variable} is not valid at {url}: it has expired, was revoked, or is of another server."  # noqa: S105  # a sentence

OF_CONNECTIONS = {
    Lost.UNTRUSTED: "The certificate of {url} is not trusted, so nothing was sent. If your organisation has an "
    "authority of its own, name the file with its certificate in SSL_CERT_FILE. Otherwise somebody may be in between.",
    Lost.UNSENT: "{url} cannot be reached. Check the address, your network, and that keyman runs there.",
    Lost.BROKEN: "The connection to {url} was lost, or it is of another kind than the address says: http or https.",
}


def explain(fault: ClientError, url: str, variable: str | None = None) -> str:
    """Return what went wrong and what to do. `variable` is where the token is from, if it is from the environment."""
    if isinstance(fault, InvalidRequest) and fault.errors:
        return " ".join(map(_sentence, fault.errors))
    template = ADVICE.get(type(fault), "{fault}")
    if isinstance(fault, Unreachable):
        template = next((text for lost, text in OF_CONNECTIONS.items() if lost.value in str(fault)), template)
    elif fault.slug is None and not isinstance(fault, DeadlineExceeded):
        template = ADVICE[BadAnswer]  # every error of keyman has one
    elif isinstance(fault, Unauthenticated) and variable is not None:
        template = BAD_TOKEN
    elif isinstance(fault, RateLimited) and fault.retry_after is None:
        template = "{fault}"
    said = str(fault)
    if template is ADVICE[BadAnswer]:
        said = f"{said[0].upper()}{said[1:].removesuffix('.')}."
    return template.format(url=url, fault=said, variable=variable, retry_after=fault.retry_after)


def _sentence(error: FieldError) -> str:
    name, _, member = error.field.partition(".")
    subject = FIELDS.get(name, error.field)
    return f"{subject} {f'{member} ' if member else ''}{error.message}."
