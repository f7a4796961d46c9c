"""Renders pages: templates, the nonce and the policy of each answer, and problems as pages.

Every answer is a whole page. Without JavaScript the browser shows it; with JavaScript, htmx takes a part of it
(`hx-select`). So both get the same answer, and there are no templates that only one of them uses.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import Response
from litestar.datastructures import Cookie
from markupsafe import Markup, escape

from keyman.config.settings import Settings
from keyman.errors import InvalidRequest, Problem, Unauthenticated
from keyman.http.exchange import Exchange, exchange_of
from keyman.http.problems import KINDS, Answer
from keyman.http.requests import AnyRequest
from keyman.http.root_path import RootPath
from keyman.identity.principals import Principal
from keyman.identity.provider import Provider
from keyman.planes.management.web.display import display_of
from keyman.planes.management.web.language import Language, Languages
from keyman.planes.management.web.static import static_url
from keyman.planes.management.web.words import in_plain_words
from keyman.values import Value

TEMPLATES = Path(__file__).parent / "templates"

HOME = "/settings/api-keys"
"""The first page after sign-in."""

KEY_FORMS = ("/api-keys/new", "/edit")
"""The ends of the paths of forms for a key. If one is sent after the session has ended, what was typed is lost."""

POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'{targets}; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types htmx"
)
"""The Content-Security-Policy of pages: only keyman's own script runs, and only htmx may turn text into elements.

`targets` are the origins of the identity provider, on pages with a form that leads there: browsers check each redirect
after a form, too.
"""

POLICY_WITHOUT_SCRIPT = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""The policy of the pages to which a portal link leads: a person presses their button, and no script can."""

WITHOUT_SCRIPT = frozenset({"portal.html", "portal_left.html", "portal_unknown.html"})

HEADERS = {
    "content-type": "text/html; charset=utf-8",
    # Not `no-referrer`: with it, browsers send `Origin: null` with forms, which the cross-site rule refuses.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), clipboard-write=(self), geolocation=(), microphone=(), payment=(), usb=()",
}


class Pages:
    """The pages of one plane."""

    def __init__(self, settings: Settings, provider: Provider | None = None) -> None:
        self._settings = settings
        self._provider = provider
        self.languages = Languages()
        self._environments = {
            language.code: _environment(language, settings.root_path) for language in self.languages.all()
        }

    def make(
        self,
        exchange: Exchange,
        template: str,
        *,
        status: int = 200,
        caller: Principal | None = None,
        refused: Problem | None = None,
        say_why: bool = True,
        context: Mapping[str, object],
    ) -> Answer:
        """Render a whole page. `context` has the variables of the template, and must not contain a secret.

        `refused` is the problem for which a form is shown again. The answer has its status and its `Retry-After`. The
        page shows its text beside the fields that it names (`faults`) or, if `say_why` is set, above them (`banner`).
        """
        display = display_of(exchange, self._settings)
        language = self.languages.choose(exchange.headers.get("accept-language", ""), display.language)
        nonce = secrets.token_urlsafe(16)
        common = {
            "banner": _banner(refused, exchange.method) if say_why else None,
            "person": caller.user if caller is not None else None,  # in Jinja, `caller` has another meaning
            "portal": caller.portal if caller is not None else None,
            "display": display,
            "faults": _faults(refused),
            "nonce": nonce,
            "partial": is_partial(exchange),
            "path": exchange.target.partition("?")[0],
            "provider": None if self._provider is None else self._provider.settings.name,
            "provider_issuer": None if self._provider is None else self._provider.settings.issuer,
            "passwords_on": self._settings.passwords_on,
            "signup_open": self._settings.signup_open and self._settings.passwords_on,
        }
        body = self._environments[language.code].get_template(template).render({**common, **context})
        policy = POLICY_WITHOUT_SCRIPT if template in WITHOUT_SCRIPT else POLICY
        headers = {
            **HEADERS,
            "content-language": language.code,
            "content-security-policy": policy.format(nonce=nonce, targets=self._targets(caller)),
        }
        if refused is not None:
            # 422, because the form itself could be read. 400 is for a client that sends malformed requests.
            status = 422 if isinstance(refused, InvalidRequest) else KINDS[refused.slug].status
            headers |= {} if refused.retry_after is None else {"retry-after": str(refused.retry_after)}
            headers |= {"www-authenticate": refused.challenge} if isinstance(refused, Unauthenticated) else {}
        return Answer(status, headers, body.encode())

    def _targets(self, caller: Principal | None) -> str:
        """Return the origins of the provider for the policy of a page of a signed-in user, who can sign out there."""
        if self._provider is None or caller is None:
            return ""
        return "".join(f" {origin}" for origin in self._provider.form_targets)

    def problem(self, problem: Problem, exchange: Exchange) -> Answer:
        """Render a problem as a page. Unauthenticated gets the sign-in page, which then returns to the current page."""
        if isinstance(problem, Unauthenticated):
            had_session = f"{self._settings.session_cookie}=" in exchange.headers.get("cookie", "")
            say_why = had_session and not is_partial(exchange)
            return self.sign_in(exchange, problem, back=self._whereabouts(exchange), say_why=say_why)
        told = in_plain_words(problem, exchange.method)
        context = {"problem": problem, "title": told.title, "detail": told.detail, "request_id": exchange.request_id}
        answer = self.make(exchange, "problem.html", caller=exchange.principal, refused=problem, context=context)
        return answer._replace(status=KINDS[problem.slug].status)

    def sign_in(
        self,
        exchange: Exchange,
        refused: Problem | None,
        *,
        back: str,
        email: str = "",
        say_why: bool = True,
        signed_out: bool = False,
    ) -> Answer:
        """Render the sign-in page. For htmx it is a form over the current page, which does not change."""
        return self.make(
            exchange,
            "sign_in.html",
            refused=refused,
            say_why=say_why,
            context={"back": back, "email": email, "kept": exchange.method == "POST", "signed_out": signed_out},
        )

    def _whereabouts(self, exchange: Exchange) -> str:
        """Return the page that the user is on: the requested page, or the page of the form that was sent."""
        if exchange.method == "GET" and not is_partial(exchange):
            return own_page(exchange.target)
        referer = urlsplit(exchange.headers.get("referer", ""))
        path = RootPath(self._settings.root_path).enter(referer.path) or ""
        page = own_page(urlunsplit(("", "", path, referer.query, "")))
        if exchange.method == "POST" and not is_partial(exchange) and path.endswith(KEY_FORMS):
            page = f"{page}{'&' if '?' in page else '?'}lost=1"
        return page


@dataclass(frozen=True)
class Visit:
    """One request for a page. It renders the answers."""

    pages: Pages
    exchange: Exchange
    caller: Principal | None

    @property
    def done(self) -> str:
        """The change that a form has just made, from the address. Empty if a link on another site led here."""
        is_ours = self.exchange.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        return self.claimed if is_ours else ""

    @property
    def claimed(self) -> str:
        """The change that the address names, wherever it came from. Say it only if something else proves it."""
        return dict(parse_qsl(self.exchange.target.partition("?")[2])).get("done", "")

    def show(
        self, template: str, *, status: int = 200, refused: Problem | None = None, **context: object
    ) -> Response[bytes]:
        """Render a page for this request. See `Pages.make`."""
        answer = self.pages.make(
            self.exchange, template, status=status, caller=self.caller, refused=refused, context=context
        )
        return as_response(answer)


async def provide_visit(request: AnyRequest) -> Visit:
    return Visit(request.app.state["pages"], exchange_of(request.scope), request.scope.get("user"))


def as_response(answer: Answer, cookies: Sequence[Cookie] = ()) -> Response[bytes]:
    kind = answer.headers["content-type"]
    return Response(
        answer.body, status_code=answer.status, headers=answer.headers, media_type=kind, cookies=list(cookies)
    )


def see_other(url: str, cookies: Sequence[Cookie] = ()) -> Response[bytes]:
    """Redirect to `url` after a change, so that going back or reloading does not repeat the change."""
    return Response(b"", status_code=303, headers={"Location": url}, cookies=list(cookies))


def is_partial(exchange: Exchange) -> bool:
    """Return True for a request by htmx, which inserts a part of the answer into the current page."""
    return exchange.headers.get("hx-request") == "true"


def is_one(kind: type[Value], raw: str | None) -> bool:
    """Return True if a query parameter is a valid `kind`. Pages ignore invalid parameters."""
    if not raw:
        return False
    try:
        kind.parse(raw)
    except ValueError:
        return False
    return True


_OWN = re.compile(r"/settings((?!//|\\|/(?:\.|%2[eE]){1,2}(?:[/?#]|\Z))[!-~])*")


def own_page(url: str) -> str:
    """Return `url` if it is a page of the settings, else HOME. So no request can cause a redirect to another site.

    Nor to another application on this host: a browser removes `..` from a path, and `%2e%2e` too.
    """
    return url if _OWN.fullmatch(url) else HOME


def _banner(refused: Problem | None, method: str) -> str | None:
    if refused is None or (isinstance(refused, InvalidRequest) and any(field for field, _ in refused.errors)):
        return None
    return refused.errors[0].message if refused.errors else in_plain_words(refused, method).detail


def _faults(refused: Problem | None) -> dict[str, str]:
    """Return the first fault of each field, by the field's name."""
    faults: dict[str, str] = {}
    for field, message in refused.errors if refused is not None else ():
        faults.setdefault(field, message)
    return faults


def _marked_up(text: str) -> Markup:
    """Escape a text, and turn parts between backticks into `code` elements."""
    parts = escape(text).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


class _Loader(FileSystemLoader):
    """Loads templates without the indentation of their lines: a tenth of the bytes of a list. Values keep theirs."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source, path, is_current = super().get_source(environment, template)
        return re.sub(r"(?m)^[ \t]+|^\s*\n", "", source), path, is_current


def _environment(language: Language, root_path: str) -> Environment:
    environment = Environment(
        loader=_Loader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(language.catalogue, newstyle=True)  # type: ignore[attr-defined]  # i18n's
    environment.globals |= {
        "language": language.code,
        "root": root_path,  # in front of every address on a page
        "static": lambda name: root_path + static_url(name),
    }
    environment.filters |= {
        "say": language.say,
        "moment": language.moment,
        "day": language.date,
        "from_now": language.from_now,
        "number": language.number,
        "code": _marked_up,
        "query_fields": parse_qsl,
    }
    return environment
