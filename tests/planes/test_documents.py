"""The OpenAPI documents of all planes: two linters find nothing, and TypeScript clients that are made of them work."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.planes.gateway.formats import KEYS, provider
from tests.support.cli import dev, environment, run_keyman
from tests.support.http import free_port, sign_up
from tests.support.needs import require
from tests.support.node import OPENAPI_TOOLS, installed, node_absence

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "typescript"

PLANES = ("management", "resolver", "gateway")
"""In the order of their ports in `keyman dev`."""

LIMIT = 120
"""Seconds for one program of npm: the linters take 5 on an idle machine, the compiler 8."""


class Place(NamedTuple):
    """A directory with the document of each plane and the tools of npm, beside a `keyman dev` that runs."""

    directory: Path
    home: Path
    port: int

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a tool or Node, which sees only these variables."""
        own = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
        program = shutil.which("node") if command[0] == "node" else self.directory / "node_modules/.bin" / command[0]
        return subprocess.run(
            [str(program), *command[1:]],
            cwd=self.directory,
            env=environment(**own, **variables),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    require("node", node_absence(OPENAPI_TOOLS))
    top = tmp_path_factory.mktemp("documents")
    directory, home, port = top / "npm", top / "home", free_port()
    shutil.copytree(OPENAPI_TOOLS, directory)
    (directory / "node_modules").symlink_to(installed(OPENAPI_TOOLS) / "node_modules")
    for example in EXAMPLES.glob("*.ts"):
        shutil.copy(example, directory)
    with provider() as stub:
        services = top / "services.json"
        services.write_text(stub.services())
        with dev(home, port, env=environment(KEYMAN_SERVICES_FILE=str(services))):
            for number, plane in enumerate(PLANES):
                answer = httpx.get(f"http://127.0.0.1:{port + number}/docs/openapi.json")
                (directory / f"{plane}.json").write_text(answer.text)
            yield Place(directory, home, port)


@pytest.mark.parametrize("plane", PLANES)
def test_redoclys_recommended_rules_find_nothing(tools: Place, plane: str) -> None:
    done = tools.run("redocly", "lint", "--format", "json", f"{plane}.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["problems"] == []
    assert found["totals"]["ignored"] == 0


@pytest.mark.parametrize("plane", PLANES)
def test_spectrals_rules_find_nothing(tools: Place, plane: str) -> None:
    done = tools.run("spectral", "lint", "--ruleset", "spectral.yaml", "--fail-severity", "hint", f"{plane}.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No results with a severity of 'hint' or higher found!" in done.stdout


@pytest.mark.parametrize("linter", ["redocly", "spectral"])
def test_the_linters_find_something_in_a_document_that_is_worse(tools: Place, linter: str) -> None:
    """The test of the tests: the rules are on."""
    worse = json.loads((tools.directory / "resolver.json").read_text())
    del worse["paths"]["/livez"]["get"]["operationId"], worse["info"]["license"], worse["info"]["contact"]
    (tools.directory / "worse.json").write_text(json.dumps(worse))
    options = ["--ruleset", "spectral.yaml", "--fail-severity", "hint"] if linter == "spectral" else []
    done = tools.run(linter, "lint", *options, "worse.json")
    assert "operationId" in done.stdout + done.stderr
    assert "info-license" in done.stdout + done.stderr or linter == "spectral"
    assert "info-contact" in done.stdout + done.stderr or linter == "redocly"


@pytest.fixture(scope="module")
def compiled(tools: Place) -> Place:
    """The examples as programs for Node: the types are generated and everything is compiled strictly."""
    for plane, name in zip(PLANES, ("keyman", "resolver", "gateway"), strict=True):
        done = tools.run("openapi-typescript", f"{plane}.json", "-o", f"{name}.ts")
        assert done.returncode == 0, done.stderr
    names = sorted(example.name for example in EXAMPLES.glob("*.ts"))
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node"]
    done = tools.run("tsc", *options, *names)
    assert done.returncode == 0, done.stdout
    return tools


def test_a_typescript_client_stores_lists_replaces_and_deletes(compiled: Place) -> None:
    url = f"http://127.0.0.1:{compiled.port}"
    ada = sign_up(url, "ada@example.com")
    token = ada.post("/api/tokens", json={"name": "typescript"}).json()["token"]
    own = ada.post("/api/keys", json={"service": "OPENAI", "api_key": KEYS["OPENAI"]}).json()
    done = compiled.run("node", "manage.js", KEYMAN_URL=url, KEYMAN_TOKEN=token)
    assert done.stdout.splitlines() == [
        "refused: 400 One field is invalid. api_key: must be 8 to 8,192 characters long.",
        "added: From TypeScript sk-...1234 active",
        f"listed: sk-...9abc sk-...5678 sk-...1234 {own['last_4_chars']}",
        "replaced: sk-...WXYZ",
        "a second time: It has changed in the meantime",
        "left of these: 0",
    ], done.stderr
    assert [key["id"] for key in ada.get("/api/keys").json()] == [own["id"]]


def test_a_typescript_client_uses_a_key(compiled: Place) -> None:
    grace = sign_up(f"http://127.0.0.1:{compiled.port}", "grace@example.com")
    user = grace.get("/api/auth/me").json()["id"]
    assert grace.post("/api/keys", json={"service": "OPENAI", "api_key": KEYS["OPENAI"]}).status_code == 201
    token = run_keyman("app", "create", "typescript", "--service", "OPENAI", "--home", compiled.home).out.strip()
    done = compiled.run(
        "node",
        "use.js",
        KEYMAN_APP_TOKEN=token,
        USER_ID=str(user),
        KEYMAN_RESOLVER_URL=f"http://127.0.0.1:{compiled.port + 1}",
        KEYMAN_GATEWAY_URL=f"http://127.0.0.1:{compiled.port + 2}",
    )
    models, nobodys, resolved, missing = done.stdout.splitlines()
    assert '"gpt-x"' in models, done.stderr
    assert nobodys == "of nobody: not-found"
    assert resolved == f"resolved: a key of {len(KEYS['OPENAI'])} characters"
    assert missing == "not there: 404 There is nothing here"
