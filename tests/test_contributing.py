"""What contributors read and use: CONTRIBUTING.md, the workflow, the templates, the development container."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
WORKFLOWS = sorted((GITHUB / "workflows").iterdir())
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")

PATH = re.compile(r"\.?[\w.-]+/[\w./-]*|\.?[\w-]+\.(?:md|py|toml|baseline)|\.editorconfig")
MADE = (".venv",)
"""Where `make` puts what git ignores."""


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_path_that_contributing_names_exists() -> None:
    named = {code for code in re.findall(r"`([^`\n]+)`", CONTRIBUTING) if PATH.fullmatch(code)}
    assert len(named) > 40
    # `tables.py` is said of several packages; a bare name may be anywhere below keyman/.
    missing = [
        name
        for name in named
        if not name.startswith(MADE) and not (ROOT / name).exists() and not any((ROOT / "keyman").rglob(name))
    ]
    assert not missing


def test_every_link_of_contributing_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", CONTRIBUTING)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_a_name_that_contributing_places_in_a_file_is_there() -> None:
    placed = re.findall(r"`([A-Z]+)` in `([^`]+)`", CONTRIBUTING)
    assert {name for name, _ in placed} == {"COMMANDS", "SHIPPED"}
    for name, path in placed:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


def test_contributing_has_a_place_for_each_package() -> None:
    packages = {path.parent.name for path in (ROOT / "keyman").glob("*/__init__.py")}
    assert packages
    assert {name for name in packages if f"`keyman/{name}/" not in CONTRIBUTING} == set()


def test_every_command_that_contributing_names_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?!/)", " ".join(re.findall(r"`([^`\n]+)`", CONTRIBUTING))))
    assert {"dev", "test", "test-fast", "attack", "sdks", "lint", "types", "format", "lock"} == named
    assert named <= makefile_targets()


def test_the_good_example_of_a_commit_passes_the_hook() -> None:
    (example,) = re.findall(r"^Good:\n\n```\n(.*?)```", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    (hook,) = (
        hook
        for repository in loaded(ROOT / ".pre-commit-config.yaml")["repos"]
        for hook in repository["hooks"]
        if hook["id"] == "subject"
    )
    assert re.search(hook["entry"], example, re.MULTILINE | re.DOTALL) is None


def test_no_address_is_invented() -> None:
    """There is no page, mailbox or owner of the project that could be named; the advisory needs none."""
    texts = [CONTRIBUTING, (ROOT / "SECURITY.md").read_text(), (ROOT / "docs" / "dev" / "release.md").read_text()]
    texts += [path.read_text() for path in GITHUB.rglob("*") if path.is_file()]
    for text in texts:
        assert re.findall(r"https?://(?!127\.0\.0\.1)[^\s>)`]+|\b[\w.]+@[\w-]+\.\w+", text) == []
    assert not [folder for folder in (ROOT, GITHUB, ROOT / "docs") if (folder / "CODEOWNERS").exists()]
    assert "private security advisory" in texts[0]
    assert "private security advisory" in texts[1]


# --- .github


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_pins_its_actions(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_the_workflow_calls_the_script_and_lets_it_end_by_itself() -> None:
    (path,) = WORKFLOWS
    (job,) = loaded(path)["jobs"].values()
    assert job["steps"][-1]["run"].rstrip("'\n").endswith("exec bash .ci/run")
    (budget,) = re.findall(r"^readonly BUDGET=(\d+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert int(budget) <= (job["timeout-minutes"] - 5) * 60


def test_dependabot_looks_where_something_is_pinned() -> None:
    updates = loaded(GITHUB / "dependabot.yml")["updates"]
    assert {(update["package-ecosystem"], update["directory"]) for update in updates} == {
        ("pip", "/requirements"),
        ("github-actions", "/"),
        ("npm", "/tests/support/oidc-provider"),
        ("npm", "/tests/support/openapi-tools"),
        ("docker", "/docker"),
        ("docker-compose", "/docker"),
    }
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates)
    for update in updates:
        assert (ROOT / update["directory"].lstrip("/")).is_dir()
    assert (ROOT / "docker" / "Dockerfile").is_file()
    assert (ROOT / "docker" / "compose.yaml").is_file()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_that_no_secret_is_in_it(path: Path) -> None:
    form = loaded(path)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form.keys() >= {"name", "description", "body"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert len({field["attributes"]["label"] for field in fields}) == len(fields)
    promises = [
        option for field in fields if field["type"] == "checkboxes" for option in field["attributes"]["options"]
    ]
    assert [option for option in promises if "no real API key" in option["label"] and option["required"]]


def test_nobody_passes_the_forms_and_a_weakness_is_sent_elsewhere() -> None:
    assert loaded(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}
    assert "private security advisory" in (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text()
    assert "SECURITY.md" in (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text()


# --- the development container


def test_the_container_has_the_python_of_the_image_and_sets_up_what_the_tests_need() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert image.replace("-slim", "") == container["image"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={container['image'].partition(':')[2].partition('-')[0]}"
    assert container["postCreateCommand"] == "make .venv/test.stamp"
    assert container["forwardPorts"] == [8000, 8001, 8002]
    assert [str(port) for port in container["forwardPorts"]] == list(container["portsAttributes"])


def test_editors_leave_the_files_of_other_projects_alone() -> None:
    (directory,) = re.findall(r"^\[(keyman/.*)/\*\*\]", (ROOT / ".editorconfig").read_text(), re.MULTILINE)
    assert (ROOT / directory / "SHA256SUMS").is_file()
