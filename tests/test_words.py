"""Words that keyman's texts do not use, with what to write instead. See "Plain English" in CONTRIBUTING.md.

To check another kind of text, make (file, text) pairs of it and give them to `banned`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from tokenize import COMMENT, generate_tokens

import pytest

ROOT = Path(__file__).parents[1]

INSTEAD = {
    "whoever": "anyone who",
    "anew": "again",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "mending": "fixing",
    "told": "say who knows or does what",
    "story": "example, steps",
    "stories": "examples",
    "alone": "only",
    "trail": "audit log",
    "trails": "audit logs",
}
WORD = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)

ALLOWED = {
    r"\btrail\.(?:prune|carry)\b": "names of actions that are stored: the hashes of the audit log cover them",
    r"\bleav(?:e|es|ing)(?:\s+\S+){1,3}\s+alone\b": "an idiom, which does not mean only",
}
"""Phrases in which a word of INSTEAD may stand, with the reason."""


def banned(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Returns `file:line: word (what to write)` for each use in (file, text) pairs of a word that is not allowed."""
    return [f"{file}:{line}: {word} (write: {INSTEAD[word.lower()]})" for file, line, word in _uses(texts)]


def _uses(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, int, str]]:
    for file, text in texts:
        allowed = [found.span() for phrase in ALLOWED for found in re.finditer(phrase, text, re.IGNORECASE)]
        for found in WORD.finditer(text):
            if not any(start <= found.start() and found.end() <= end for start, end in allowed):
                yield file, text.count("\n", 0, found.start()) + 1, found[0]


def documents() -> Iterator[tuple[str, str]]:
    """Every document, and every example that a document links to. CHANGELOG.md is left out: it speaks of the past."""
    paths = [path for pattern in ("*.md", "docs/**/*.md", "docs/**/*.py") for path in ROOT.glob(pattern)]
    paths += [ROOT / "tests" / "README.md", ROOT / "vault-policies" / "README.md"]
    for path in sorted(paths):
        if path.name != "CHANGELOG.md":
            yield str(path.relative_to(ROOT)), path.read_text()


@cache
def sources(directory: str, *, literals: bool = False) -> tuple[tuple[str, str], ...]:
    """The docstrings, comments and messages of assertions in the Python files of a directory, on their own lines.

    With `literals`, every string literal is added: the texts of errors, commands and pages. Each directory is
    read once, because that takes seconds.
    """
    return tuple(_texts(directory, literals=literals))


_STRING_OR_COMMENT = re.compile(
    r""""{3}(?:\\.|[^\\])*?"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>#[^\n]*)""",
    re.DOTALL,
)
"""Python's tokenizer takes twenty times as long."""


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Return the comments of a Python file, each with the number of its line."""
    number, position = 1, 0
    for found in _STRING_OR_COMMENT.finditer(source):
        if comment := found["comment"]:
            number += source.count("\n", position, found.start())
            position = found.start()
            yield number, comment


def _texts(directory: str, *, literals: bool) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / directory).rglob("*.py")):
        source = path.read_text()
        lines = [""] * (source.count("\n") + 1)
        for number, comment in _comments(source):
            lines[number - 1] += comment
        for node in ast.walk(ast.parse(source)):
            said: ast.AST | None = node if literals else None
            if not literals:
                said = node.value if isinstance(node, ast.Expr) else node.msg if isinstance(node, ast.Assert) else None
            for part in ast.walk(said) if isinstance(said, ast.Constant | ast.JoinedStr) else ():
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    for number, line in enumerate(part.value.splitlines(), part.lineno - 1):
                        lines[min(number, len(lines) - 1)] += f" {line}"
        yield str(path.relative_to(ROOT)), "\n".join(lines)


def test_comments_are_those_of_pythons_tokenizer() -> None:
    for file in (Path(__file__), ROOT / "keyman" / "secret.py"):  # this one has quotes and "#" in strings
        source = file.read_text()
        tokens = generate_tokens(StringIO(source).readline)
        assert list(_comments(source)) == [(each.start[0], each.string) for each in tokens if each.type == COMMENT]


CODE = ("keyman", "docker", "bench", ".ci")

OTHER_FILES = (
    "keyman/planes/management/web/templates/*.html",
    "keyman/planes/management/web/locales/*/*.po",
    "keyman/planes/management/web/static/*.*",
    "docker/**/*",
    "vault-policies/**/*",
    ".ci/run",
    ".devcontainer/*",
    ".editorconfig",
    ".github/**/*",
    ".pre-commit-config.yaml",
    "Makefile",
    "pyproject.toml",
)


def code() -> Iterator[tuple[str, str]]:
    """The texts in keyman's code and in the files beside it: templates, catalogues, policies, images and scripts."""
    for directory in CODE:
        yield from sources(directory, literals=True)
    for path in sorted({path for pattern in OTHER_FILES for path in ROOT.glob(pattern)}):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md"):
            yield str(path.relative_to(ROOT)), path.read_text()


def test_no_document_uses_a_banned_word() -> None:
    found = dict(documents())
    assert len(found) > 20
    assert banned(found.items()) == []


def test_no_code_uses_a_banned_word_in_a_text() -> None:
    found = dict(code())
    assert len(found) > 150
    assert "Sealing: turns a plaintext and its context into a ciphertext." in found["keyman/vault/cipher.py"]
    assert "One field is invalid." in found["keyman/errors.py"]
    assert banned(found.items()) == []


def test_no_test_uses_a_banned_word_in_a_docstring_a_comment_or_a_message() -> None:
    found = dict(sources("tests"))
    assert len(found) > 150
    assert "Words that keyman's texts do not use" in found["tests/test_words.py"]
    assert banned(found.items()) == []


@pytest.mark.parametrize("word", INSTEAD)
def test_a_banned_word_is_found_with_its_line_and_what_to_write(word: str) -> None:
    text = f"The first line.\nThe second one has {word.upper()}, and so on."
    assert banned([("a.md", text)]) == [f"a.md:2: {word.upper()} (write: {INSTEAD[word]})"]


@pytest.mark.parametrize(
    "text",
    [
        "The action `trail.prune` says up to where.",
        "A use by an application leaves the ETag\nalone.",
        "trailing white space, recommend, storyboard, standalone, toldya",
        "asks_anew = the_trail_of(tests)",
    ],
)
def test_what_is_allowed_is_not_found(text: str) -> None:
    assert banned([("a.md", text)]) == []
