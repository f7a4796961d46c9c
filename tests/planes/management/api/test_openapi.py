"""The OpenAPI document: complete, consistent with itself, and no narrower than what the service does.

`harness.Document` checks the answers in every test of this directory against it. test_schemathesis sends requests that
are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis

from keyman.version import __version__
from tests.planes.management.api.bodies import BODIES, accepted_types, wrong_values
from tests.planes.management.api.harness import STATUSES, ApiPlane, Document, Json

pytestmark = pytest.mark.anyio

PUBLIC = {"signUp", "logIn", "livez", "readyz"}

BODY = {400, 413, 415}
CALLER = {400, 401, 403}
EVERYWHERE = {400, 431, 500, 503}
EXPECTED = {
    "signUp": {201, 403, 409, 429, *BODY},
    "logIn": {200, 401, 403, 429, *BODY},
    "logOut": {204, *CALLER},
    "getAccount": {200, *CALLER},
    "deleteAccount": {204, 409, 429, *CALLER, *BODY},
    "changePassword": {204, 409, 429, *CALLER, *BODY},
    "createToken": {201, 409, 429, *CALLER, *BODY},
    "listTokens": {200, *CALLER},
    "revokeToken": {204, 404, *CALLER},
    "revokeCurrentToken": {204, *CALLER},
    "createKey": {201, 409, 422, 429, *CALLER, *BODY},
    "createKeys": {200, 409, 422, 429, *CALLER, *BODY},
    "listKeys": {200, *CALLER},
    "getKey": {200, 404, *CALLER},
    "replaceKey": {200, 404, 409, 412, 429, *CALLER, *BODY},
    "changeKey": {200, 404, 409, 412, 429, *CALLER, *BODY},
    "checkKey": {200, 404, 409, 429, 503, *CALLER},
    "deleteKey": {204, 404, 412, 429, *CALLER},
    "listApplications": {200, *CALLER},
    "blockApplication": {204, 404, *CALLER},
    "unblockApplication": {204, 404, 429, *CALLER},
    "listServices": {200, *CALLER},
    "listAudit": {200, *CALLER},
    "livez": {200},
    "readyz": {200},
}
"""The statuses that each operation can have."""


@pytest.fixture
def management_document(sqlite_plane: ApiPlane) -> Document:
    assert sqlite_plane.document is not None
    return sqlite_plane.document


def schemas_of(node: Any) -> Iterator[Json]:
    """Every schema in a part of the document: whatever has a type, a reference or a choice."""
    if isinstance(node, dict):
        if node.keys() & {"type", "$ref", "oneOf", "anyOf", "allOf", "enum", "const"}:
            yield node
        for key, value in node.items():
            if key == "properties":
                yield from (found for part in value.values() for found in schemas_of(part))
            elif key not in ("examples", "example", "securitySchemes"):
                yield from schemas_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from schemas_of(value)


async def test_it_is_openapi_3_1_and_valid(management_document: Document) -> None:
    assert management_document.document["openapi"].startswith("3.1")
    assert management_document.document["info"]["version"] == __version__
    schemathesis.openapi.from_dict(management_document.document).validate()
    for schema in schemas_of(management_document.document):
        management_document.validator(schema)


async def test_it_is_the_same_over_both_databases_and_the_same_again(shared: ApiPlane, sqlite_plane: ApiPlane) -> None:
    assert shared.document is not None
    assert sqlite_plane.document is not None
    assert shared.document.document == sqlite_plane.document.document


async def test_every_operation_says_what_it_does_and_who_may(management_document: Document) -> None:
    tags = {tag["name"] for tag in management_document.document["tags"]}
    assert all(tag.get("description") for tag in management_document.document["tags"])
    schemes = management_document.document["components"]["securitySchemes"]
    assert schemes.keys() == {"token", "session"}
    assert all(scheme["description"] for scheme in schemes.values())
    assert not management_document.document.get("security")
    for name, operation in management_document.operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        assert set(operation["tags"]) <= tags
        security = operation.get("security", [])
        assert security == ([] if name in PUBLIC else [{"token": []}, {"session": []}]), name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["in"] == "path", (name, parameter["name"])
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
    assert len({operation["operationId"] for operation in management_document.operations.values()}) == len(
        management_document.operations
    )


async def test_exactly_the_expected_statuses_are_documented(management_document: Document) -> None:
    documented = {
        name: {int(s) for s in operation["responses"]} for name, operation in management_document.operations.items()
    }
    assert documented == {name: statuses | EVERYWHERE for name, statuses in EXPECTED.items()}


async def test_every_refusal_is_a_problem_with_an_example_of_its_type(management_document: Document) -> None:
    for name, operation in management_document.operations.items():
        for status, response in operation["responses"].items():
            if int(status) < 400 or (name == "readyz" and status == "503"):
                continue
            assert response["content"].keys() == {"application/problem+json"}, (name, status)
            content = response["content"]["application/problem+json"]
            assert content["examples"]
            for example in content["examples"].values():
                value = example["value"]
                slug = value["type"].removeprefix("/problems/")
                assert STATUSES[slug] == value["status"] == int(status)
                assert slug in response["description"]


async def test_an_answer_of_204_has_no_body(management_document: Document) -> None:
    for name, operation in management_document.operations.items():
        assert "content" not in operation["responses"].get("204", {}), name


async def test_every_other_answer_has_a_body(management_document: Document) -> None:
    for name, operation in management_document.operations.items():
        for status, response in operation["responses"].items():
            assert bool(response.get("content")) == (status != "204"), (name, status)


async def test_headers_that_clients_rely_on_are_documented(management_document: Document) -> None:
    def headers(name: str, status: int) -> set[str]:
        response = management_document.operations[name]["responses"][str(status)]
        return {header.lower() for header in response.get("headers", {})}

    assert headers("createKey", 201) >= {"location", "etag", "idempotent-replayed"}
    for name in ("getKey", "replaceKey", "changeKey"):
        assert headers(name, 200) >= {"etag"}
    for name in ("listKeys", "listAudit"):
        assert headers(name, 200) >= {"link"}
    for name, status in (("signUp", 201), ("logIn", 200), ("logOut", 204)):
        assert headers(name, status) >= {"set-cookie"}
    parameters = {
        name: {parameter["name"] for parameter in operation.get("parameters", [])}
        for name, operation in management_document.operations.items()
    }
    assert headers("listKeys", 200) >= {"keyman-total-count"}
    assert parameters["listKeys"] == {"service", "status", "check", "q", "sort", "count", "limit", "cursor"}
    assert parameters["listAudit"] == {"action", "since", "until", "limit", "cursor"}
    for name in ("createKey", "createKeys"):
        assert "Idempotency-Key" in parameters[name]
    assert headers("createKeys", 200) >= {"idempotent-replayed"}
    for name in ("replaceKey", "changeKey", "deleteKey"):
        assert "If-Match" in parameters[name]


def examples_of(node: Any) -> Iterator[tuple[Json, Any]]:
    """Every example in the document, with the schema that it must fit."""
    if isinstance(node, dict):
        if isinstance(node.get("examples"), list):
            yield from ((node, example) for example in node["examples"])
        if "schema" in node:
            examples = node.get("examples", {})
            values = examples.values() if isinstance(examples, dict) else examples
            for example in values:
                yield node["schema"], example["value"] if isinstance(example, dict) and "value" in example else example
            if "example" in node:
                yield node["schema"], node["example"]
        for value in node.values():
            yield from examples_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from examples_of(value)


async def test_every_example_fits_its_schema(management_document: Document) -> None:
    examples = list(examples_of(management_document.document))
    assert len(examples) > 80
    for schema, example in examples:
        management_document.validator({key: value for key, value in schema.items() if key != "examples"}).validate(
            example
        )


async def test_no_choice_has_only_one_possibility(management_document: Document) -> None:
    for schema in schemas_of(management_document.document):
        assert len(schema.get("oneOf", ["a", "b"])) > 1, schema


async def test_no_example_is_made_up_by_a_generator(management_document: Document) -> None:
    """Random strings teach nobody anything."""
    for _, example in examples_of(management_document.document):
        for word in re.findall(r"[A-Za-z]{20,}", str(example)):
            assert not re.fullmatch(r"[a-z]*[A-Z][A-Za-z]*[A-Z][A-Za-z]*", word), word


async def test_every_shape_has_an_example(management_document: Document) -> None:
    for name, schema in management_document.document["components"]["schemas"].items():
        if schema.get("type") == "object" and name not in ("ProblemBody", "FieldFault", "Checks", "Liveness"):
            has_own = bool(schema.get("examples"))
            has_parts = all(part.get("examples") for part in schema["properties"].values())
            assert has_own or has_parts, name


async def test_bodies_are_json_with_only_known_fields(management_document: Document) -> None:
    assert BODIES.keys() == {
        name for name, operation in management_document.operations.items() if "requestBody" in operation
    }
    for name, body in BODIES.items():
        request = management_document.operations[name]["requestBody"]
        assert request["required"] is True
        assert request["content"].keys() == {"application/json"}
        schema = resolved(management_document, request["content"]["application/json"]["schema"])
        assert schema["additionalProperties"] is False, name
        assert schema["properties"].keys() == {field.encode_name for field in body.fields}
        assert set(schema.get("required", ())) == body.required
        # What goes in and never comes out is marked so.
        for secret in schema["properties"].keys() & {"api_key", "password", "current_password", "new_password"}:
            (shown,) = schema["properties"][secret].get("oneOf", [schema["properties"][secret]])
            assert shown["writeOnly"] is True


async def test_the_schema_of_a_body_refuses_the_types_that_the_service_refuses(management_document: Document) -> None:
    for name, body in BODIES.items():
        validator = management_document.validator(
            management_document.operations[name]["requestBody"]["content"]["application/json"]["schema"]
        )
        assert validator.is_valid(body.valid), name
        assert not validator.is_valid({**body.valid, "unknown": 1})
        for field in body.fields:
            assert accepted_types(field)
            for wrong in wrong_values(field):
                assert not validator.is_valid({**body.valid, field.encode_name: wrong}), (name, field.name, wrong)


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("createKey", {"api_key": "short"}),
        ("createKey", {"api_key": "x" * 16385}),
        ("createKey", {"api_key": "with white space"}),
        ("createKey", {"settings": None}),
        ("createKey", {"settings": {"endpoint": 7}}),
        ("changeKey", {"settings": None}),
        ("createKey", {"service": "openai"}),
        ("createKey", {"service": "NO_SUCH_SERVICE"}),
        ("createKey", {"name": "x" * 101}),
        ("createKey", {"name": "a\nb"}),
        ("createKey", {"name": "a\u202eb"}),
        ("createToken", {"name": ""}),
        ("createToken", {"name": " "}),
        ("createToken", {"name": "a\0b"}),
        ("createToken", {"scopes": []}),
        ("createToken", {"scopes": ["admin"]}),
        ("signUp", {"email": "ada"}),
        ("signUp", {"email": "a\0b@example.com"}),
        ("signUp", {"password": "x" * 9}),
        ("signUp", {"password": "x" * 257}),
        ("changeKey", {"expires_at": "soon"}),
    ],
)
async def test_the_schema_of_a_body_refuses_the_values_that_the_service_refuses(
    management_document: Document, operation: str, wrong: Json
) -> None:
    schema = management_document.operations[operation]["requestBody"]["content"]["application/json"]["schema"]
    body = BODIES[operation]
    assert not management_document.validator(schema).is_valid({**body.valid, **wrong})


@pytest.mark.parametrize(
    ("operation", "name", "good", "bad"),
    [
        ("listKeys", "limit", [1, 200], [0, 201, -1, 1.5, "x"]),
        ("listKeys", "status", ["active", "expired"], ["", "ACTIVE", "x"]),
        ("listKeys", "check", ["accepted", "no-credit"], ["", "Accepted", "x"]),
        ("listKeys", "sort", ["created", "-created", "name", "-used"], ["", "+name", "id"]),
        ("listKeys", "count", ["true", "false"], ["", "1", "True"]),
        ("listKeys", "cursor", ["AAAAAAAAAAo"], ["", "x", "AAAAAAAAAAo=", "AAAAAAAAAA\u00e9"]),
        ("listKeys", "service", ["OPENAI"], ["openai", ""]),
        ("listKeys", "q", ["", "prod"], ["x" * 101, "a\0b"]),
        ("listAudit", "cursor", ["AAAAAAAAAAo"], ["", "x"]),
        ("listAudit", "action", ["key.resolve", "account.login-failed"], ["", "key", "KEY.RESOLVE"]),
        ("listAudit", "since", ["2026-01-31T00:00:00Z", "2026-01-31T00:00:00+02:00"], ["", "2026-01-31T00:00:00"]),
        ("createKey", "Idempotency-Key", ["x", "x" * 255], ["", "x" * 256, "\u00e9", "a\tb"]),
        ("getKey", "key_id", [1, 2**63 - 1], [0, -1, 2**63, "x"]),
    ],
)
async def test_the_schema_of_a_parameter_says_what_the_service_takes(
    management_document: Document, operation: str, name: str, good: list[Any], bad: list[Any]
) -> None:
    (parameter,) = [found for found in management_document.operations[operation]["parameters"] if found["name"] == name]
    validator = management_document.validator(parameter["schema"])
    for value in good:
        assert validator.is_valid(value), value
    for value in bad:
        assert not validator.is_valid(value), value


def resolved(document: Document, schema: Json) -> Json:
    while "$ref" in schema:
        schema = document.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


async def test_the_watcher_of_answers_sees_what_is_not_documented(management_document: Document) -> None:
    """The test of the tests: an answer of another shape, or of another status, fails whichever test got it."""
    good = {"id": 1, "email": "ada@example.com", "created_at": "2023-10-27T10:00:00Z"}
    management_document.check("GET", "/api/auth/me", httpx.Response(200, json=good))
    for answer in (
        httpx.Response(418, json=good),
        httpx.Response(200, text="x"),
        httpx.Response(200, json={**good, "id": "1"}),
        httpx.Response(200, json={"id": 1}),
    ):
        with pytest.raises((AssertionError, jsonschema_rs.ValidationError)):
            management_document.check("GET", "/api/auth/me", answer)
