"""`keyman run`: what the program finds in its environment, and that nothing is between it and its parent."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from keyman.cli.owner import run
from keyman.errors import KeymanError
from tests.cli.owner.conftest import GATEWAY, Person
from tests.cli.owner.test_login import token_in
from tests.cli.test_common import failed
from tests.support.cli import Live, run_keyman

BODY = "hq2v9mXbT0c7eUKwN4Rd"


@pytest.fixture
def keyholder(member: Person) -> Person:
    """Somebody with a key of OpenAI, and a paused one of Anthropic."""
    member.stores("OPENAI", f"sk-proj-{BODY}1234")
    member.does("key", "pause", str(member.stores("ANTHROPIC", f"sk-ant-{BODY}5678")))
    return member


def environment_of(person: Person, *arguments: str, **variables: str) -> dict[str, str]:
    done = run_keyman("run", *arguments, "--", "env", env=person.env | variables)
    assert done.code == 0, done.err
    return dict(line.split("=", 1) for line in done.out.splitlines())


def test_a_program_finds_the_gateway_and_the_token_for_each_active_key(keyholder: Person) -> None:
    found = environment_of(keyholder, OTHER="stays", OPENAI_API_KEY="sk-of-the-shell")
    assert found["OPENAI_BASE_URL"] == f"{GATEWAY}/openai/v1"
    assert found["OPENAI_API_KEY"] == token_in(keyholder)
    assert found["OTHER"] == "stays"
    assert "ANTHROPIC_API_KEY" not in found


def test_services_are_chosen(keyholder: Person) -> None:
    found = environment_of(
        keyholder, "--service", "anthropic", "--service", "google", GOOGLE_API_KEY="AIza-of-the-shell"
    )
    assert found["ANTHROPIC_BASE_URL"] == f"{GATEWAY}/anthropic"
    assert found["GOOGLE_GEMINI_BASE_URL"] == f"{GATEWAY}/google"
    assert found["GEMINI_API_KEY"] == token_in(keyholder)
    assert "GOOGLE_API_KEY" not in found, "the SDK would prefer it"
    assert "OPENAI_API_KEY" not in found


def test_a_variable_that_two_services_share_is_for_the_first_and_that_is_said(keyholder: Person) -> None:
    keyholder.stores("DEEPSEEK", f"sk-{BODY}1234")
    keyholder.stores("MISTRAL", BODY)
    done = run_keyman("run", "--show", env=keyholder.env)
    assert done.out == f"OPENAI_BASE_URL={GATEWAY}/openai/v1\nOPENAI_API_KEY=(your token for {keyholder.url})\n"
    assert "For DeepSeek: --service DEEPSEEK" in done.err
    assert f"Mistral AI has no SDK with such variables; use {GATEWAY}/mistral." in done.err
    assert environment_of(keyholder, "--service", "deepseek")["OPENAI_BASE_URL"] == f"{GATEWAY}/deepseek"
    both = run_keyman("run", "--service", "openai", "--service", "deepseek", "--show", env=keyholder.env)
    assert "OPENAI_BASE_URL is that of OpenAI" in failed(both)
    assert "is not served by the gateway" in failed(
        run_keyman("run", "--service", "google_vertex", "--show", env=keyholder.env)
    )


def test_without_an_active_key_the_program_is_not_run(member: Person) -> None:
    said = failed(run_keyman("run", "--", "echo", "it ran", env=member.env))
    assert said == "keyman: You have no active key. Add one: keyman key add\n"


def test_options_after_the_command_are_its_own_and_its_exit_code_is_that_of_keyman(keyholder: Person) -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(7)"
    for dashes in ((), ("--",)):
        arguments = ("run", *dashes, sys.executable, "-c", program, "--help", "--url", "x")
        done = run_keyman(*arguments, env=keyholder.env, stdin="in")
        assert (done.code, done.out, done.err) == (7, "['--help', '--url', 'x'] in\n", "")


def test_the_program_takes_the_place_of_keyman_and_gets_its_signals(keyholder: Person, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print(os.getpid(), file=sys.stderr, flush=True)\n"
        "while True: time.sleep(0.05)\n"  # a signal that comes in the moment before a pause is not heard
    )
    # An interpreter ignores SIGPIPE itself, so a shell says what it inherits: it cannot change what was ignored.
    shell = "kill -PIPE $$; echo alive"
    assert run_keyman("run", "--", "sh", "-c", shell, env=keyholder.env).code == -signal.SIGPIPE
    running = Live(["run", "--", sys.executable, "-c", program], keyholder.env, tmp_path / "output")
    try:
        running.says(str(running.pid))
        assert running.end(signal.SIGTERM).code == 3
    finally:
        running.process.kill()
        running.process.wait()


def test_a_command_that_is_not_there_or_no_program_ends_as_in_a_shell(keyholder: Person, tmp_path: Path) -> None:
    missing = run_keyman("run", "--", "no-such-command", env=keyholder.env)
    assert (missing.code, missing.err) == (127, "keyman: There is no command no-such-command.\n")
    (tmp_path / "text").write_text("text")
    assert run_keyman("run", "--", str(tmp_path / "text"), env=keyholder.env).code == 126
    assert run_keyman("run", env=keyholder.env).code == 2


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "PATH",
        "PYTHONPATH",
        "NODE_OPTIONS",
        "HTTPS_PROXY_URL",
        "KEYMAN_TOKEN",
        "LD_AUDIT_URL",
        "PIP_INDEX_URL",
        "DATABASE_URL",
        "openai_url",
    ],
)
def test_a_server_cannot_choose_a_variable_that_is_none_of_an_sdk(name: str) -> None:
    with pytest.raises(KeymanError, match="none of an SDK's"):
        run._checked(name)


def test_every_variable_of_the_catalogue_is_one_of_an_sdk(keyholder: Person) -> None:
    services = keyholder.pages.get("/api/services").json()
    names = {use[which] for one in services if (use := one["gateway"]) for which in ("url_variable", "token_variable")}
    assert len(names) > 8
    assert [run._checked(name) for name in names if name]


def test_the_token_is_in_no_argument_and_in_no_message(keyholder: Person) -> None:
    done = run_keyman("run", "--", "sh", "-c", "tr '\\0' ' ' < /proc/$$/cmdline", env=keyholder.env)
    assert token_in(keyholder) not in done.out + done.err
