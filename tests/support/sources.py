"""The syntax of keyman's own files, which do not change during a run: each is parsed once in a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file, shared by all who ask for it: do not change it."""
    return ast.parse(path.read_text())
