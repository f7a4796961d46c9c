"""The README's commands, as they are printed, against a `keyman dev` of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import KEYMAN, dev, free_port, keyman
from tests.support.planes import PASSWORD

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    home, port = tmp_path_factory.mktemp("readme") / ".keyman", free_port()
    with dev(home, port):
        yield home, port


def shell_blocks(text: str = README) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def run(block: str, home: Path, port: int) -> str:
    """What a block prints, with nothing changed in it but where the port and the home are."""
    script = block.replace(":8000", f":{port}").replace(":8001", f":{port + 1}")
    script = script.replace("--home .keyman", f"--home {home}")
    script = script.replace(".venv/bin/keyman", str(KEYMAN))
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        capture_output=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(home.parent)},
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_the_story_in_curl_works_as_printed(running: tuple[Path, int]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    story = next(block for block in shell_blocks() if "/auth/signup" in block)
    answers = [line for line in run(story, *running).splitlines() if line]
    account, created, listed, replaced = (json.loads(line) for line in answers)
    assert account["email"] == "ada@example.com"
    assert created["last_4_chars"] == "sk-...1234"
    assert listed == [created]
    assert replaced["last_4_chars"] == "sk-...9876"
    shown = {name: created[name] for name in ("id", "service", "name", "last_4_chars", "status")}
    assert json.dumps(shown).rstrip("}") in README.replace("…}", ""), "the README shows what is answered"
    # Deleted, as the last line of the story says; and the token of the next block sees that.
    script = next(block for block in shell_blocks() if "token create" in block)
    assert json.loads(run(script, *running)) == []


def test_an_application_gets_a_key_back_as_printed(running: tuple[Path, int]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    home, port = running
    if keyman("user", "list", "--home", home).out.count("\n") < 2:  # the story makes her, where it was told before
        keyman("user", "add", "ada@example.com", "--home", home, stdin=f"{PASSWORD}\n")
    token, application = (next(b for b in shell_blocks() if word in b) for word in ("token create", "app create"))
    *_, stored, resolved = run(token + "\necho\n" + application, home, port).splitlines()
    assert json.loads(stored)["last_4_chars"] == "sk-...1234"
    answer = json.loads(resolved)
    assert (answer["user_id"], answer["service"], answer["api_key"]) == (1, "OPENAI", "sk-hq2v9mXbT0c7eUKwN4Rd1234")
    (described,) = shell_blocks((ROOT / "docs" / "resolver.md").read_text())
    assert json.loads(run(described, home, port)) == answer


def test_every_document_that_is_linked_is_there() -> None:
    for document in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_commands_of_the_readme_are_those_that_there_are(running: tuple[Path, int]) -> None:
    help_text = subprocess.run([KEYMAN, "--help"], capture_output=True, check=True, timeout=60).stdout.decode()
    for name in set(re.findall(r"`keyman (\w+)", README)):
        assert re.search(rf"^  {name}\b", help_text, re.MULTILINE), name
