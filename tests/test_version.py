"""The version stands in keyman/version.py, and everything that says it reads it there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

import keyman
from keyman.client import ClientError, Resolver
from keyman.version import __version__
from tests.client.asking import TOKEN

ROOT = Path(__file__).parents[1]

# These name versions of other projects, or this project's versions of the past.
OTHERS = ("CHANGELOG.md", "requirements/", "keyman/planes/management/web/static/", "tests/support/openapi-tools/")


def tracked_texts() -> dict[str, str]:
    """The text of each file in the repository, by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    texts = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not (path := ROOT / name).is_file() or name.startswith(OTHERS):
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # an image
            continue
    return texts


def test_the_version_is_stated_once() -> None:
    stated = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.]*\d)")
    assert [name for name, text in tracked_texts().items() if stated.search(text)] == ["keyman/version.py"]


def test_the_version_is_one_that_a_wheel_and_a_tag_can_carry() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)


def test_the_package_says_the_version() -> None:
    assert keyman.__version__ == __version__


def test_the_wheel_takes_its_version_from_that_file() -> None:
    """`tests/test_package.py` builds the wheel and looks at its metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "keyman/version.py"}


def test_the_command_says_the_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keyman", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"keyman {__version__}\n"


def test_the_client_says_the_version_to_the_server() -> None:
    agents = []

    def answer(request: httpx.Request) -> httpx.Response:
        agents.append(request.headers["User-Agent"])
        return httpx.Response(404, stream=httpx.ByteStream(b""))

    with (
        Resolver("https://resolver.example.com", TOKEN, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ClientError),
    ):
        client.resolve(user_id=1, service="OPENAI")
    assert set(agents) == {f"keyman-client/{__version__}"}


def test_the_changelog_begins_with_the_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
