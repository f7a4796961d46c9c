"""`keyman completion`, and what a shell is answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keyman.cli import COMMANDS
from keyman.cli.completion import SHELLS, VARIABLE
from keyman.providers.services import SHIPPED
from tests.cli.transcript import keyman
from tests.support.cli import KEYMAN, environment, run_keyman
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_printed(shell: str) -> None:
    done = keyman("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"{VARIABLE}={shell}_complete" in done.out


def test_bash_accepts_its_script() -> None:
    script = keyman("completion", "bash").out
    check = f"{script}\ncomplete -p keyman"
    done = subprocess.run(["bash", "-c", check], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "_keyman_completion keyman" in done.stdout


def test_bash_completes_a_line_with_it_and_leaves_no_trace_of_a_key() -> None:
    asks = """
        complete_it() {
            COMP_WORDS=($1); COMP_CWORD=$2; COMPREPLY=()
            _keyman_completion keyman
            echo "${COMPREPLY[*]}"
        }
        complete_it "keyman log" 1
        complete_it "keyman key add op" 3
        complete_it "keyman key add sk-proj-hq2v9mXbT0c7eUKwN4Rd" 3
        complete_it "keyman run --service mist" 3
    """
    env = environment(PATH=f"{Path(KEYMAN).parent}:/usr/bin:/bin")
    run = ["bash", "-c", f"{keyman('completion', 'bash').out}\n{asks}"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("login logout\nOPENAI OPENROUTER\n\nMISTRAL\n", "")


def test_another_shell_is_wrong_usage() -> None:
    assert keyman("completion", "tcsh").code == 2


def completed(words: str, number: int) -> list[str]:
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    done = run_keyman(env=environment(**asked))
    assert (done.code, done.err) == (0, "")
    return [line.removeprefix("plain,") for line in done.out.split()]


def test_commands_and_options_are_completed() -> None:
    assert completed("keyman ", 1) == sorted(COMMANDS)
    assert completed("keyman log", 1) == ["login", "logout"]
    assert completed("keyman key p", 2) == ["pause"]
    assert completed("keyman key list --so", 3) == ["--sort"]
    assert completed("keyman completion ", 2) == [*SHELLS]


def test_the_names_of_services_are_completed_without_a_server() -> None:
    assert completed("keyman key add ", 3) == [service.service for service in SHIPPED]
    for begun in ("OPEN", "open", "Open"):
        assert completed(f"keyman key add {begun}", 3) == ["OPENAI", "OPENROUTER"]
    assert completed("keyman key add aws-", 3) == ["AWS_BEDROCK"]
    assert completed("keyman key add --name work mist", 5) == ["MISTRAL"]
    assert completed("keyman key list --service mist", 4) == ["MISTRAL"]
    assert completed("keyman run --service mist", 3) == ["MISTRAL"]


def test_what_only_a_server_knows_is_not_completed() -> None:
    assert completed("keyman key add OPENAI --name ", 5) == []
    assert completed("keyman key add OPENAI more ", 5) == []
    assert completed("keyman key edit ", 3) == []


def test_completing_a_command_imports_none() -> None:
    program = (
        "import sys, click, keyman.cli as c\n"
        "from click.shell_completion import BashComplete\n"
        "print(len(BashComplete(c.cli, {}, 'keyman', '_').get_completions([], '')))\n"
        "print([name for name in sys.modules if name.startswith('keyman.cli.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout == f"{len(COMMANDS)}\n['keyman.cli.groups']\n"
