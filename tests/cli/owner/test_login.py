"""`keyman login`, `keyman logout` and `keyman open`, as transcripts."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from keyring.backend import KeyringBackend
from keyring.backends import null
from keyring.errors import KeyringLocked
from stack.certificates import authority, issue

from keyman.cli.owner import logins
from keyman.cli.owner.sign_in import host
from tests.cli.owner.conftest import Person, Ring, site_at
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.client.asking import given
from tests.support.cli import environment, run_keyman
from tests.support.http import Reply, faulty_server, free_port, script
from tests.support.planes import PASSWORD, Vault
from tests.support.terminal import terminal


def token_in(person: Person) -> str:
    return person.logins.read_text().partition('"token": "')[2].partition('"')[0]


def test_a_login_makes_a_token_for_this_machine_and_ends_its_session(stranger: Person) -> None:
    done = stranger.does("login", stranger.url, "--email", stranger.email, stdin=f"{PASSWORD}\n")
    assert done.out == ""
    assert done.err == (
        f"Signed in to {stranger.url} as {stranger.email}.\n"
        f"No keyring here keeps the token, so it is in {stranger.logins}, which only you can read.\n"
    )
    (token,) = stranger.tokens()
    assert (token["name"], token["scopes"]) == (f"cli@{host()}", ["keys:read", "keys:write", "keys:use"])
    assert stranger.logins.stat().st_mode & 0o777 == 0o600
    assert stranger.logins.parent.stat().st_mode & 0o777 == 0o700
    assert script(stranger.url, token_in(stranger)).get("/api/keys").json() == []
    assert PASSWORD not in stranger.logins.read_text()
    entries = [entry["action"] for entry in stranger.pages.get("/api/audit").json()]
    assert entries[:3] == ["account.logout", "token.create", "account.login"]


def test_a_login_without_an_address_goes_to_the_last_server(member: Person) -> None:
    before = token_in(member)
    member.does("login", "--email", member.email, stdin=PASSWORD)
    assert len(member.tokens()) == 1, "the token before is revoked"
    assert token_in(member) != before


def test_without_any_address_the_command_says_what_to_give(stranger: Person) -> None:
    done = stranger.types("login")
    assert done.code == 2
    assert "keyman login https://keyman.example.com" in done.err


@pytest.mark.parametrize("spelling", ["{host}", "{url}/", "{url}/settings/api-keys?q=x", " {url} "])
def test_an_address_is_taken_as_people_have_it(spelling: str, stranger: Person) -> None:
    given = spelling.format(host=stranger.url.removeprefix("http://"), url=stranger.url)
    stranger.does("login", given, "--email", stranger.email, stdin=PASSWORD)
    assert f'"current": "{stranger.url}"' in stranger.logins.read_text()


def test_a_wrong_password_says_so_and_stores_nothing(stranger: Person) -> None:
    done = stranger.types("login", stranger.url, "--email", stranger.email, stdin="not this one\n")
    assert failed(done).startswith("keyman: The e-mail address or the password is wrong.")
    assert "--with-token" in done.err
    assert "not this one" not in done.err
    assert not stranger.logins.exists()


def test_too_many_wrong_passwords_say_how_long_to_wait(stranger: Person) -> None:
    wrong = {"email": stranger.email, "password": "not this one"}
    while stranger.pages.post("/api/auth/login", json=wrong).status_code != 429:
        pass
    said = failed(stranger.types("login", stranger.url, "--email", stranger.email, stdin=PASSWORD))
    assert said.startswith("keyman: Too many attempts failed.")
    assert re.search(r"Try again in \d+ s\.$", said.strip())


def test_a_script_has_to_name_the_account(stranger: Person) -> None:
    done = stranger.types("login", stranger.url, stdin=PASSWORD)
    assert done.code == 2
    assert "Give --email" in done.err


def test_a_password_is_asked_at_the_terminal_and_not_shown(stranger: Person) -> None:
    with terminal("login", stranger.url, env=stranger.env) as screen:
        screen.shows("E-mail address: ")
        screen.types(f"{stranger.email}\n")
        screen.shows(f"Password for {stranger.url}: ")
        screen.types(f"{PASSWORD}\n")
        screen.shows("Signed in to")
        assert screen.ends() == 0
        assert PASSWORD not in screen.screen
        assert "km_" not in screen.screen


def test_a_token_goes_into_the_keyring_and_not_into_the_file(
    stranger: Person, use_ring: Callable[[KeyringBackend], None]
) -> None:
    ring = Ring()
    use_ring(ring)
    stranger.signs_in()
    ((where, token),) = ring.held.items()
    assert where == (f"keyman {stranger.url}", "token")
    assert token.startswith("km_")
    assert "km_" not in stranger.logins.read_text()
    assert stranger.does("key", "list").err == "You have no keys yet. Add one: keyman key add\n"
    ring.held.clear()
    assert failed(stranger.types("key", "list")) == (
        f"keyman: You are not signed in to {stranger.url}. Run: keyman login {stranger.url}\n"
    )
    lost = failed(stranger.types("logout"))
    assert "could not be revoked. The keyring does not have it any more." in lost
    stranger.signs_in()
    stranger.does("logout")
    assert ring.held == {}


class Locked(Ring):
    """A keyring that nobody unlocks."""

    def get_password(self, service: str, username: str) -> str | None:
        raise KeyringLocked(f"locked, with {self.held}")


def test_a_keyring_that_is_locked_is_said_and_the_login_stays(
    stranger: Person, use_ring: Callable[[KeyringBackend], None]
) -> None:
    ring, locked = Ring(), Locked()
    use_ring(ring)
    stranger.signs_in()
    use_ring(locked)
    said = failed(stranger.types("key", "list"))
    assert said == (
        f"keyman: Your token for {stranger.url} is in the keyring of the system, which is locked or does not answer. "
        f"Unlock it, or run: keyman login {stranger.url}\n"
    )
    use_ring(ring)
    stranger.does("key", "list")
    use_ring(locked)
    assert "could not be revoked. The keyring of the system is locked" in failed(stranger.types("logout"))
    assert failed(stranger.types("key", "list")).startswith("keyman: You are not signed in.")
    use_ring(ring)
    stranger.signs_in()
    use_ring(locked)
    stranger.signs_in()
    assert token_in(stranger).startswith("km_"), "the file has it, because the keyring does not"


def test_a_keyring_that_forgets_is_none(stranger: Person, use_ring: Callable[[KeyringBackend], None]) -> None:
    use_ring(null.Keyring())  # type: ignore[no-untyped-call]  # keyring has no type there
    stranger.signs_in()
    assert token_in(stranger).startswith("km_")


def test_a_pasted_token_is_tried_before_it_is_stored(stranger: Person) -> None:
    made = stranger.pages.post("/api/tokens", json={"name": "pasted", "scopes": ["keys:read"]}).json()["token"]
    wrong = f"{made[:-1]}{'a' if made[-1] != 'a' else 'b'}"
    said = failed(stranger.types("login", stranger.url, "--with-token", stdin=wrong))
    assert "does not accept this token" in said
    said = failed(stranger.types("login", stranger.url, "--with-token", stdin="nonsense"))
    assert f"{stranger.url}/settings/access-tokens" in said
    assert "nonsense" not in said
    assert not stranger.logins.exists()
    stranger.does("login", stranger.url, "--with-token", stdin=f" {made}\n")
    assert token_in(stranger) == made


def test_a_logout_revokes_the_token_whatever_its_scopes_are(member: Person) -> None:
    token = token_in(member)
    assert member.does("logout") == (0, "", f"Signed out of {member.url}.\n")
    assert member.tokens() == []
    assert script(member.url, token).get("/api/keys").status_code == 401
    assert "km_" not in member.logins.read_text()
    assert failed(member.types("logout")) == "keyman: You are not signed in.\n"
    assert "Run: keyman login URL" in failed(member.types("key", "list"))


def test_a_token_that_was_revoked_elsewhere_says_how_to_go_on(member: Person) -> None:
    member.pages.delete(f"/api/tokens/{member.tokens()[0]['id']}")
    assert failed(member.types("key", "list")) == (
        f"keyman: Your token for {member.url} has expired or was revoked. Run: keyman login {member.url}\n"
    )
    member.does("logout")


def test_a_logout_that_cannot_revoke_says_that_the_token_lives(member: Person) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    member.logins.write_text(member.logins.read_text().replace(member.url, gone))
    said = failed(member.types("logout"))
    assert f"Revoke it there: {gone}/settings/access-tokens" in said
    assert "km_" not in member.logins.read_text()


def test_plain_http_goes_only_to_this_machine(stranger: Person) -> None:
    said = failed(stranger.types("login", "http://keyman.example.com", "--email", "a@example.com", stdin=PASSWORD))
    assert said == (
        "keyman: Plain http would show the token and the keys to everybody on the network. Use an https address.\n"
    )


def test_a_server_that_is_not_there_is_said_in_words(stranger: Person) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    said = failed(stranger.types("login", gone, "--email", "a@example.com", stdin=PASSWORD))
    assert said == f"keyman: {gone} cannot be reached. Check the address, your network, and that keyman runs there.\n"


def test_http_where_https_is_meant_is_said_in_words(stranger: Person) -> None:
    url = stranger.url.replace("http:", "https:")
    said = failed(stranger.types("login", url, "--email", "a@example.com", stdin=PASSWORD))
    assert "it is of another kind than the address says: http or https" in said or "cannot be reached" in said


def test_another_server_is_recognised_before_a_password_is_asked(stranger: Person) -> None:
    done = stranger.types("login", f"{stranger.url}/elsewhere", "--email", "a@example.com", stdin=PASSWORD)
    assert "There is no keyman at" in failed(done)


@pytest.mark.parametrize(
    ("status", "why"),
    [(502, "The server gives no reason (502)."), (302, "The server answers with a redirect, which is not followed")],
)
def test_an_answer_of_a_proxy_is_said_in_whole_sentences(member: Person, status: int, why: str) -> None:
    page = Reply(status, b"<html>down</html>", {"Content-Type": "text/html", "Location": "/maintenance"})

    async def list_keys() -> None:
        async with faulty_server([page] * 9) as server:
            member.logins.write_text(member.logins.read_text().replace(member.url, server.address))
            said = failed(await asyncio.to_thread(run_keyman, "key", "list", env=member.env))
            assert f"does not answer as keyman does. Check the address. {why}" in said
            assert "html" not in said

    asyncio.run(list_keys())


def test_another_file_of_somebody_else_is_not_trusted(member: Person) -> None:
    member.logins.chmod(0o644)
    assert f"Run: chmod 600 {member.logins}" in failed(member.types("key", "list"))
    member.logins.chmod(0o600)
    member.logins.write_text(member.logins.read_text().replace("km_", "km-"))
    damaged = f"keyman: What is kept as your token for {member.url} is damaged. Run: keyman login {member.url}\n"
    assert failed(member.types("key", "list")) == damaged
    member.logins.write_text("{")
    said = failed(member.types("key", "list"))
    assert "is damaged" in said


def test_a_home_that_cannot_be_written_to_is_said_in_words(stranger: Person, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ("login", stranger.url, "--email", stranger.email)
    said = failed(stranger.types(*arguments, stdin=PASSWORD, XDG_CONFIG_HOME=str(tmp_path / "file")))
    assert "cannot be written" in said or "cannot be read" in said


def test_a_token_that_cannot_be_kept_is_revoked(stranger: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake, because root writes everywhere."""

    def full(_path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(logins, "write_private", full)
        done = stranger.types("login", stranger.url, "--email", stranger.email, stdin=PASSWORD)
        assert "cannot be written" in failed(done)
        assert stranger.tokens() == []
        made = stranger.pages.post("/api/tokens", json={"name": "pasted"}).json()["token"]
        assert "cannot be written" in failed(stranger.types("login", stranger.url, "--with-token", stdin=made))
    assert [token["name"] for token in stranger.tokens()] == ["pasted"], "it is kept elsewhere, too"


def test_the_environment_stands_for_a_login_at_its_own_server_only(stranger: Person) -> None:
    token = stranger.pages.post("/api/tokens", json={"name": "ci"}).json()["token"]
    given = {"KEYMAN_URL": stranger.url, "KEYMAN_TOKEN": token}
    assert stranger.does("key", "list", "--json", **given).out == "[]\n"
    assert not stranger.logins.exists()
    other = failed(stranger.types("key", "list", "--url", "https://other.example.com", **given))
    assert other == (
        "keyman: You are not signed in to https://other.example.com. Run: keyman login https://other.example.com\n"
    )
    stranger.pages.delete(f"/api/tokens/{stranger.tokens()[0]['id']}")
    said = failed(stranger.types("key", "list", **given))
    assert said.startswith("keyman: The token in KEYMAN_TOKEN is not valid at")
    assert token not in said
    malformed = failed(stranger.types("key", "list", KEYMAN_URL=stranger.url, KEYMAN_TOKEN="km_x"))
    assert malformed.startswith("keyman: KEYMAN_TOKEN: the token must be a token of keyman")


def test_several_servers_are_kept_apart(member: Person) -> None:
    other = member.url.replace("127.0.0.1", "localhost")
    member.does("login", other, "--email", member.email, stdin=PASSWORD)
    assert len(member.tokens()) == 2
    member.stores("OPENAI", "sk-hq2v9mXbT0c7eUKwN4Rd1234")
    for url in (member.url, other):
        assert "OPENAI" in member.does("key", "list", "--url", url).out
    member.does("logout", other)
    assert "OPENAI" in member.does("key", "list").out, "the one that is left is the current one"


def test_the_page_opens_in_the_browser_or_is_printed(member: Person, tmp_path: Path) -> None:
    page = f"{member.url}/settings/api-keys"
    assert member.does("open") == (0, f"{page}\n", "")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = run_keyman("open", env=member.env | {"BROWSER": f"{browser} %s"})
    assert (done.code, done.out, done.err) == (0, "", f"Opened {page} in the browser.\n")
    assert (tmp_path / "opened").read_text() == f"{page}\n"


def test_no_home_directory_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    done = keyman("key", "list", env={"PATH": "/usr/bin", "XDG_CONFIG_HOME": "relative"})
    assert failed(done) == ("keyman: There is no home directory to keep the login in. Set HOME or XDG_CONFIG_HOME.\n")


def test_a_certificate_that_is_not_trusted_gets_no_password(stranger: Person, tmp_path: Path) -> None:
    pair = issue(authority(tmp_path), ["127.0.0.1"])
    (tmp_path / "server.pem").write_bytes(pair.certificate_pem() + pair.key_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "server.pem")

    async def sign_in() -> None:
        async with faulty_server([given()], serving) as server:
            arguments = ("login", server.address, "--email", stranger.email)
            said = failed(await asyncio.to_thread(run_keyman, *arguments, env=stranger.env, stdin=PASSWORD))
            assert said.startswith(f"keyman: The certificate of {server.address} is not trusted, so nothing was sent.")
            assert "SSL_CERT_FILE" in said
            assert server.requests == []
            trusting = stranger.env | {"SSL_CERT_FILE": str(tmp_path / "ca.crt")}
            said = failed(await asyncio.to_thread(run_keyman, *arguments, env=trusting, stdin=PASSWORD))
            assert said.startswith(f"keyman: There is no keyman at {server.address}.")
            assert len(server.requests) == 1

    asyncio.run(sign_in())


@pytest.mark.slow  # `test_a_pasted_token_is_tried_before_it_is_stored` shows what follows
def test_where_nobody_has_a_password_a_token_is_pasted(
    migrated_sqlite: Path, provisioned: Vault, tmp_path: Path
) -> None:
    env = environment(HOME=str(tmp_path), PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
    with site_at(tmp_path, migrated_sqlite, provisioned, KEYMAN_PASSWORDS="off") as site:
        site.add("ada@example.com")
        given = env | {"KEYMAN_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/keyman.db"}
        token = keyman("token", "create", "--user", "ada@example.com", "--name", "x", env=given).out.strip()
        with terminal("login", site.url, env=env) as screen:
            screen.shows(f"Nobody signs in to {site.url} with a password.")
            screen.shows("keys:read, keys:write, keys:use")
            screen.shows(f"{site.url}/settings/access-tokens")
            screen.shows("Token: ")
            screen.types(f"{token}\n")
            screen.shows(f"Signed in to {site.url}.")
            assert screen.ends() == 0
            assert token not in screen.screen
        assert keyman("key", "list", "--json", env=env).out == "[]\n"


@pytest.mark.slow  # it starts a plane of its own
def test_a_keyman_below_a_root_path_is_found_by_the_address_of_a_page(
    migrated_sqlite: Path, provisioned: Vault, tmp_path: Path
) -> None:
    env = environment(HOME=str(tmp_path), PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
    with site_at(tmp_path, migrated_sqlite, provisioned, KEYMAN_ROOT_PATH="/vault/keyman") as site:
        site.add("ada@example.com")
        page = f"{site.url}/vault/keyman/settings/access-tokens"
        done = keyman("login", page, "--email", "ada@example.com", env=env, stdin=PASSWORD)
        assert done.err.startswith(f"Signed in to {site.url}/vault/keyman as ada@example.com.")
        assert keyman("key", "list", "--json", env=env).out == "[]\n"
        assert keyman("open", env=env).out == f"{site.url}/vault/keyman/settings/api-keys\n"
        assert keyman("logout", env=env).code == 0
