"""The resolver's OpenAPI document: complete, consistent with itself, and as narrow and wide as the service.

Every test of this directory checks the answers against it. test_schemathesis sends requests that are made from it.
"""

from __future__ import annotations

import pytest
import schemathesis

from keyman.ids import MAX_ID
from keyman.planes.resolver.document import WORDS
from keyman.version import __version__
from tests.planes.management.api.harness import STATUSES, Document
from tests.planes.management.api.test_openapi import examples_of, schemas_of
from tests.planes.resolver.pair import SHOWN, Pair
from tests.planes.resolver.test_routes import WRONG

pytestmark = pytest.mark.anyio

EXPECTED = {
    "resolveKey": {200, 400, 401, 403, 404, 409, 413, 415, 429},
    "reportKey": {204, 400, 401, 403, 404, 413, 415, 429},
    "createPortalLink": {201, 400, 401, 403, 404, 409, 413, 415, 429},
    "explainProblem": {200, 400, 404},
    "livez": {200, 400},
    "readyz": {200, 400},
}
"""The statuses that each operation can have, beside 431, 500 and 503."""


@pytest.fixture
def resolver_document(sqlite_pair: Pair) -> Document:
    assert sqlite_pair.resolver.document is not None
    return sqlite_pair.resolver.document


async def test_it_is_openapi_3_1_and_valid(resolver_document: Document) -> None:
    assert resolver_document.document["openapi"].startswith("3.1")
    assert resolver_document.document["info"]["version"] == __version__
    schemathesis.openapi.from_dict(resolver_document.document).validate()
    for schema in schemas_of(resolver_document.document):
        resolver_document.validator(schema)


async def test_it_is_not_the_management_planes(sqlite_pair: Pair, resolver_document: Document) -> None:
    assert resolver_document.document["info"]["title"] == "keyman resolver"
    assert not [path for path in resolver_document.document["paths"] if path.startswith("/api")]
    assert sqlite_pair.management.document is not None
    assert not [path for path in sqlite_pair.management.document.document["paths"] if path.startswith("/v1")]


async def test_every_route_is_in_it_with_what_it_does_and_who_may(
    sqlite_pair: Pair, resolver_document: Document
) -> None:
    assert resolver_document.operations.keys() == EXPECTED.keys()
    assert resolver_document.document["components"]["securitySchemes"].keys() == {"token"}
    tags = {tag["name"] for tag in resolver_document.document["tags"]}
    for name, operation in resolver_document.operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags
        assert operation.get("security", []) == (
            [{"token": []}] if name in ("resolveKey", "createPortalLink", "reportKey") else []
        ), name
        assert all(parameter["description"] for parameter in operation.get("parameters", []))


async def test_exactly_the_expected_statuses_are_documented(resolver_document: Document) -> None:
    documented = {
        name: {int(s) for s in operation["responses"]} for name, operation in resolver_document.operations.items()
    }
    assert documented == {name: statuses | {431, 500, 503} for name, statuses in EXPECTED.items()}


async def test_every_refusal_is_a_problem_with_an_example_of_its_type(resolver_document: Document) -> None:
    for name, operation in resolver_document.operations.items():
        for status, response in operation["responses"].items():
            if int(status) < 400 or (name == "readyz" and status == "503"):
                continue
            content = response["content"]["application/problem+json"]
            for example in content["examples"].values():
                slug = example["value"]["type"].removeprefix("/problems/")
                assert STATUSES[slug] == example["value"]["status"] == int(status)
                assert slug in response["description"]


async def test_every_example_fits_its_schema(resolver_document: Document) -> None:
    examples = list(examples_of(resolver_document.document))
    assert len(examples) > 15
    for schema, example in examples:
        resolver_document.validator({key: value for key, value in schema.items() if key != "examples"}).validate(
            example
        )


async def test_the_answer_is_described_with_all_of_its_fields(resolver_document: Document) -> None:
    assert resolver_document.document["components"]["schemas"]["ResolvedKey"]["properties"].keys() == {
        *SHOWN,
        "subject",
    }
    assert resolver_document.document["components"]["schemas"]["ResolvedKey"]["examples"] == [
        WORDS.examples["ResolvedKey"]
    ]


async def test_the_schema_of_a_body_refuses_what_the_service_refuses_and_nothing_more(
    resolver_document: Document,
) -> None:
    request = resolver_document.operations["resolveKey"]["requestBody"]
    assert request["required"] is True
    validator = resolver_document.validator(request["content"]["application/json"]["schema"])
    for wrong, _ in WRONG:
        if not any(type(value) is float for value in wrong.values()):  # JSON Schema takes 1.0 for an integer
            assert not validator.is_valid(wrong), wrong
    for right in ({"key_id": 1}, {"key_id": MAX_ID, "purpose": None}, {"user_id": 7, "service": "X", "purpose": "x"}):
        assert validator.is_valid(right), right
