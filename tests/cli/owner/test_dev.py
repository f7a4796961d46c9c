"""The commands of owners with all of keyman: a key, its verdict, and a program that uses it through the gateway."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from keyman.cli.owner.sign_in import host
from tests.cli.transcript import keyman
from tests.support.cli import Finished, dev, environment, run_keyman
from tests.support.http import free_port, sign_up
from tests.support.planes import PASSWORD
from tests.support.terminal import terminal

VALUE = "sk-proj-hq2v9mXbT0c7eUKwN4Rd1234"

PROGRAM = """
import os, urllib.request
asked = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/models")
asked.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
print(urllib.request.urlopen(asked).read().decode())
"""
"""What OpenAI's SDK does with its variables."""


class Models(BaseHTTPRequestHandler):
    """A provider that lists its models for one key."""

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == f"Bearer {VALUE}"
        body: object = {"data": []} if is_known else {"error": {"code": "invalid_api_key"}}
        status, content = 200 if is_known else 401, json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return None


@contextmanager
def provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow  # the other files show each command, and tests/planes/gateway a use of the key
def test_a_key_is_checked_used_by_a_program_and_deleted(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(HOME=str(tmp_path), PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
    services = tmp_path / "services.json"

    def done(*arguments: str, stdin: str = "") -> Finished:
        finished = keyman(*arguments, env=env, stdin=stdin)
        assert finished.code == 0, finished.err
        assert VALUE not in finished.out + finished.err
        return finished

    with provider() as address:
        services.write_text(json.dumps([{"service": "OPENAI", "base_url": address}]))
        with dev(tmp_path / "home", port, env=environment(KEYMAN_SERVICES_FILE=str(services))):
            sign_up(url, "ada@example.com").close()
            done("login", url, "--email", "ada@example.com", stdin=PASSWORD)

            good = done("key", "add", "--name", "Chat", stdin=VALUE)
            assert "Checked: accepted. " in good.err
            bad = done("key", "add", "OPENAI", stdin=f"{VALUE[:-4]}5678")
            assert "Checked: refused. " in bad.err
            again = keyman("key", "check", "2", env=env)
            assert again.code == 1
            assert "Try again in " in again.err
            done("key", "delete", "2", "--yes")

            used = run_keyman("run", "--", sys.executable, "-c", PROGRAM, env=env)
            assert (used.code, json.loads(used.out)) == (0, {"data": []}), used.err
            (key,) = json.loads(done("key", "list", "--json").out)
            assert (key["check"]["verdict"], key["last_used_by"]) == ("accepted", f"cli@{host()}")

            created = keyman("app", "create", "shop", "--service", "OPENAI", "--home", tmp_path / "home", env=env)
            assert created.code == 0, created.err
            with terminal("key", "delete", "1", env=env) as screen:
                screen.shows(f"cli@{host()} used it last, ")
                screen.shows("Applications that may use your OpenAI keys: shop.")
                screen.shows("Delete key 1? This cannot be undone. [y/N]: ")
                screen.types("y\n")
                screen.shows("Deleted key 1")
                assert screen.ends() == 0
            done("logout")
