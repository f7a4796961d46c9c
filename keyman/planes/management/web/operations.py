"""Reads the OpenAPI document of this plane for the page API Reference: operations, parameters and fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]


class Field(NamedTuple):
    """A member of a JSON object, or a parameter. `place` is `path`, `query`, `header` or, for a member, `body`."""

    name: str
    place: str
    kind: str
    is_required: bool
    description: str


class Answer(NamedTuple):
    status: str
    description: str


class Operation(NamedTuple):
    """An operation. `body` and `result` are examples, as JSON, or empty. `fields` are those of the body."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    is_public: bool
    parameters: list[Field]
    fields: list[Field]
    body: str
    result: str
    answers: list[Answer]

    @property
    def draft(self) -> str:
        """What the page offers to send: the example of the body, or its members without values, or nothing."""
        members = dict.fromkeys((field.name for field in self.fields), "")
        return self.body or (json.dumps(members, indent=2) if members else "")


class Group(NamedTuple):
    name: str
    description: str
    operations: list[Operation]


class Reference(NamedTuple):
    """What the page shows. `paragraphs` introduce it."""

    paragraphs: list[str]
    groups: list[Group]


def read(document: bytes) -> Reference:
    """Return the contents of an OpenAPI document, with the groups in the order of its tags."""
    whole = json.loads(document)
    reader = _Reader(whole["components"]["schemas"])
    found = [
        (operation["tags"][0], reader.operation(method.upper(), path, operation))
        for path, methods in sorted(whole["paths"].items())
        for method, operation in methods.items()
    ]
    groups = [
        Group(tag["name"], tag["description"], [each for name, each in found if name == tag["name"]])
        for tag in whole["tags"]
    ]
    paragraphs = [" ".join(text.split()) for text in whole["info"]["description"].split("\n\n")]
    return Reference(paragraphs, [group for group in groups if group.operations])


class _Reader:
    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas

    def operation(self, method: str, path: str, of: Mapping[str, Any]) -> Operation:
        body = _json_of(of.get("requestBody", {}))
        status = min(of["responses"])
        result = _json_of(of["responses"][status])
        return Operation(
            of["operationId"],
            method,
            path,
            of["summary"],
            of.get("description", ""),
            not of.get("security"),
            [self._parameter(each) for each in of.get("parameters", ())],
            list(self._fields(body)),
            self._example(body),
            self._example(result),
            [Answer(code, answer["description"]) for code, answer in sorted(of["responses"].items())],
        )

    def _parameter(self, of: Mapping[str, Any]) -> Field:
        return Field(
            of["name"], of["in"], self._kind(of["schema"]), of.get("required", False), of.get("description", "")
        )

    def _resolved(self, schema: Schema) -> Schema:
        reference = schema.get("$ref")
        return schema if reference is None else self._schemas[reference.rpartition("/")[2]]

    def _fields(self, schema: Schema) -> Iterator[Field]:
        schema = self._resolved(schema)
        if schema.get("type") == "array":
            yield from self._fields(schema["items"])
        for name, member in schema.get("properties", {}).items():
            is_required = name in schema.get("required", ())
            yield Field(name, "body", self._kind(member), is_required, self._description(member))

    def _description(self, schema: Schema) -> str:
        """Return what a schema says of itself, or what one of its choices says."""
        own = schema.get("description") or self._resolved(schema).get("description")
        if own:
            return str(own)
        return next(filter(None, (self._description(each) for each in schema.get("oneOf", ()))), "")

    def _kind(self, schema: Schema) -> str:
        schema = self._resolved(schema)
        choices = schema.get("oneOf") or schema.get("anyOf")
        if choices:
            return " or ".join(dict.fromkeys(self._kind(each) for each in choices))
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if schema.get("type") == "array":
            return f"list of {self._kind(schema['items'])}"
        kind = "time" if schema.get("format") == "date-time" else str(schema.get("type", "any"))
        return f"{kind}{_bounds(schema)}"

    def _example(self, schema: Schema) -> str:
        resolved = self._resolved(schema)
        if resolved.get("type") == "array":
            inner = self._example(resolved["items"])
            return json.dumps([json.loads(inner)], indent=2, ensure_ascii=False) if inner else ""
        examples = resolved.get("examples")
        return json.dumps(examples[0], indent=2, ensure_ascii=False) if examples else ""


def _bounds(schema: Schema) -> str:
    """Return the limits of a number or of the length of a text, such as `, 1 to 200`, or an empty text."""
    least, most = (schema.get(f"{end}imum", schema.get(f"{end}Length")) for end in ("min", "max"))
    unit = " characters" if "maxLength" in schema or "minLength" in schema else ""
    if most is None:
        return "" if least is None else f", at least {least:,}{unit}"
    return f", {'at most' if least is None else f'{least:,} to'} {most:,}{unit}"


def _json_of(part: Mapping[str, Any]) -> Schema:
    """Return the schema of a JSON body, or an empty one."""
    schema: Schema = part.get("content", {}).get("application/json", {}).get("schema", {})
    return schema
