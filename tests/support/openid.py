"""OpenID providers for tests: OpenBao's own, behind a front that plays its log-in page, and one whose answers are made.

OpenBao signs real tokens. Its log-in page is a part of its user interface, which the embedded server does not have, so
the front logs a person in and sends the browser back, as that page would. A browser gets a log-in page from the front,
and a cookie: until the person logs out, the front sends them back without asking.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx

from tests.support.http import NO_TLS, Reply, Request, answer
from tests.support.issuer import jwks, key_for, public, sign
from tests.support.vault import RootClient

NAME = "keyman"
PROVIDER = f"identity/oidc/provider/{NAME}"
AUTHORIZE = f"/ui/vault/{PROVIDER}/authorize"

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Those of the keys that a forger publishes."""

Change = Callable[[int, bytes], tuple[int, bytes]]
"""Changes the status and the content of an answer. One that raises ConnectionError hangs up instead."""

LOG_IN_PAGE = """<!doctype html><title>Log in</title><h1>Log in at the provider</h1>
<form method="post" action="{action}"><label>User <input name="user"></label>
<button>Log in</button><button name="cancel" value="yes">Cancel</button></form>"""


class BaoProvider:
    """OpenBao as an identity provider. `person` is who is logged in at its page, None where nobody is.

    With `has_page` a browser gets a page to log in, and `person` does not matter. `detour` is an address to which the
    browser is sent instead, as by a provider whose pages are on another host.
    """

    def __init__(self, vault: str, root: RootClient, origin: str, name: str) -> None:
        self.origin, self.name = origin, name
        self.path = f"identity/oidc/provider/{name}"
        self.issuer = f"{origin}/v1/{self.path}"
        self.client_id = self.client_secret = ""
        self.person: str | None = "ada"
        self.has_page = False
        self.detour: str | None = None
        self.asked: list[str] = []
        self.changes: dict[str, Change] = {}
        self._vault, self._root = vault, root

    def set_up(self, redirect_uri: str, algorithm: str = "RS256") -> None:
        ask = self._root.ask
        if "userpass/" not in ask("GET", "sys/auth"):
            ask("POST", "sys/auth/userpass", {"type": "userpass"})
        ask("POST", f"identity/oidc/key/{self.name}", {"allowed_client_ids": "*", "algorithm": algorithm})
        ask(
            "POST",
            f"identity/oidc/client/{self.name}",
            {"redirect_uris": [redirect_uri], "assignments": ["allow_all"], "key": self.name},
        )
        client = ask("GET", f"identity/oidc/client/{self.name}")
        self.client_id, self.client_secret = client["client_id"], client["client_secret"]
        email = '{"email": {{identity.entity.metadata.email}}, "email_verified": true}'
        for scope, template in (("email", email), ("profile", '{"name": {{identity.entity.name}}}')):
            ask("POST", f"identity/oidc/scope/{scope}", {"template": template})
        ask(
            "POST",
            self.path,
            {"issuer": self.origin, "allowed_client_ids": [self.client_id], "scopes_supported": ["email", "profile"]},
        )

    def add(self, person: str, email: str) -> None:
        """Add somebody who can log in."""
        self._root.ask("POST", f"auth/userpass/users/{person}", {"password": person})
        entity = {"name": person, "metadata": {"email": email}}
        self._root.ask("POST", "identity/entity", entity)
        accessor = self._root.ask("GET", "sys/auth")["userpass/"]["accessor"]
        found = self._root.ask("GET", f"identity/entity/name/{person}")
        alias = {"name": person, "canonical_id": found["id"], "mount_accessor": accessor}
        self._root.ask("POST", "identity/entity-alias", alias)

    def log_in(self, query: str, person: str | None = None) -> str:
        """What the log-in page does: the address to which it sends the browser back."""
        asked = dict(parse_qsl(query))
        back, person = asked["redirect_uri"], person or self.person
        if person is None:
            return f"{back}?{urlencode({'error': 'access_denied', 'state': asked['state']})}"
        log_in = f"{self._vault}/v1/auth/userpass/login/{person}"
        token = httpx.post(log_in, json={"password": person}, verify=NO_TLS).json()["auth"]["client_token"]
        url = f"{self._vault}/v1/{self.path}/authorize?{query}"
        given = httpx.get(url, headers={"X-Vault-Token": token}, verify=NO_TLS)
        if given.status_code != 200:
            return f"{back}?{urlencode({'error': given.json().get('error', 'server_error'), 'state': asked['state']})}"
        return f"{back}?{urlencode(given.json())}"

    def pass_on(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        self.asked.append(f"{method} {target}")
        kept = {name: headers[name] for name in ("Authorization", "Content-Type") if name in headers}
        given = httpx.request(method, f"{self._vault}{target}", headers=kept, content=body, verify=NO_TLS)
        status, content = given.status_code, given.content
        for part, change in list(self.changes.items()):
            if part in target:
                status, content = change(status, content)
        return status, content

    @contextmanager
    def changing(self, part: str, change: Change) -> Iterator[None]:
        """Answers to paths with `part` pass through `change` inside the block."""
        self.changes[part] = change
        try:
            yield
        finally:
            del self.changes[part]


class _Front(BaseHTTPRequestHandler):
    """Passes requests on to OpenBao, and plays the pages that it lacks."""

    provider: BaoProvider

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self, body: bytes) -> None:
        url, provider = urlsplit(self.path), self.provider
        if url.path == f"/ui/vault/{provider.path}/authorize":
            self._authorize(url.query, dict(parse_qsl(body.decode())))
        elif url.path == "/logout":
            self._redirect(parse_qs(url.query)["post_logout_redirect_uri"][0], cookie="user=; Max-Age=0")
        else:
            try:
                status, content = provider.pass_on(self.command, self.path, dict(self.headers.items()), body)
            except ConnectionError:
                self.close_connection = True
                return
            self._answer(status, content, {"Content-Type": "application/json"})

    def _authorize(self, query: str, form: Mapping[str, str]) -> None:
        provider, asked = self.provider, dict(parse_qsl(query))
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("user")
        if provider.detour is not None:
            self._redirect(provider.detour)
        elif not provider.has_page:
            self._redirect(provider.log_in(query))
        elif "cancel" in form:
            self._redirect(f"{asked['redirect_uri']}?{urlencode({'error': 'access_denied', 'state': asked['state']})}")
        elif "user" in form:
            self._redirect(provider.log_in(query, form["user"]), cookie=f"user={form['user']}; SameSite=Lax")
        elif cookie is not None and asked.get("prompt") != "login":
            self._redirect(provider.log_in(query, cookie.value))
        else:
            page = LOG_IN_PAGE.format(action=html.escape(self.path)).encode()
            self._answer(200, page, {"Content-Type": "text/html"})

    def _redirect(self, url: str, cookie: str | None = None) -> None:
        self._answer(302, b"", {"Location": url, **({} if cookie is None else {"Set-Cookie": f"{cookie}; Path=/"})})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def bao_provider(
    vault: str, root_token: str, *, name: str = NAME, host: str = "127.0.0.1", has_page: bool = False
) -> Iterator[BaoProvider]:
    """Run the front of the OpenBao at this address, on a port of loopback.

    Each `name` is a provider of its own. With the `host` localhost it is of another site than 127.0.0.1.
    """

    class Handler(_Front):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    origin = f"http://{host}:{server.server_address[1]}"
    provider = Handler.provider = BaoProvider(vault, RootClient(vault, root_token), origin, name)
    provider.has_page = has_page
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def members(**more: object) -> Change:
    """A change that sets members of a JSON answer. None removes one."""

    def change(status: int, content: bytes) -> tuple[int, bytes]:
        known = {**json.loads(content), **more}
        return status, json.dumps({name: value for name, value in known.items() if value is not None}).encode()

    return change


@dataclass
class Forger:
    """An issuer whose tokens a test makes: the script of a FaultyServer. `claims` are added to the usual ones."""

    client_id: str = "keyman"
    address: str = ""
    algorithm: str = "RS256"
    header: dict[str, object] = field(default_factory=dict)
    claims: dict[str, object] = field(default_factory=dict)
    metadata: dict[str, object] = field(default_factory=dict)
    userinfo: dict[str, object] | None = None
    id_token: Callable[[str], str] = str
    refuses: Reply | None = None
    nonces: dict[str, str] = field(default_factory=dict)
    forms: list[dict[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Reply:
        path = urlsplit(request.target).path
        if path == "/.well-known/openid-configuration":
            return answer(self.discovery())
        if path == "/jwks":
            keys = (public(key_for(algorithm), kid=algorithm) for algorithm in ALGORITHMS)
            return Reply(200, jwks(*keys))
        if path == "/token":
            self.forms.append(dict(parse_qsl(request.body.decode())))
            self.authorizations.append(request.headers.get("authorization", ""))
            return self.refuses or answer(self.tokens(self.nonces.get(self.forms[-1].get("code", ""), "")))
        if path == "/userinfo":
            return answer({"sub": self.claims.get("sub", "user-42")} if self.userinfo is None else self.userinfo)
        return answer({"error": "not here"}, 404)

    def discovery(self) -> dict[str, object]:
        known: dict[str, object] = {
            "issuer": self.address,
            "authorization_endpoint": f"{self.address}/authorize",
            "token_endpoint": f"{self.address}/token",
            "jwks_uri": f"{self.address}/jwks",
            "userinfo_endpoint": f"{self.address}/userinfo",
            "end_session_endpoint": f"{self.address}/logout",
            **self.metadata,
        }
        return {name: value for name, value in known.items() if value is not None}

    def tokens(self, nonce: str) -> dict[str, object]:
        return {"access_token": "access", "token_type": "Bearer", "id_token": self.id_token(self.sign(nonce=nonce))}

    def sign(self, **more: object) -> str:
        """A token with the usual claims, those of the test and these. None leaves one out."""
        moment = int(time.time())
        usual: dict[str, object] = {
            "iss": self.address,
            "aud": self.client_id,
            "sub": "user-42",
            "iat": moment,
            "exp": moment + 300,
            "auth_time": moment,
        }
        claims = {name: value for name, value in {**usual, **more, **self.claims}.items() if value is not None}
        header = {"alg": self.algorithm, "kid": self.algorithm, **self.header}
        return sign(key_for(self.algorithm), header, json.dumps(claims).encode())

    def log_in(self, url: str, code: str = "code-1", **more: str) -> str:
        """Log somebody in at the address to which keyman sent the browser: the address of the callback."""
        asked = dict(parse_qsl(urlsplit(url).query))
        self.nonces[code] = asked["nonce"]
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state'], **more})}"


def hash_of(access_token: str) -> str:
    """The `at_hash` of an access token, for algorithms with SHA-256."""
    digest = hashlib.sha256(access_token.encode()).digest()[:16]
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def query_of(url: str) -> dict[str, Any]:
    return dict(parse_qsl(urlsplit(url).query))
