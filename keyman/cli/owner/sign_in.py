"""Signing in with a password over the API, for no longer than it takes to make a token."""

from __future__ import annotations

import re
import socket

import httpx
import msgspec

from keyman.client import ClientError, Forbidden, InvalidRequest, NotFound, Unauthenticated
from keyman.client.endpoint import Endpoint, checked_token
from keyman.client.exchange import Answer, Call
from keyman.client.wire import Wire
from keyman.errors import KeymanError
from keyman.secret import Secret

SCOPES = ("keys:read", "keys:write", "keys:use")

LOG_IN = "/api/auth/login"

TIMEOUT = 30.0
"""Seconds for one call: a password takes a tenth of a second, and may wait for those of others."""


class Visitor:
    """Calls without a token. A method raises ClientError, or KeymanError where something is for the person to know."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._wire = Wire(Endpoint(url, None, TIMEOUT, allow_http=False), None, None)

    def takes_passwords(self) -> bool:
        """Return whether people sign in with passwords there. An empty body says so, before anybody types one.

        Raises KeymanError if there is no management plane at this address.
        """
        try:
            self._wire.ask(Call("POST", LOG_IN, _nothing, body=b"{}"))
        except InvalidRequest as fault:
            if fault.slug == "invalid-request":
                return True
            raise self._is_another() from None
        except Forbidden as fault:
            if fault.slug == "forbidden":
                return False
            raise self._is_another() from None
        except NotFound:
            raise self._is_another() from None
        raise self._is_another()

    def _is_another(self) -> KeymanError:
        return KeymanError(
            f"There is no keyman at {self.url}. Give the address of its pages, as you open them in a browser."
        )

    def make_token(self, email: str, password: Secret) -> Secret:
        """Return a new token for this machine. The session is over then. Raises KeymanError for a wrong password."""
        body = msgspec.json.encode({"email": email, "password": password.reveal()})
        try:
            cookies = self._wire.ask(Call("POST", LOG_IN, _cookies, body=body, repeatable=False, secrets=(password,)))
        except Unauthenticated:
            raise KeymanError(
                "The e-mail address or the password is wrong. If you sign in without a password, such as with an "
                f"identity provider, run: keyman login {self.url} --with-token"
            ) from None
        session = {"Cookie": cookies.reveal()}
        try:
            wanted = msgspec.json.encode({"name": f"cli@{host()}", "scopes": SCOPES})
            made = Call("POST", "/api/tokens", _token, headers=session, body=wanted, repeatable=False)
            return self._wire.ask(made)
        finally:
            self._end(session)

    def _end(self, session: dict[str, str]) -> None:
        try:
            self._wire.ask(Call("POST", "/api/auth/logout", _nothing, headers=session))
        except ClientError:
            return  # it ends by itself, and nobody has its cookie

    def close(self) -> None:
        self._wire.close()


def host() -> str:
    """Return the name of this machine, as a token's name can have it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().partition(".")[0])[:64] or "unknown"


def _nothing(_: Answer) -> None:
    return None


def _cookies(answer: Answer) -> Secret:
    """Return the cookies of an answer as a request sends them. Raises ValueError if there is none."""
    set_by = answer.headers.get_list("set-cookie") if isinstance(answer.headers, httpx.Headers) else []
    pairs = [line.partition(";")[0].strip() for line in set_by]
    kept = [pair for pair in pairs if pair.partition("=")[2].strip('"')]  # an empty value removes a cookie
    if not kept:
        raise ValueError
    return Secret("; ".join(kept))


class _Made(msgspec.Struct):
    token: str


def _token(answer: Answer) -> Secret:
    return checked_token(Secret(msgspec.json.decode(answer.content, type=_Made).token))
