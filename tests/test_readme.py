"""The README's commands, as they are printed, against a `keyman dev` of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.cli import KEYMAN, dev, environment, run_keyman
from tests.support.http import free_port, script
from tests.support.planes import PASSWORD

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide" / "application-developer.md").read_text()


@pytest.fixture(scope="module")
def openai() -> Iterator[Provider]:
    with provider() as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, openai: Provider) -> Iterator[tuple[Path, int]]:
    """A `keyman dev` whose gateway sends requests for OpenAI to `openai`."""
    directory, port = tmp_path_factory.mktemp("readme"), free_port()
    home, services = directory / ".keyman", directory / "services.json"
    services.write_text(json.dumps([{"service": "OPENAI", "base_url": openai.url.removesuffix("/v1")}]))
    with dev(home, port, env=environment(KEYMAN_SERVICES_FILE=str(services))):
        yield home, port


def shell_blocks(text: str = README) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def run(block: str, home: Path, port: int) -> str:
    """What a block prints, with nothing changed in it but where the port and the home are."""
    script = re.sub(r":800([012])\b", lambda found: f":{port + int(found[1])}", block)
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


def test_the_lines_of_curl_work_as_printed(running: tuple[Path, int]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    lines = next(block for block in shell_blocks() if "/auth/signup" in block)
    found = []
    for _time in ("first", "second"):
        account, signed_in, *keys = (json.loads(line) for line in run(lines, *running).splitlines() if line)
        assert signed_in["email"] == "ada@example.com"
        created, listed, replaced = keys
        assert created["last_4_chars"] == "sk-...1234"
        assert listed == [created]
        assert (replaced["id"], replaced["last_4_chars"]) == (created["id"], "sk-...9876")
        found.append((account, signed_in, created))
    (account, signed_in, created), (again, *_) = found
    assert (account, again["status"]) == (signed_in, 409)
    shown = {name: created[name] for name in ("id", "service", "name", "last_4_chars", "status")}
    assert json.dumps(shown).rstrip("}") in README.replace("…}", ""), "the README shows what is answered"
    # The last line has deleted the key, and the token of the next block sees that.
    script = next(block for block in shell_blocks() if "token create" in block)
    assert json.loads(run(script, *running)) == []


def test_an_application_uses_the_gateway_and_gets_a_key_back_as_printed(
    running: tuple[Path, int], openai: Provider
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    home, port = running
    ada_is_there(home)
    openai.asked.clear()
    printed = ("token create", "app create", "/v1/resolve")
    *_, stored, listed, resolved = run("\n".join(block_with(word) for word in printed), home, port).splitlines()
    assert json.loads(stored)["last_4_chars"] == "sk-...1234"
    answer = json.loads(resolved)
    assert (answer["user_id"], answer["service"], answer["api_key"]) == (1, "OPENAI", VALUE)
    described = "\n".join(block_with(word, GUIDE) for word in ("app create", "/v1/resolve"))
    assert run(described, home, port).splitlines() == [listed, resolved]
    *_, again = run("\n".join(block_with(word) for word in printed), home, port).splitlines()
    assert json.loads(again) == {**answer, "key_id": answer["key_id"] + 1}, "the lines can be run twice"
    assert openai.asked == [GOT_ONE] * 3  # the provider got the key, and the application did not
    assert "data" in json.loads(listed)
    for text in (README, GUIDE):
        blocks = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        (shown,) = (json.loads(block) for block in blocks if "api_key" in block)
        assert shown == {**answer, "key_id": shown["key_id"]}, "the document shows what is answered"


def test_the_portals_application_is_made_as_printed_and_again(running: tuple[Path, int]) -> None:
    home, port = running
    block = f"{block_with('--portal')}\necho $KEYMAN_APP_TOKEN"
    first, second = (run(block, home, port).strip() for _ in range(2))
    assert first != second
    assert all(re.fullmatch(r"km_\w{36}", token) for token in (first, second))


def block_with(word: str, text: str = README) -> str:
    return next(block for block in shell_blocks(text) if word in block)


def ada_is_there(home: Path) -> None:
    """Make the account that the first lines of curl make, if they have not run."""
    if run_keyman("user", "list", "--home", home).out.count("\n") < 2:
        run_keyman("user", "add", "ada@example.com", "--home", home, stdin=f"{PASSWORD}\n")


class Provider(NamedTuple):
    """Plays OpenAI: it knows one key, and remembers what it was asked and with which one."""

    url: str
    asked: list[tuple[str, str | None]]
    known: set[str]


@contextmanager
def provider() -> Iterator[Provider]:
    asked, known = list[tuple[str, str | None]](), {VALUE}
    said = json.dumps({"choices": [{"message": {"content": "Hello yourself"}}], "data": []}).encode()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            shown = self.headers.get("Authorization")
            asked.append((f"{self.command} {self.path}", shown))
            self.send_response(200 if shown in {f"Bearer {key}" for key in known} else 401)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = _answer  # noqa: N815  # http.server's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Provider(f"http://127.0.0.1:{server.server_port}/v1", asked, known)
        server.shutdown()


class Setting(NamedTuple):
    """What the examples find: both planes, ada with a key, an application, a script's token, a provider."""

    env: dict[str, str]
    ada: str
    port: int
    provider: Provider

    def run(self, program: str | Path, stdin: str = "") -> list[str]:
        arguments = [str(program)] if isinstance(program, Path) else ["-c", program]
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env=self.env,
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr.decode()) == (0, "")
        assert VALUE not in done.stdout.decode()
        return done.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def setting(running: tuple[Path, int], openai: Provider) -> Setting:
    home, port = running
    ada_is_there(home)
    given = ("--user", "ada@example.com", "--name", "examples", "--scope", "keys:read", "--scope", "keys:write")
    token = run_keyman("token", "create", "--home", home, *given).out.strip()
    application = run_keyman("app", "create", "examples", "--service", "OPENAI", "--home", home).out.strip()
    env = environment(
        KEYMAN_URL=f"http://127.0.0.1:{port}",
        KEYMAN_TOKEN=token,
        KEYMAN_RESOLVER_URL=f"http://127.0.0.1:{port + 1}",
        KEYMAN_APP_TOKEN=application,
        OPENAI_BASE_URL=openai.url,
    )
    return Setting(env, token, port, openai)


@pytest.fixture
def example(setting: Setting) -> Setting:
    """The setting with ada's key as her newest, and a provider that was not asked yet."""
    with script(f"http://127.0.0.1:{setting.port}", setting.ada) as ada:
        ada.post("/api/keys", json={"service": "OPENAI", "api_key": VALUE}).raise_for_status()
    setting.provider.asked.clear()
    return setting


GOT_ONE = ("GET /v1/models", f"Bearer {VALUE}")


def test_a_back_end_resolves_a_key_in_six_lines_as_printed(example: Setting) -> None:
    for text in (README, GUIDE):
        programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (program,) = (program for program in programs if "httpx.get" in program)
        assert len([line for line in program.splitlines() if line]) == 6
        program = program.replace(":8001", f":{example.port + 1}").replace(
            "https://api.openai.com/v1", example.provider.url
        )
        example.run(program)
    assert example.provider.asked == [GOT_ONE] * 2


def test_the_example_of_one_call_works(example: Setting) -> None:
    assert example.run(EXAMPLES / "resolve.py") == ["*** 200"]
    assert example.provider.asked == [GOT_ONE]


def test_the_example_of_an_sdk_asks_for_a_key_with_each_request(example: Setting) -> None:
    assert example.run(EXAMPLES / "openai_style.py") == ["Hello yourself"] * 2
    assert example.provider.asked == [("POST /v1/chat/completions", f"Bearer {VALUE}")] * 2


def test_the_example_with_a_cache_asks_again_when_the_provider_refuses(example: Setting) -> None:
    assert example.run(EXAMPLES / "httpx_auth.py") == ["200"] * 3
    assert example.provider.asked == [GOT_ONE] * 3
    example.provider.asked.clear()
    example.provider.known.clear()
    try:
        assert example.run(EXAMPLES / "httpx_auth.py") == ["401"] * 3
    finally:
        example.provider.known.add(VALUE)
    assert example.provider.asked == [GOT_ONE] * 6


def test_the_example_of_a_script_manages_a_key(example: Setting) -> None:
    assert example.run(EXAMPLES / "manage.py", stdin=f"{VALUE}\n") == ["stored sk-...1234", "now disabled", "left 0"]


def test_the_example_of_tests_with_a_fake_passes(example: Setting) -> None:
    assert [line.split()[0] for line in example.run(EXAMPLES / "fake.py")] == ["passed"] * 3
    assert example.provider.asked == []


def test_every_example_is_run_here_and_named_in_the_documents() -> None:
    named = set(re.findall(r"examples/(\w+\.py)", (ROOT / "docs" / "reference" / "client.md").read_text()))
    run = set(re.findall(r'EXAMPLES / "(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == named == run
