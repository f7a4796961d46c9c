"""Parameters that are arrays: a list of values, and rows that a statement for PostgreSQL gets, any number at once.

Rows are given as one array for each column.

GIVEN = given_rows([api_keys.c.user_id, api_keys.c.service])
INSERT = Query(insert(api_keys).from_select(GIVEN.c.keys(), select(GIVEN)).returning(api_keys.c.id), …)
await INSERT.all(connection, **as_arrays(GIVEN.c.keys(), rows))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, String, TableValuedAlias, Text, bindparam, column, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine


def as_list(values: Sequence[object], dialect: str) -> object:
    """Return the parameter for a list of values: an array, or on SQLite, which has none, one in JSON."""
    return json.dumps(values) if dialect == "sqlite" else values


def given_rows(columns: Iterable[Column[Any]]) -> TableValuedAlias:
    """Return a table of the rows that a statement is given, with these columns. Its parameters are from `as_arrays`."""
    kinds = {one.name: _unbounded(one.type) for one in columns}
    return (
        func.unnest(*(bindparam(f"all_{name}", type_=ARRAY(kind)) for name, kind in kinds.items()))
        .table_valued(*(column(name, kind) for name, kind in kinds.items()), name="given")
        .render_derived()
    )


def as_arrays(names: Iterable[str], rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the parameters for rows that are given by the names of their columns."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}


def _unbounded(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type without a length: PostgreSQL would cut a longer text instead of refusing it."""
    return Text() if isinstance(kind, String) else kind
