"""Conventions of the tests themselves, and of what comments refer to."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.test_words import sources

TESTS = Path(__file__).parent

ABSENT = re.compile(r"\bthe contract\b|\bsection \d|\bdesign document\b|\bfeature design\b|\.\./", re.IGNORECASE)
"""How a text cites a document that is not in the repository. Cite a page below docs/ instead."""

OVERRIDES: dict[str, str] = {}
"""Fixtures that a folder overrides on purpose, as pytest allows, with the reason."""


def _fixtures(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for decorator in node.decorator_list:
            call = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(call).endswith("fixture"):
                given = decorator.keywords if isinstance(decorator, ast.Call) else []
                names = [ast.literal_eval(keyword.value) for keyword in given if keyword.arg == "name"]
                yield from names or [node.name]


def test_a_fixture_name_has_one_definition() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        for name in _fixtures(ast.parse(path.read_text())):
            found[name].append(str(path.relative_to(TESTS)))
    assert len(found) > 100
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in OVERRIDES} == {}


def test_a_helper_for_all_tests_has_one_definition() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((TESTS / "support").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                found[node.name].append(path.name)
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_the_map_names_every_folder_and_every_helper() -> None:
    text = (TESTS / "README.md").read_text()
    folders = {path.parent.name for path in TESTS.glob("*/__init__.py")}
    helpers = {path.name for path in (TESTS / "support").glob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(folders) if f"`{name}/" not in text] == []
    assert [name for name in sorted(helpers) if f"{name}`" not in text] == []


def test_no_source_cites_a_document_that_is_not_in_the_repository() -> None:
    for directory in ("keyman", "tests"):
        for file, text in sources(directory):
            cited = [found[0] for found in ABSENT.finditer(text)]
            assert file == "tests/test_conventions.py" or cited == [], file


def test_every_document_that_a_source_cites_exists() -> None:
    for directory in ("keyman", "tests"):
        for file, text in sources(directory):
            for cited in re.findall(r"(?<![\w/.-])(?:docs|tests)/[\w./-]*\w", text):
                assert (TESTS.parent / cited).exists() or (TESTS.parent / f"{cited}.py").exists(), (file, cited)
