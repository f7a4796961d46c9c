"""Sign-in with the certified `oidc-provider` of npm, over HTTP, through its own pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from tests.planes.management.web.moves import KEYS
from tests.planes.management.web.openid import CALLBACK, HTML, START
from tests.support.cli import run_keyman, serve, variables
from tests.support.database import copied
from tests.support.http import NO_TLS, client_of, free_port
from tests.support.needs import require
from tests.support.node import NodeProvider, node_absence, node_provider
from tests.support.openid import query_of
from tests.support.planes import Vault
from tests.support.waiting import until

pytestmark = pytest.mark.slow

SECRET = "a-secret/of+keyman:100%"  # with characters that the header encodes
PRESENCE, DELETE = "/settings/account/presence", "/settings/account/delete"


@dataclass
class Stage:
    """A plane, and the provider of its users."""

    origin: str
    provider: NodeProvider
    variables: Mapping[str, str]


@pytest.fixture(scope="module")
def node_stage(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, provisioned: Vault) -> Iterator[Stage]:
    require("node", node_absence())
    directory, port = tmp_path_factory.mktemp("node"), free_port()
    client: dict[str, object] = {"client_id": "keyman", "client_secret": SECRET}
    with node_provider(port, directory, client) as provider:
        given = {
            **variables(provisioned.settings, copied(migrated_sqlite, directory / "keyman.db")),
            "KEYMAN_OIDC_ISSUER": provider.issuer,
            "KEYMAN_OIDC_CLIENT_ID": "keyman",
            "KEYMAN_OIDC_CLIENT_SECRET": SECRET,
        }
        with serve(given, directory / "plane") as service:
            client["redirect_uris"] = [f"{service.url}{CALLBACK}"]
            client["post_logout_redirect_uris"] = [f"{service.url}/sign-in"]
            client["backchannel_logout_uri"] = f"{service.url}/auth/oidc/backchannel-logout"
            client["backchannel_logout_session_required"] = True
            provider.start("RS256")
            # The plane looked for the provider at its start, in vain, and looks again a second later.
            start = f"{service.url}{START}"
            until(lambda: httpx.get(start, verify=NO_TLS).status_code < 400, "the provider")
            yield Stage(service.url, provider, {**given, "KEYMAN_PUBLIC_URL": service.url})


@pytest.fixture
def browsers(node_stage: Stage) -> Iterator[list[httpx.Client]]:
    """Three browsers."""
    opened = [client_of(node_stage.origin, **HTML) for _ in range(3)]
    for client in opened:
        client.follow_redirects = True
    yield opened
    for client in opened:
        client.close()


def sign_in(client: httpx.Client, person: str, url: str = START) -> httpx.Response:
    """Sign in through the pages of the provider. Returns the page where that ends."""
    return pass_through(client, client.get(url), person)


def pass_through(client: httpx.Client, page: httpx.Response, person: str) -> httpx.Response:
    """Answer what the provider asks: who one is, and whether keyman may know it."""
    for _ in range(2):
        prompt = re.search(r'name="prompt" value="(login|consent)"', page.text)
        if prompt is None:
            break
        page = client.post(str(page.url), data={"prompt": prompt[1], "login": person, "password": "any"})
    return page


def status(client: httpx.Client) -> int:
    return client.get("/api/auth/me").status_code


def asked(client: httpx.Client, node_stage: Stage, **changes: str | None) -> str:
    """The address at the provider to which keyman sends the browser, changed: None removes a parameter."""
    away = client.get(START, follow_redirects=False).headers["location"]
    query = {name: value for name, value in {**query_of(away), **changes}.items() if value is not None}
    return f"{node_stage.provider.issuer}/auth?{urlencode(query)}"


def log_out_there(client: httpx.Client, page: httpx.Response) -> httpx.Response:
    """Confirm the provider's question whether to sign out."""
    form = re.search(r'name="xsrf" value="([^"]+)"', page.text)
    assert form is not None, page.text
    action = re.search(r'action="([^"]+)"', page.text)
    assert action is not None
    return client.post(html.unescape(action[1]), data={"xsrf": form[1], "logout": "yes"})


def test_a_person_signs_in_and_is_the_same_user_next_time(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    first, second, other = browsers
    assert sign_in(first, "ada", f"{START}?next=/settings/account").url.path == "/settings/account"
    me = first.get("/api/auth/me").json()
    assert me["email"] == "ada@company.example"  # from userinfo
    sign_in(second, "ada")
    assert second.get("/api/auth/me").json() == me
    sign_in(other, "Ada")
    assert other.get("/api/auth/me").json()["id"] != me["id"]


@pytest.mark.parametrize("is_registered", [True, False])
def test_the_doctor_sees_whether_the_provider_knows_the_redirect_address(
    node_stage: Stage, is_registered: bool
) -> None:
    public = node_stage.origin if is_registered else "http://127.0.0.1:9"
    report = run_keyman("doctor", env={**node_stage.variables, "KEYMAN_PUBLIC_URL": public}).out
    found = {line.split()[1]: line.split()[0] for line in report.splitlines() if "oidc-" in line}
    redirect = "ok" if is_registered else "failed"
    assert found == {"oidc-provider": "ok", "oidc-clock": "ok", "oidc-redirect": redirect}, report


def test_signing_out_here_signs_out_there(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    client, *_ = browsers
    sign_in(client, "grace")
    question = client.post("/sign-out")
    assert str(question.url).startswith(f"{node_stage.provider.issuer}/session/end?")
    assert status(client) == 401  # the session here has ended whatever the answer
    assert str(log_out_there(client, question).url) == f"{node_stage.origin}/sign-in"
    assert 'name="prompt" value="login"' in client.get(START).text  # it asks who one is


def test_signing_out_there_ends_that_session_here_and_no_other(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    first, second, other = browsers
    for client, person in ((first, "linus"), (second, "linus"), (other, "edith")):
        assert sign_in(client, person).url.path == "/settings/api-keys"
    log_out_there(first, first.get(f"{node_stage.provider.issuer}/session/end"))
    until(lambda: status(first) == 401, f"the end of the session; the provider says {node_stage.provider.log()}")
    assert [status(client) for client in browsers] == [401, 200, 200]
    assert "backchannel.error" not in node_stage.provider.log()


def test_a_new_sign_in_proves_presence(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    client, *_ = browsers
    sign_in(client, "joan")
    number = client.get("/api/auth/me").json()["id"]
    assert client.post(DELETE, data={"account": number}).status_code == 403
    question = client.post(PRESENCE, data={"next": DELETE})
    assert 'name="prompt" value="login"' in question.text  # although the provider knows her
    assert pass_through(client, question, "joan").url.path == DELETE
    assert client.post(DELETE, data={"account": number}).url.path == "/account-deleted"


def test_who_cancels_at_the_provider_gets_a_page_that_says_so(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    client, *_ = browsers
    page = client.get(START)
    back = client.get(f"{page.url}/abort")
    assert (back.status_code, "was cancelled at the provider" in back.text) == (400, True)
    assert "Try again" in back.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "none"}, "wants you to sign in"),
        ({"code_challenge": None, "code_challenge_method": None}, "does not accept"),
        ({"response_type": "none"}, "does not accept"),
        ({"max_age": "-1"}, "does not accept"),
    ],
    ids=["login_required", "invalid_request", "unauthorized_client", "invalid_request of an age"],
)
def test_what_the_provider_refuses_gets_a_page_that_one_understands(
    node_stage: Stage, browsers: list[httpx.Client], changes: dict[str, str | None], words: str
) -> None:
    client, *_ = browsers
    back = client.get(asked(client, node_stage, **changes))
    assert str(back.url).startswith(f"{node_stage.origin}{CALLBACK}?error=")
    assert (back.status_code, words in back.text, "Try again" in back.text) == (400, True, True), back.text
    assert status(client) == 401


def test_a_code_that_was_used_signs_nobody_in(node_stage: Stage, browsers: list[httpx.Client]) -> None:
    client, thief, _ = browsers
    end = sign_in(client, "mary")
    (used,) = [str(step.url) for step in end.history if step.url.path == CALLBACK]
    assert str(client.get(used).url) == f"{node_stage.origin}{KEYS}"  # it only leads on
    assert thief.get(used).status_code == 400
    # In a visit of the thief's own, with the victim's code: the verifier is another.
    state = query_of(asked(thief, node_stage))["state"]
    query = {**query_of(used), "state": state}
    assert thief.get(f"{CALLBACK}?{urlencode(query)}").status_code == 400
    assert status(thief) == 401


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
def test_the_provider_takes_another_key_while_keyman_runs(
    node_stage: Stage, browsers: list[httpx.Client], algorithm: str
) -> None:
    client, *_ = browsers
    before = len(node_stage.provider.log())
    node_stage.provider.start(algorithm)
    # keyman looks for new keys at most once in ten seconds.
    until(lambda: sign_in(client, "ada").status_code == 200, f"a sign-in with {algorithm}")
    assert status(client) == 200
    log_out_there(client, client.get(f"{node_stage.provider.issuer}/session/end"))
    until(lambda: status(client) == 401, f"a logout token with {algorithm}")
    assert "error" not in node_stage.provider.log()[before:]
