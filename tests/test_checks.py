"""What runs before a commit: the secrets check, and the hooks of pre-commit."""

from __future__ import annotations

import json
import re
import secrets
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyman.identity.tokens import Token
from keyman.providers.services import SHIPPED

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def random(length: int) -> str:
    """Letters and digits, with at least one digit."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length - 1)) + "7"


def found(directory: Path, texts: dict[str, str]) -> dict[str, list[str]]:
    """The kinds of secrets that the check finds in each of some files; those in which it finds none are left out."""
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            *(PROGRAMS / "detect-secrets-hook", "--json", "--no-verify", "--baseline", ".secrets.baseline"),
            *(directory / name for name in texts),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == bool(done.stdout), done.stdout + done.stderr
    results: dict[str, Any] = json.loads(done.stdout)["results"] if done.stdout else {}
    return {Path(path).name: [secret["type"] for secret in listed] for path, listed in results.items()}


def test_secrets_of_the_kinds_that_keyman_handles_are_found(tmp_path: Path) -> None:
    keyman, vault, provider = ["keyman token"], ["Vault token"], ["API key of an LLM service"]
    texts = {
        "token.py": (keyman, f'TOKEN = "{Token.generate().reveal()}"\n'),
        "header.md": (keyman, f"curl -H 'Authorization: Bearer {Token.generate().reveal()}'\n"),
        "joined.txt": (keyman, f"KEYMAN_TOKEN={Token.generate().reveal()}AND_MORE\n"),
        "vault.env": (vault, f"VAULT_TOKEN=hvs.{random(90)}\n"),
        "openbao.json": (vault, f'{{"client_token": "s.{random(24)}"}}\n'),
        "shared.sh": (provider, f"export OPENAI_API_KEY=sk-{random(48)}\n"),
        "private.pem": (["Private Key"], f"-----BEGIN {'EC PRIVATE'} KEY-----\n"),
        "url.env": (["Basic Auth Credentials"], f"KEYMAN_DATABASE_URL=postgresql://keyman:{random(20)}@db/keyman\n"),
        **{
            f"{service.service}.py": (provider, f"KEY = '{service.exclusive[0]}{random(40)}'\n")
            for service in SHIPPED
            if service.exclusive
        },
    }
    assert found(tmp_path, {name: text for name, (_, text) in texts.items()}) == {
        name: kinds for name, (kinds, _) in texts.items()
    }


def test_what_only_looks_like_a_secret_is_not_found(tmp_path: Path) -> None:
    token = Token.generate().reveal()
    other = "1" if token[-1] != "1" else "2"
    texts = {
        "check.py": f'TOKEN = "{token[:-1]}{other}"\n',  # its check characters are wrong, so nobody accepts it
        "short.py": f'KEY = "sk-ant-{random(25)}"\n',
        "mask.md": "sk-...1234 km_...jS\n",
        "name.py": "s.aNameOfTwentyFourLetters = 1\n",
        "word.md": f"a task-{random(40)} and a desk-top-of-more-than-thirty-two-characters\n",
        "template.py": 'URL = f"postgresql://{user}:{word}@database/keyman"\n',
    }
    assert found(tmp_path, texts) == {}


def test_no_hook_downloads_anything() -> None:
    assert {repository["repo"] for repository in HOOKS["repos"]} == {"local"}
    for hook in hooks().values():
        assert hook["language"] in {"unsupported", "pygrep"}, hook["id"]
        if hook["language"] == "unsupported":
            folder, _, program = hook["entry"].split()[0].rpartition("/")
            assert folder == ".venv/bin"
            assert (PROGRAMS / program).exists(), f"{program} is not in requirements/test.txt"


def hooks() -> dict[str, dict[str, Any]]:
    return {hook["id"]: hook for repository in HOOKS["repos"] for hook in repository["hooks"]}


def accepts(message: str) -> bool:
    """Whether the hook lets a commit message pass. pygrep fails where it finds its pattern."""
    return re.search(hooks()["subject"]["entry"], message, re.MULTILINE | re.DOTALL) is None


@pytest.mark.parametrize(
    "subject",
    [
        "vault: do not propagate X-Request-ID to batches and renewals",
        "tests, docs: move the test map",
        "planes/resolver: answer 404 for a key of another service",
        f"docs: {'x' * 66}",
        "Merge branch 'main'",
        'Revert "docs: say what a mask is"',
        "fixup! docs: say what a mask is",
    ],
)
def test_a_good_subject_passes(subject: str) -> None:
    assert accepts(f"{subject}\n")
    assert accepts(f"{subject}\n\nThe reason. It may be long, and End as it likes.\n")


@pytest.mark.parametrize(
    "subject",
    [
        "Do not propagate X-Request-ID",
        "Vault: do not propagate X-Request-ID",
        "vault: Do not propagate X-Request-ID",
        "vault: do not propagate X-Request-ID.",
        "vault:do not propagate X-Request-ID",
        "vault: ",
        f"docs: {'x' * 67}",
        "",
    ],
)
def test_a_bad_subject_does_not_pass(subject: str) -> None:
    assert not accepts(f"{subject}\n")
    assert not accepts(f"{subject}\n\nvault: the body does not count\n")
