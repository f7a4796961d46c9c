"""The SDKs of providers, as they are, through a real gateway: they need a base URL and a token, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.planes.gateway.formats import KEYS, Provider, provider
from tests.support.cli import dev, environment, run_keyman
from tests.support.http import free_port, sign_up
from tests.support.needs import require
from tests.support.sdks import LIMIT, PYTHON, ROOT, play, sdks_absence

GUIDE = (ROOT / "docs" / "guide" / "application-developer.md").read_text()
README = (ROOT / "README.md").read_text()
PROGRAMS = Path(__file__).parent / "sdks"

CONCURRENCY = 3
_PATHS = ["POST /v1/chat/completions", "POST /v1/messages", "POST /v1/models/{model}:generateContent"]
DOWN = {"service": "DOWN", "name": "Down", "base_url": "http://127.0.0.1:9", "paths": _PATHS}
NEEDS = {
    "service": "NEEDS",
    "name": "Needs a setting",
    "base_url": "https://{region}.example.com",
    "settings": ["region"],
    "paths": _PATHS,
}
VALUES = {**KEYS, "DOWN": "hq2v9mXbT0c7eUKwN4Rd1234", "NEEDS": "hq2v9mXbT0c7eUKwN4Rd1234"}


class Place(NamedTuple):
    """A `keyman dev` with a user who has a key for each service, and tokens of several callers."""

    home: Path
    port: int
    provider: Provider
    user: httpx.Client
    tokens: dict[str, str]

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.port + 2}"

    def variables(self) -> dict[str, str]:
        own = {"GATEWAY": self.gateway, "PROVIDER": self.provider.url, "USER_ID": "1", "CONCURRENCY": str(CONCURRENCY)}
        return {**own, **self.tokens, "KEYMAN_APP_TOKEN": self.tokens["TOKEN"]}


@contextmanager
def live(directory: Path) -> Iterator[Place]:
    home, services, port = directory / "home", directory / "services.json", free_port()
    with provider() as stub:
        services.write_text(stub.services(DOWN, NEEDS))
        settings = {"KEYMAN_SERVICES_FILE": str(services), "KEYMAN_GATEWAY_CONCURRENCY": str(CONCURRENCY)}
        with dev(home, port, env=environment(**settings)):
            ada = sign_up(f"http://127.0.0.1:{port}", "ada@example.com")
            for service, value in VALUES.items():
                assert ada.post("/api/keys", json={"service": service, "api_key": value}).status_code == 201
            personal = ada.post("/api/tokens", json={"name": "laptop", "scopes": ["keys:use"]}).json()
            tokens = {name: application(home, name.lower()) for name in ("TOKEN", "BUSY", "REVOKED")}
            assert run_keyman("app", "revoke", "revoked", "--home", home).code == 0
            yield Place(home, port, stub, ada, {**tokens, "PERSONAL": personal["token"]})


def application(home: Path, name: str) -> str:
    services = [word for service in VALUES for word in ("--service", service)]
    return run_keyman("app", "create", name, *services, "--home", home).out.strip()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with live(tmp_path_factory.mktemp("sdks")) as running:
        yield running


class Results(NamedTuple):
    """What each scene of a program returned or raised, and what the provider was asked meanwhile."""

    scenes: dict[str, Any]
    asked: list[str]

    def raised(self, scene: str) -> tuple[str, int | None, str | None]:
        fault = self.scenes[scene]
        return fault["raised"], fault["status"], fault["error"]


@pytest.fixture(scope="module")
def results(place: Place) -> Any:
    """A function that runs the program of an SDK, once."""

    @cache
    def run(sdk: str) -> Results:
        require("sdks", sdks_absence())
        before = len(place.provider.asked)
        programs = [program.replace(":8002", f":{place.port + 2}") for program in examples(sdk)]
        scenes = play(sdk, {**place.variables(), "EXAMPLES": json.dumps(programs)})
        return Results(scenes, place.provider.asked[before:])

    return run


DIALECTS = ("openai", "anthropic", "google_genai")
SDKS = (*DIALECTS, "litellm")


@pytest.mark.slow
@pytest.mark.parametrize("sdk", DIALECTS)
def test_an_sdk_needs_a_base_url_and_a_token(results: Any, sdk: str) -> None:
    scenes = results(sdk).scenes
    assert scenes["chat"] == "Hi"
    assert scenes["stream"] == ["Good", " day"]  # the provider sent the second when the first had been read
    assert scenes["asyncio"] == ["Hi", ["Good", " day"]]
    assert scenes["a header of one request"] in ("gpt-x", "claude-x", "gemini-x")


@pytest.mark.slow
def test_openai_reaches_other_routes_and_azure(results: Any) -> None:
    scenes, asked = results("openai")
    assert (scenes["responses"], scenes["models"]) == ("Hi", ["gpt-x"])
    assert (scenes["azure"], scenes["azure v1"]) == ("Hi", "Hi")
    assert "POST /AZURE_OPENAI/openai/deployments/gpt-x/chat/completions?api-version=2026-01-01" in asked
    assert "POST /AZURE_OPENAI/openai/v1/chat/completions" in asked


@pytest.mark.slow
@pytest.mark.parametrize("model", ["openai/gpt-x", "anthropic/claude-x", "gemini/gemini-x"])
def test_litellm_speaks_three_formats(results: Any, model: str) -> None:
    scenes = results("litellm").scenes
    assert scenes[f"chat: {model}"] == "Hi"
    assert scenes[f"stream: {model}"] == ["Good", " day"]
    assert scenes[f"asyncio: {model}"] == ["Hi", ["Good", " day"]]
    assert (
        "There is no such key for this application. The audit log says why." in scenes[f"unknown user: {model}"]["text"]
    )


ERRORS = {
    "no user": "Keyman-User must name the user, or Keyman-Subject or Keyman-Key instead: exactly one of them.",
    "unknown user": "There is no such key for this application. The audit log says why.",
    "path": "The gateway does not forward this method and path. Nothing was sent.",
    "too many": "Too many requests of this caller are under way. Wait until one has ended.",
    "revoked": "This is the token of neither an application nor a user, or it has expired or been revoked.",
    "a key in place of a token": "This is not a token of keyman. Where the SDK takes an API key, give it the token of",
    "provider down": "The provider cannot be reached: its name, its address or its certificate is wrong",
    "setting missing": "This key cannot be used here: its setting region is missing or not allowed",
}
"""By scene: what every SDK shows of it."""


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_the_exceptions_of_an_sdk_show_the_sentence_of_keyman(results: Any, sdk: str) -> None:
    scenes = results(sdk).scenes
    renamed = {"unknown user": "unknown user: openai/gpt-x"} if sdk == "litellm" else {}
    for scene, sentence in ERRORS.items():
        assert sentence in scenes[renamed.get(scene, scene)]["text"], scene


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_the_types_of_the_exceptions_are_those_of_the_guide(results: Any, sdk: str) -> None:
    column = {"openai": 2, "anthropic": 2, "google_genai": 3, "litellm": 4}[sdk]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table("| `Keyman-Error` |")]
    documented = {row[0]: (row[column], int(row[1])) for row in rows}
    own = results(sdk)
    seen = {}
    for scene in ERRORS:
        name = "unknown user: openai/gpt-x" if (sdk, scene) == ("litellm", "unknown user") else scene
        raised, status, error = own.raised(name)
        seen[error] = (raised, status)
    assert seen == documented


def table(heading: str, text: str = GUIDE) -> list[str]:
    """The rows of the table of a document whose first line begins with `heading`."""
    lines = text[text.index(heading) :].splitlines()
    return lines[2 : next(number for number, line in enumerate(lines) if not line.startswith("|"))]


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_an_error_of_the_provider_is_shown_without_the_key_and_without_a_name_of_keyman(results: Any, sdk: str) -> None:
    own = results(sdk)
    assert own.raised("refused by the provider")[1:] == (401, None)
    shown = own.scenes["refused by the provider"]["text"]
    assert "Incorrect API key provided" in shown
    assert not [value for value in KEYS.values() if value in shown]  # the provider repeated it


@pytest.mark.slow
def test_some_sdks_send_a_request_again(results: Any) -> None:
    """The guide says so, because each time is an entry of the audit log."""
    times = {sdk: results(sdk).asked.count("overloaded") for sdk in DIALECTS}
    assert times == {"openai": 3, "anthropic": 3, "google_genai": 1}


@pytest.mark.slow
@pytest.mark.parametrize("sdk", SDKS)
def test_environment_variables_are_enough(results: Any, sdk: str) -> None:
    scenes = {name: result for name, result in results(sdk).scenes.items() if name.startswith("environment")}
    assert scenes
    assert set(scenes.values()) == {"Hi"}


def test_every_variable_and_argument_of_the_guide_is_tried() -> None:
    programs = "".join(path.read_text() for path in PROGRAMS.glob("with_*.py"))
    variables = {
        name for line in table("| SDK | base URL | token |") for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", line)
    }
    assert len(variables) > 10
    assert {name for name in variables if name not in programs} == set()
    arguments = {
        name for line in table("| SDK | base URL | headers") for name in re.findall(r"\b[a-z]+_[a-z]+\b(?==)", line)
    }
    assert len(arguments) > 5
    assert {name for name in arguments if name not in programs} == set()


@pytest.mark.slow
def test_boto3_works_behind_tls_with_models_that_have_no_colon(results: Any) -> None:
    scenes, asked = results("boto3")
    assert "Bearer authorization requires an HTTPS endpoint" in scenes["over http"]["text"]
    assert scenes["without a colon"] == "Hi"
    assert "An error occurred (400)" in scenes["with a colon"]["text"]
    assert asked == ["POST /AWS_BEDROCK/model/amazon.nova-x/converse"]


@pytest.mark.slow
def test_curl_talks_to_bedrock_as_the_guide_says(place: Place) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    (block,) = (block for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if "aws-bedrock" in block)
    out = curl(block, place)
    assert json.loads(out)["output"]["message"]["content"] == [{"text": "Hi"}]
    assert place.provider.asked[-1] == "POST /AWS_BEDROCK/model/amazon.nova-lite-v1:0/converse"


def curl(block: str, place: Place) -> str:
    done = subprocess.run(
        ["bash", "-eu", "-c", block.replace(":8002", f":{place.port + 2}")],
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(KEYMAN_APP_TOKEN=place.tokens["TOKEN"]),
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


STREAM = """curl -sSN http://127.0.0.1:8002/openai/v1/chat/completions -H "Authorization: Bearer $KEYMAN_APP_TOKEN" \\
  -H "Keyman-User: 1" --json '{"model": "gpt-x", "stream": true, "messages": []}' |
while read -r line; do
  echo "$line"
  case $line in *Good*) curl -sS -o /dev/null -d "" PROVIDER/has-read;; esac
done"""


@pytest.mark.slow
def test_curl_gets_each_event_when_the_provider_sent_it(place: Place) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on the PATH")
    events = [line for line in curl(STREAM.replace("PROVIDER", place.provider.url), place).splitlines() if line]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-1]]
    assert [delta.get("content") for delta in deltas] == ["", "Good", " day", None]
    assert events[-1] == "data: [DONE]"


@pytest.mark.slow
@pytest.mark.parametrize(("sdk", "count"), [("openai", 2), ("anthropic", 1), ("google_genai", 1), ("litellm", 1)])
def test_the_examples_with_an_sdk_work_as_printed(results: Any, sdk: str, count: int) -> None:
    printed = results(sdk).scenes["examples"]
    assert printed[:count] == ["Hi\n"] * count
    assert all(f"```\n{error}```" in GUIDE for error in printed[count:])


@pytest.mark.slow
def test_the_example_of_an_error_prints_its_name_and_its_sentence(results: Any) -> None:
    *_, error = results("openai").scenes["examples"]
    assert error.startswith("not-found\n")


RECIPES = ROOT / "docs" / "examples" / "sdks"
"""SDKs that get the key from the resolver, and send it to the provider themselves."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with_openai.py", "with_anthropic.py"])
def test_a_recipe_gives_the_sdk_a_key_for_each_request(place: Place, name: str) -> None:
    service = name.removeprefix("with_").removesuffix(".py").upper()
    before = len(place.provider.asked)
    done = recipe(place, name)
    missing = f"Add an {'OpenAI' if service == 'OPENAI' else 'Anthropic'} key in Settings, then try again."
    for_one = ["Hi"] if service == "OPENAI" else []
    assert done.stdout.splitlines() == ["Hi", missing, *for_one, "['Hi', 'Hi']"], done.stderr
    assert "deprecated" not in done.stderr, done.stderr  # as an SDK says of an old model
    path = "/chat/completions" if service == "OPENAI" else "/messages"
    assert place.provider.asked[before:] == [f"POST /{service}/v1{path}"] * (3 + len(for_one))
    assert KEYS[service] not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with_openai.py", "with_anthropic.py"])
def test_a_recipe_reports_a_key_that_the_provider_refuses(place: Place, name: str) -> None:
    service = name.removeprefix("with_").removesuffix(".py").upper()
    value = f"{KEYS[service][:12]}-another-value"
    made = place.user.post("/api/keys", json={"service": service, "api_key": value}).json()
    try:
        done = recipe(place, name)
        assert "does not accept your key. Replace it in Settings." in done.stdout.splitlines()[0], done.stderr
        check = place.user.get(f"/api/keys/{made['id']}").json()["check"]
        assert (check["verdict"], check["by"]) == ("refused", "token")
    finally:
        assert place.user.delete(f"/api/keys/{made['id']}").status_code == 204


def recipe(place: Place, name: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe in the environment of the SDKs, which finds keyman's client in the tree."""
    require("sdks", sdks_absence())
    variables = {
        "PYTHONPATH": str(ROOT),
        "KEYMAN_RESOLVER_URL": f"http://127.0.0.1:{place.port + 1}",
        "KEYMAN_APP_TOKEN": place.tokens["TOKEN"],
        "OPENAI_BASE_URL": f"{place.provider.url}/OPENAI/v1",
        "ANTHROPIC_BASE_URL": f"{place.provider.url}/ANTHROPIC",
    }
    return subprocess.run(
        [PYTHON, RECIPES / name],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def examples(sdk: str) -> list[str]:
    """The Python programs of the README and the guide that use an SDK, as they are printed."""
    programs = [program for text in (README, GUIDE) for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    package = sdk.partition("_")[0]
    return [program for program in programs if re.search(rf"^(?:from|import) {package}\b", program, re.MULTILINE)]


def test_every_example_with_an_sdk_is_run() -> None:
    assert [len(examples(sdk)) for sdk in (*SDKS, "boto3")] == [3, 1, 1, 1, 0]
