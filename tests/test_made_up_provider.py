"""The made-up provider of docs/examples, and the services file that leads to it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.cli import environment, run_keyman
from tests.support.http import free_port
from tests.support.waiting import until

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "provider"


@pytest.fixture(scope="module")
def made_up_provider() -> Iterator[str]:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(EXAMPLE / "app.py")]
    with subprocess.Popen(command, env=environment(PORT=str(port)), stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(origin), "the made-up provider answers")
            yield origin
        finally:
            process.terminate()


def answers(origin: str) -> bool:
    try:
        return httpx.get(f"{origin}/v1/models").is_success
    except httpx.ConnectError:
        return False


def test_it_answers_chats_of_openai_and_anthropic(made_up_provider: str) -> None:
    chat = httpx.post(f"{made_up_provider}/v1/chat/completions", json={"model": "gpt-x"}).json()
    assert chat["choices"][0]["message"]["content"] == "Hello"
    assert httpx.post(f"{made_up_provider}/v1/messages?beta=true", json={}).json()["content"][0]["text"] == "Hello"
    assert httpx.get(f"{made_up_provider}/v1/files").status_code == 404


def test_the_services_file_leads_to_its_port() -> None:
    variables = environment(KEYMAN_SERVICES_FILE=str(EXAMPLE / "services.toml"))
    listed = json.loads(run_keyman("services", "--json", env=variables).out)
    port = re.search(r'"PORT", "(\d+)"', (EXAMPLE / "app.py").read_text())
    assert port is not None
    changed = {one["service"]: one["base_url"] for one in listed if one["source"] == "changed"}
    assert changed == dict.fromkeys(("OPENAI", "ANTHROPIC"), f"http://127.0.0.1:{port[1]}")
