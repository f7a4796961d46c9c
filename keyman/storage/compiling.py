"""Compiles statements of SQLAlchemy Core once for each dialect, into the text and the values that a driver takes.

Building a statement's text and looking up the types of its columns takes longer than executing it. A `Compiler` does
this at the first execution. What remains for the next ones is one function for each value that Python and the driver
represent in different ways, such as an instant on SQLite. These functions are those of SQLAlchemy's column types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Dialect, Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import ReturnsRows
from sqlalchemy.types import TypeEngine

Conversion = Callable[[Any], object]

Row = Sequence[object]


class Bound(NamedTuple):
    """A text for a driver, with the value of each of its places, such as `$1`."""

    text: str
    arguments: Sequence[object]


class _Place(NamedTuple):
    """A place in a text: for the parameter `name`, or, if that is None, for a constant of the statement."""

    name: str | None
    encode: Conversion | None
    constant: object


class Compiled:
    """A statement for one dialect."""

    def __init__(self, text: str, places: Sequence[_Place], decoders: Sequence[Conversion | None]) -> None:
        self._text = text
        self._places = places
        self._decoders = [(at, decode) for at, decode in enumerate(decoders) if decode is not None]

    def bind(self, parameters: Mapping[str, object]) -> Bound:
        """Return what the driver executes. Raises what a column's type raises for a value that does not fit."""
        arguments = []
        for name, encode, constant in self._places:
            value = constant if name is None else parameters[name]
            arguments.append(value if encode is None else encode(value))
        return Bound(self._text, arguments)

    def decode(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return rows of the driver with the values of the columns' types. Raises what the types raise.

        Null is null in every type.
        """
        return [self._decode_row(row) for row in rows] if self._decoders else rows

    def _decode_row(self, row: Row) -> Row:
        values = [*row]
        for at, decode in self._decoders:
            if (value := values[at]) is not None:
                values[at] = decode(value)
        return values


class _CompiledWithLists(Compiled):
    """A statement with a list as a parameter (`IN`). Its text depends on the length of the list."""

    def __init__(self, compiled: SQLCompiler, decoders: Sequence[Conversion | None]) -> None:
        super().__init__("", (), decoders)
        self._compiled = compiled
        self._encoders = _encoders(compiled)

    def bind(self, parameters: Mapping[str, object]) -> Bound:
        expanded = self._compiled.construct_expanded_state(dict(parameters))
        encoders = {**self._encoders, **expanded.processors}
        arguments = []
        for name in expanded.positiontup or ():
            value, encode = expanded.parameters[name], encoders.get(name)
            arguments.append(value if encode is None else encode(value))
        return Bound(expanded.statement, arguments)


class Compiler:
    """Compiles one statement, once for each dialect and each set of names of its parameters.

    The names matter because the parameters of an INSERT or UPDATE can say which columns it writes.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[tuple[str, ...], Compiled] = {}

    def compiled(self, dialect: Dialect, parameters: Mapping[str, object]) -> Compiled:
        """Return the statement for a dialect. Raises TypeError if a parameter is missing."""
        key = (dialect.name, *parameters)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = _compile(self._statement, dialect, sorted(parameters))
        return found


def columns_of(statement: Executable) -> Sequence[ColumnElement[Any]]:
    """Return the columns of the rows that a statement returns."""
    return tuple(statement.exported_columns) if isinstance(statement, ReturnsRows) else ()


def _compile(statement: Executable, dialect: Dialect, names: list[str]) -> Compiled:
    assert isinstance(statement, ClauseElement)
    compiled = statement.compile(dialect=dialect, column_keys=names)
    assert isinstance(compiled, SQLCompiler)
    if compiled.prefetch:
        raise TypeError("a default of a column in Python is not supported: pass the value as a parameter")
    decoders = [_implementation(one.type, dialect).result_processor(dialect, None) for one in columns_of(statement)]
    if compiled.post_compile_params:
        return _CompiledWithLists(compiled, decoders)
    encoders = _encoders(compiled)
    places = [_place(compiled.binds[name], name, names, encoders[name]) for name in compiled.positiontup or ()]
    return Compiled(str(compiled), places, decoders)


def _encoders(compiled: SQLCompiler) -> dict[str, Conversion | None]:
    """Return, for each name of a place, the function that encodes its value, or None."""
    dialect = compiled.dialect
    return {name: _implementation(one.type, dialect).bind_processor(dialect) for name, one in compiled.binds.items()}


def _place(bind: BindParameter[Any], name: str, names: list[str], encode: Conversion | None) -> _Place:
    for given in (bind.key, name):
        if given in names:
            return _Place(given, encode, None)
    if bind.required:
        raise TypeError(f"the statement needs the parameter {bind.key}")
    constant = bind.effective_value
    return _Place(None, None, constant if encode is None else encode(constant))


def _implementation(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type as this dialect implements it."""
    return kind.dialect_impl(dialect)
