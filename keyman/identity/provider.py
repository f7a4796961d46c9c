"""The identity provider: discovery, and the code flow of OpenID Connect with PKCE.

Nothing that the provider answers is trusted to be small, quick or sensible, and no redirect is followed. What fails on
the way raises IssuerUnavailable; what the provider or the browser refuses raises InvalidRequest. No error and no log
line contains a part of an answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import ssl
from collections.abc import Mapping
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec

from keyman.config.identity import issuer_url
from keyman.config.oidc import OidcSettings
from keyman.errors import InvalidRequest, IssuerUnavailable, raise_alone
from keyman.identity.fetching import Fetcher, FetchFailed
from keyman.identity.key_sets import RemoteKeys
from keyman.identity.visits import Begun
from keyman.logs import log
from keyman.secret import Secret

TIMEOUT = 5.0
"""Seconds for one call to the provider, from connecting to the last byte. A person waits for it."""

MAX_BYTES = 256 * 1024
"""Bytes of an answer of the provider. Discovery has about 3 KiB, and tokens with many groups have 20 KiB."""

FRESH = 600.0
"""Seconds for which the discovered metadata counts."""

STALE = 86_400.0
"""Seconds for which metadata counts while the provider does not answer."""

PAUSE = 1.0
"""Seconds after a failed discovery without another one, so that waiting sign-ins do not wait for each other's."""

AWAY = "The identity provider cannot be reached at the moment, or it does not answer as it should."
CODE_REFUSED = "The provider does not accept this sign-in any more. Start again."


class Metadata(NamedTuple):
    """What keyman uses of the discovered metadata (OpenID Connect Discovery 1.0, 3)."""

    authorization: str
    token: str
    jwks: str
    userinfo: str | None
    end_session: str | None
    posts_secret: bool  # only client_secret_post is announced
    sends_issuer: bool  # RFC 9207


class Tokens(NamedTuple):
    """What the token endpoint gave for a code."""

    id_token: str
    access_token: Secret | None


class Provider:
    """The provider of the settings. `base` is the public URL with the root path."""

    def __init__(self, settings: OidcSettings, base: str) -> None:
        self.settings = settings
        self.redirect_uri = redirect_uri(base)
        self._after_sign_out = f"{base}/sign-in"
        self._fetcher = Fetcher(settings.cacert)
        self.keys = RemoteKeys(self._fetcher, settings.issuer)
        self._tls: ssl.SSLContext | None = None
        self._found: Metadata | None = None
        self._found_at = self._failed_at = -STALE
        self._discovery = asyncio.Lock()

    async def close(self) -> None:
        await self.keys.close()

    async def prepare(self) -> None:
        """Discover the provider before the first sign-in. The log says if that fails; the sign-in tries again."""
        with contextlib.suppress(IssuerUnavailable):
            await self.metadata()

    async def metadata(self) -> Metadata:
        """Return the provider's metadata, discovered at most FRESH seconds ago. Raises IssuerUnavailable."""
        if self._found is not None and monotonic() - self._found_at < FRESH:
            return self._found
        async with self._discovery:
            age = monotonic() - self._found_at
            if (self._found is None or age >= FRESH) and monotonic() - self._failed_at >= PAUSE:
                try:
                    self._found = await self._discover()
                    self._found_at = monotonic()
                except IssuerUnavailable:
                    self._failed_at = monotonic()
            if self._found is None or monotonic() - self._found_at >= STALE:
                raise IssuerUnavailable(AWAY)
            return self._found

    @property
    def form_targets(self) -> tuple[str, ...]:
        """The origins to which a form of a page can lead the browser: for the Content-Security-Policy."""
        found = self._found
        urls = (found.authorization, found.end_session) if found is not None else (self.settings.issuer,)
        return tuple(sorted({_origin(url) for url in urls if url is not None}))

    async def authorization_url(self, begun: Begun, *, max_age: int | None = None) -> str:
        """Return the address to which the browser goes. With `max_age`, in seconds, its user has to sign in again
        there. Raises IssuerUnavailable.
        """
        metadata = await self.metadata()
        challenge = _base64url(hashlib.sha256(begun.verifier.reveal().encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": self.settings.scopes,
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **({} if max_age is None else {"prompt": "login", "max_age": str(max_age)}),
        }
        return _with_query(metadata.authorization, query)

    async def knows_redirect(self) -> bool | None:
        """Return whether keyman's redirect address is registered, or None if the provider does not say.

        A provider that knows it sends the browser back there at once, with an error, if it may show no page
        (`prompt=none`; OpenID Connect Core 1.0, 3.1.2.6). Otherwise it must not redirect. Raises IssuerUnavailable.
        """
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": "openid",
            "prompt": "none",
            "state": "-",
            "nonce": "-",
            "code_challenge": _base64url(hashlib.sha256(b"-").digest()),
            "code_challenge_method": "S256",
        }
        url = _with_query((await self.metadata()).authorization, query)
        try:
            async with (
                asyncio.timeout(TIMEOUT),
                await self._client() as client,
                client.stream("GET", url, follow_redirects=False) as answer,  # its body, of any size, is not read
            ):
                status, location = answer.status_code, answer.headers.get("location", "")
        except (httpx.HTTPError, OSError) as fault:  # TimeoutError is an OSError
            log.warning("the identity provider failed", fault=type(fault).__name__)
            raise_alone(IssuerUnavailable(AWAY))
        if location.startswith(self.redirect_uri):
            return True
        return False if status == httpx.codes.BAD_REQUEST else None

    async def sign_out_url(self) -> str | None:
        """Return the address at which the browser ends its session at the provider, or None if there is none."""
        try:
            end_session = (await self.metadata()).end_session
        except IssuerUnavailable:
            return None
        query = {"client_id": self.settings.client_id, "post_logout_redirect_uri": self._after_sign_out}
        return None if end_session is None else _with_query(end_session, query)

    async def exchange(self, code: str, verifier: str) -> Tokens:
        """Exchange a code for tokens. Raises InvalidRequest for a code that the provider refuses."""
        metadata = await self.metadata()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        headers, proof = self._authentication(metadata)
        status, answer = await self._ask("POST", metadata.token, form={**form, **proof}, headers=headers)
        if status == 400 and answer.get("error") == "invalid_grant":
            raise InvalidRequest(CODE_REFUSED)
        id_token, access_token = answer.get("id_token"), answer.get("access_token")
        if status != 200 or not isinstance(id_token, str):
            log.warning("the identity provider refused KEYMAN_OIDC_CLIENT_ID or its secret", status=status)
            raise IssuerUnavailable(AWAY)
        return Tokens(id_token, Secret(access_token) if isinstance(access_token, str) and access_token else None)

    async def userinfo(self, access_token: Secret, subject: str) -> Mapping[str, object]:
        """Return what the provider says of the user, or nothing. Raises InvalidRequest for another user's answer."""
        url = (await self.metadata()).userinfo
        if url is None:
            return {}
        status, answer = await self._ask("GET", url, headers={"Authorization": f"Bearer {access_token.reveal()}"})
        if status != 200:
            raise IssuerUnavailable(AWAY)
        if answer.get("sub") != subject:
            raise InvalidRequest("The provider answered for another user.")
        return answer

    async def _discover(self) -> Metadata:
        try:
            found = await self._fetcher.discover(self.settings.issuer)
            _check(found)
        except FetchFailed as fault:
            log.warning("the identity provider cannot be discovered", why=f"it {fault}")
            raise IssuerUnavailable(AWAY) from None
        named = found.get("token_endpoint_auth_methods_supported")
        methods: list[object] = named if isinstance(named, list) else []
        return Metadata(
            str(found["authorization_endpoint"]),
            str(found["token_endpoint"]),
            str(found["jwks_uri"]),
            _optional(found, "userinfo_endpoint"),
            _optional(found, "end_session_endpoint"),
            "client_secret_post" in methods and "client_secret_basic" not in methods,
            found.get("authorization_response_iss_parameter_supported") is True,
        )

    def _authentication(self, metadata: Metadata) -> tuple[dict[str, str], dict[str, str]]:
        """Return the headers and the form fields with which keyman authenticates at the token endpoint."""
        client_id, secret = self.settings.client_id, self.settings.client_secret
        if secret is None:
            return {}, {"client_id": client_id}
        if metadata.posts_secret:
            return {}, {"client_id": client_id, "client_secret": secret.reveal()}
        pair = f"{quote(client_id, safe='')}:{quote(secret.reveal(), safe='')}"  # RFC 6749, 2.3.1
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, {}

    async def _ask(
        self, method: str, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, object]]:
        """Return the status and the JSON object of an answer. Raises IssuerUnavailable, without what was sent."""
        sent = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._answer(method, url, form, sent)
        except (httpx.HTTPError, OSError, ValueError, RecursionError) as fault:  # TimeoutError is an OSError
            log.warning("the identity provider failed", fault=type(fault).__name__)
            raise_alone(IssuerUnavailable(AWAY))

    async def _client(self) -> httpx.AsyncClient:
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self.settings.cacert)
        # Without `trust_env`, a variable such as HTTPS_PROXY or SSLKEYLOGFILE changes nothing.
        return httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=TIMEOUT)

    async def _answer(
        self, method: str, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, object]]:
        async with (
            await self._client() as client,
            client.stream(method, url, data=form, headers=headers, follow_redirects=False) as answer,
        ):
            body = bytearray()
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise httpx.DecodingError("too large")
            return answer.status_code, msgspec.json.decode(bytes(body), type=dict[str, object])


def redirect_uri(base: str) -> str:
    """Return the address to which the provider sends the browser back: never one that a request names."""
    return f"{base}/auth/oidc/callback"


def _check(found: Mapping[str, object]) -> None:
    """Raise FetchFailed for metadata with an address that keyman must not use."""
    needed = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    optional = [name for name in ("userinfo_endpoint", "end_session_endpoint") if found.get(name) is not None]
    for name in (*needed, *optional):
        address = found.get(name)
        try:
            if not isinstance(address, str) or not _HOST.fullmatch(urlsplit(issuer_url(address)).netloc):
                raise ValueError
        except ValueError:
            raise FetchFailed(f"sent a discovery document whose {name} is missing or not https") from None


_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
"""Nothing but a host and a port: the origin becomes a part of the Content-Security-Policy."""


def _optional(found: Mapping[str, object], name: str) -> str | None:
    return None if found.get(name) is None else str(found[name])


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query, quote_via=quote)}"


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
