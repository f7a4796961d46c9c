"""The documents name only what exists: links, headings, files, modules, `make` targets, commands and options."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from keyman.audit.entries import Action, Reason
from keyman.audit.tables import audit_log
from keyman.cli import COMMANDS, cli
from keyman.client import errors as client_errors
from keyman.errors import VaultReason
from keyman.http.problems import KINDS
from keyman.identity.tokens import Scope
from keyman.planes.management.web.activity import ACTIONS
from keyman.providers.services import SHIPPED
from keyman.storage.types import metadata
from tests.support.sources import tree_of

ROOT = Path(__file__).parents[1]

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md", "tests/README.md", "vault-policies/README.md")
    for path in sorted(ROOT.glob(pattern))
}
PRESENT = {name: text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md"}
"""Without the changelog, which may name what is no longer there."""

VARIABLE = re.compile(r"\bKEYMAN_[A-Z_]+[A-Z]\b")
SOURCES = [*(ROOT / "keyman").rglob("*.py"), ROOT / "docker" / "compose.yaml", *(ROOT / "tests").rglob("*.py")]

FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]+))?\)|(?:src|srcset)=\"([^\"]+)\"")


def prose(text: str) -> str:
    return FENCED.sub("", text)


def code(text: str) -> Iterator[str]:
    """The blocks of code, without the lines around them and without comments, and what stands between backticks."""
    for block in FENCED.findall(text):
        yield re.sub(r"(?:^|\s)# .*", "", block.split("\n", 1)[1].rsplit("\n", 1)[0])
    yield from re.findall(r"`([^`\n]+)`", prose(text))


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a document get, as GitHub makes them."""
    seen = Counter[str]()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(text), re.MULTILINE):
        words = re.sub(r"\]\([^)]*\)", "", heading).replace("[", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def test_an_anchor_is_what_a_browser_gets() -> None:
    headings = "# Keys\n\n## `POST /v1/resolve`\n\n```sh\n# no heading\n```\n\n## A wrapped secret ID\n\n## Keys\n"
    assert anchors(headings) == {"keys", "post-v1resolve", "a-wrapped-secret-id", "keys-1"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(name: str) -> None:
    here = (ROOT / name).parent
    missing = []
    for target, anchor, image in LINK.findall(prose(DOCUMENTS[name])):
        path = (here / (target or image)).resolve() if target or image else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            missing.append(f"{target or image}#{anchor}")
    assert missing == []


def test_every_document_is_reached_from_the_readme() -> None:
    reached, ahead = set[str](), ["README.md"]
    while ahead:
        name = ahead.pop()
        if name in reached or name not in DOCUMENTS:
            continue
        reached.add(name)
        for target, _, _ in LINK.findall(DOCUMENTS[name]):
            ahead.append(str(((ROOT / name).parent / target).resolve().relative_to(ROOT)) if target else name)
    assert {name for name in DOCUMENTS if not name.startswith(".github/")} <= reached


ROOTED = re.compile(r"(?:keyman|tests|docs|docker|bench|vault-policies|requirements|\.ci|\.github)/[\w./-]+")
"""A path from the root of the repository."""

ELSEWHERE = {
    "dist/": "a build makes it",
    "docker/.env": "an operator makes it",
    "keyman/vault/policies/": "the place of vault-policies/ in a wheel",
}

MODULE = re.compile(r"(?:\w+/)*\w+\.py|[a-z_]+/")
"""A module or a package, from the root, below `keyman/` or, as `tables.py`, in several packages."""


@pytest.mark.parametrize("name", PRESENT)
def test_every_path_that_a_document_names_exists(name: str) -> None:
    named = {
        path.rstrip(".") for text in code(PRESENT[name]) for path in re.findall(rf"(?<![\w/.:-]){ROOTED.pattern}", text)
    }
    modules = {text for text in code(PRESENT[name]) if MODULE.fullmatch(text)}
    beside = ROOT / name
    assert [path for path in named - ELSEWHERE.keys() if not (ROOT / path).exists()] == []
    assert [module for module in modules - named - ELSEWHERE.keys() if not _is_there(module, beside.parent)] == []


def _is_there(module: str, beside: Path) -> bool:
    places = (ROOT, ROOT / "keyman", ROOT / "keyman" / "planes" / "management", beside)
    return (
        any((place / module).exists() for place in places)
        or any((ROOT / "keyman").rglob(module))
        or any(beside.rglob(module))
    )


@pytest.mark.parametrize("name", PRESENT)
def test_every_make_target_that_a_document_names_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for text in code(PRESENT[name])
        for target in re.findall(r"(?:^|&& |; )make ([a-z][a-z-]*)\b(?!/)", text, re.MULTILINE)
    }
    assert named <= targets


@pytest.mark.parametrize("name", PRESENT)
def test_every_script_that_a_document_runs_exists(name: str) -> None:
    for module in re.findall(r"-m (bench\.\w+)", DOCUMENTS[name]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@cache
def variables_read() -> frozenset[str]:
    found = (variable for path in SOURCES for variable in VARIABLE.findall(path.read_text()))
    return frozenset(variable.removesuffix("_FILE") for variable in found)


@pytest.mark.parametrize("name", PRESENT)
def test_every_variable_that_a_document_names_is_read_somewhere(name: str) -> None:
    assert len(variables_read()) > 20
    assert {variable.removesuffix("_FILE") for variable in VARIABLE.findall(DOCUMENTS[name])} <= variables_read()


def test_every_document_that_a_message_names_exists_with_its_heading() -> None:
    """Messages of keyman send an operator to a document."""
    named = set[str]()
    for path in (ROOT / "keyman").rglob("*.py"):
        text = path.read_text()
        named |= set(re.findall(r"\bdocs/[\w/-]+\.md\b", text))
        for heading, document in re.findall(r'see \\?"([^"\\]+)\\?" in (docs/[\w/-]+\.md)', text):
            assert re.search(rf"^#+ {re.escape(heading)}$", DOCUMENTS[document], re.MULTILINE), heading
    assert {"docs/guide/operator.md", "docs/reference/configuration.md"} <= named <= DOCUMENTS.keys()


@cache
def messages() -> str:
    """Every text of keyman's code, a line each; `…` takes the place of a value."""
    lines = []
    for path in (ROOT / "keyman").rglob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)


QUOTED = {
    "docs/reference/configuration.md": r"^\| … ([^|…]+?)(?: …)? \|",
    "docs/reference/api.md": r'"(?:title|detail|message)": "([^"…]+)"',
    "docs/reference/cli.md": r"^(?:warning  \S+ +| +-> )(.+)$",
    "docs/guide/operator.md": r"`(?:key-versions|vault-key)`: ([^|.…;]+?)(?: …| \||\.)",
}
"""What a document quotes of keyman's messages: the first group of an expression."""


@pytest.mark.parametrize("name", QUOTED)
def test_a_message_that_a_document_quotes_is_one_of_keymans(name: str) -> None:
    quoted = re.findall(QUOTED[name], DOCUMENTS[name], re.MULTILINE)
    assert quoted
    assert [text for text in quoted if text not in messages() and text not in PARAPHRASED] == []


PARAPHRASED = {"behind"}
"""Words of a table that stand for a whole line."""


@pytest.mark.parametrize("name", PRESENT)
def test_no_example_stores_a_mask_as_a_key(name: str) -> None:
    """keyman refuses it, so anyone who copies the line gets an error."""
    assert [block for block in code(PRESENT[name]) if re.search(r'"api_key": ?"[^"]*(?:\.\.\.|…)', block)] == []


def test_the_guide_for_users_names_what_the_pages_show() -> None:
    web = ROOT / "keyman" / "planes" / "management" / "web"
    shown = set(re.findall(r'_\("([^"]+)"\)', "".join(path.read_text() for path in web.rglob("*.html"))))
    shown |= {*ACTIONS.values()}
    guide = DOCUMENTS["docs/guide/user.md"]
    named = {word for bold in re.findall(r"\*\*([^*]+)\*\*", guide) for word in bold.split(" → ")}
    named |= set(re.findall(r"^\| ([A-Z]\w+) \|", guide, re.MULTILINE))  # columns and states
    named |= set(re.findall(r'such as "(Key [^"]+)"', guide))
    assert len(named) > 15
    assert named <= shown


# --- commands


def leaves() -> dict[str, click.Command]:
    """Every command that does something, by its words, such as `keyman app create`."""
    context = click.Context(cli)
    found = dict[str, click.Command]()
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"keyman {name} {one}": leaf for one, leaf in command.commands.items()}
        else:
            found[f"keyman {name}"] = command
    return found


LEAVES = leaves()
GROUPS = {words.rpartition(" ")[0] for words in LEAVES if words.count(" ") == 2}
CLI = DOCUMENTS["docs/reference/cli.md"]


def sections(text: str) -> dict[str, str]:
    """What stands below each heading of a command in docs/reference/cli.md."""
    parts = re.split(r"^#{2,3} +(.+?) *$", text, flags=re.MULTILINE)[1:]
    return {
        heading.strip("`"): body
        for heading, body in zip(parts[::2], parts[1::2], strict=True)
        if heading.startswith("`")
    }


def test_the_reference_has_a_section_for_every_command_and_no_other() -> None:
    assert sections(CLI).keys() == LEAVES.keys()


@pytest.mark.parametrize("words", LEAVES)
def test_the_reference_has_every_option_of_a_command_and_an_example(words: str) -> None:
    section = sections(CLI)[words]
    options = {option for param in LEAVES[words].params if isinstance(param, click.Option) for option in param.opts}
    described = set(re.findall(r"--[a-z][a-z-]*", prose(section)))
    assert described == options, "as keyman says"
    assert any(words in block for block in FENCED.findall(section)), "an example"


@pytest.mark.parametrize("name", PRESENT)
def test_every_command_that_a_document_names_exists(name: str) -> None:
    wrong = []
    for text in code(PRESENT[name]):
        for words in re.findall(
            r"(?:^|[ (/])keyman ((?:[a-z]+(?:-[a-z]+)?)(?: [a-z]+(?:-[a-z]+)?)?)\b(?!\.)", text, re.MULTILINE
        ):
            first, _, _ = words.partition(" ")
            known = {f"keyman {first}", f"keyman {words}"} & {*LEAVES, *GROUPS}
            if not known or (" " in words and f"keyman {first}" in GROUPS and f"keyman {words}" not in LEAVES):
                wrong.append(words)
    assert wrong == []


# --- tables


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of every table below a heading, without backticks."""
    body = re.split(rf"^#+ {re.escape(heading)}$", DOCUMENTS[name], maxsplit=1, flags=re.MULTILINE)[1]
    lines = re.split(r"^#", body, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| ")]
    return cells[1:]


def names(name: str, heading: str, column: int = 0) -> list[str]:
    """What stands in backticks in one column."""
    return [word for row in rows(name, heading) for word in re.findall(r"`([^`]+)`", row[column])]


def test_the_table_of_services_is_the_catalogue() -> None:
    shown = [
        [re.findall(r"`([^`]+)`", cell) or [cell] for cell in row]
        for row in rows("docs/reference/api.md", "The catalogue")
    ]
    assert shown == [[[one.service], [one.name], [*one.prefixes] or [""], [*one.exclusive] or [""]] for one in SHIPPED]


@pytest.mark.parametrize("name", ["docs/reference/api.md", "docs/guide/user.md"])
def test_the_tables_of_scopes_have_every_scope(name: str) -> None:
    heading = "Scopes" if "api" in name else "Access tokens for scripts"
    assert names(name, heading) == [scope.value for scope in Scope]


def test_the_table_of_problems_has_every_type_with_its_status() -> None:
    shown = {row[0].strip("`"): row[1] for row in rows("docs/reference/api.md", "Errors")}
    assert shown == {slug: str(kind.status) for slug, kind in KINDS.items()}


def test_the_tables_of_the_audit_log_have_every_column_action_and_reason() -> None:
    page = "docs/reference/audit-log.md"
    assert sorted(names(page, "Columns")) == sorted(column.name for column in audit_log.columns)
    assert sorted(names(page, "Actions")) == sorted(action.value for action in Action)
    assert sorted(names(page, "Reasons")) == sorted({*Reason, *VaultReason})


def test_the_table_of_the_clients_errors_has_every_error() -> None:
    known = {
        name
        for name, kind in vars(client_errors).items()
        if isinstance(kind, type) and issubclass(kind, client_errors.ClientError)
    }
    assert {"ClientError", *re.findall(r"`([A-Z]\w+)`", str(rows("docs/reference/client.md", "Errors")))} >= known


def test_the_table_of_tables_has_every_table() -> None:
    assert names("docs/dev/architecture.md", "Tables") == [
        table for table in names("docs/dev/architecture.md", "Tables") if table in metadata.tables
    ]
    assert set(names("docs/dev/architecture.md", "Tables")) == set(metadata.tables)


def test_every_setting_is_in_a_table_of_variables() -> None:
    read = set[str]()
    for path in (ROOT / "keyman" / "config").glob("*.py"):
        read |= set(VARIABLE.findall(path.read_text()))
    page = DOCUMENTS["docs/reference/configuration.md"]
    tables = page.split("\n| variable | meaning | default |\n")[1:]
    shown = [
        cell for table in tables for cell in re.findall(r"^\| (`[^|]+) \|", table.partition("\n\n")[0], re.MULTILINE)
    ]
    assert read <= set(re.findall(r"`(\w+)`", " ".join(shown)))


# --- code for tests of applications


@pytest.mark.parametrize("name", ["docs/guide/application-developer.md", "docs/reference/client.md"])
def test_the_code_with_fakes_runs_as_printed(name: str) -> None:
    (block,) = re.findall(r"```python\n([^`]*keyman\.testing[^`]*)```", DOCUMENTS[name])
    names = dict[str, object]()
    exec(compile(block, name, "exec"), names)  # noqa: S102  # it is our own document
    tests = [value for key, value in names.items() if key.startswith("test_")]
    for test in tests:
        assert callable(test)
        test()
    assert len(tests) == ("def test_" in block)


def test_the_glossary_is_short_and_in_order() -> None:
    terms = re.findall(r"^\| ([^|]+?) \|", DOCUMENTS["docs/glossary.md"], re.MULTILINE)[1:]
    assert 30 < len(terms) <= 40
    assert terms == sorted(terms, key=str.lower)
