"""`keyman.errors`: everything that keyman raises on purpose stands under one root, as its docstring draws it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import keyman
from keyman import errors
from keyman.client import errors as client_errors
from keyman.errors import KeymanError

PACKAGE = Path(keyman.__file__).parent

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if not path.is_relative_to(PACKAGE / "migrations" / "versions")
    and path.name not in ("__main__.py", "env.py")  # the first runs keyman, the second needs Alembic around it
)


def own_exceptions() -> set[type[BaseException]]:
    """Every class of an exception that a module of keyman defines."""
    return {
        found
        for name in MODULES
        for found in vars(importlib.import_module(name)).values()
        if inspect.isclass(found) and issubclass(found, BaseException) and found.__module__ == name
    }


def drawn(docstring: str | None, root: str) -> set[tuple[str, str]]:
    """Parent and child of each branch of the tree that begins with the line of its root."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.split(" ")[0] == root]
    parents, pairs = [root], set()
    for line in lines[start + 1 :]:
        branch = re.match(r"((?:│   |    )*)[├└]── (\w+)", line)
        if branch is None:
            break
        depth, name = len(branch[1]) // 4 + 1, branch[2]
        pairs.add((parents[depth - 1], name))
        parents[depth:] = [name]
    return pairs


def real(root: type[BaseException]) -> set[tuple[str, str]]:
    return {
        pair
        for child in root.__subclasses__()
        if child.__module__.startswith("keyman.")
        for pair in {(root.__name__, child.__name__), *real(child)}
    }


def test_every_exception_of_keyman_stands_under_its_root() -> None:
    assert own_exceptions() >= {KeymanError, client_errors.ClientError}
    assert {found for found in own_exceptions() if not issubclass(found, KeymanError)} == set()


def test_the_tree_is_drawn_as_it_is() -> None:
    own_exceptions()  # so that all of them are loaded
    assert drawn(errors.__doc__, "KeymanError") == real(KeymanError)
    assert drawn(client_errors.__doc__, "ClientError") == real(client_errors.ClientError)


def test_nothing_is_drawn_twice() -> None:
    names = re.findall(r"── (\w+)", errors.__doc__ or "")
    assert len(names) == len(real(KeymanError))
