"""The gateway's OpenAPI document: its own routes, and every path that it forwards."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import schemathesis

from keyman.http.problems import KINDS
from keyman.planes.gateway import app
from keyman.planes.gateway.document import openapi_document
from keyman.providers.catalogue import Catalogue
from keyman.providers.paths import PathRule
from keyman.providers.services import SHIPPED
from keyman.version import __version__
from tests.planes.gateway.scene import Scene
from tests.planes.management.api.harness import Document
from tests.planes.management.api.test_openapi import examples_of, schemas_of

pytestmark = pytest.mark.anyio

OWN = {"checkKey", "explainProblem", "livez", "readyz"}


@pytest.fixture(scope="module")
def gateway_document() -> Document:
    return Document(msgspec.json.decode(openapi_document(app._DESCRIBED_ROUTES, app._DEPENDENCIES, Catalogue())))


def forwarded_of(document: Document) -> list[dict[str, Any]]:
    return [operation for name, operation in document.operations.items() if name not in OWN]


async def test_it_is_served_without_a_token_and_has_the_operators_services(gateway: Scene) -> None:
    answer = await gateway.ask("GET", "/docs/openapi.json", {})
    assert answer.status == 200
    document = msgspec.json.decode(answer.body)
    assert document["info"] == {**document["info"], "title": "keyman gateway", "version": __version__}
    assert "/inwards/x" in document["paths"]
    assert gateway.provider.address not in answer.body.decode()


def test_it_is_openapi_3_1_and_valid(gateway_document: Document) -> None:
    assert gateway_document.document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(gateway_document.document).validate()
    for schema in schemas_of(gateway_document.document):
        gateway_document.validator(schema)


def test_every_path_of_the_catalogue_is_in_it_once(gateway_document: Document) -> None:
    shipped = [
        (method, f"/{service.slug}{path}")
        for service in SHIPPED
        if service.upstream is not None
        for method, _, path in (entry.partition(" ") for entry in service.upstream.paths)
    ]
    described = [(operation["method"], operation["path"]) for operation in forwarded_of(gateway_document)]
    assert sorted(described) == sorted(set(shipped))
    assert len(described) > 100


def test_the_names_in_a_path_are_described(gateway_document: Document) -> None:
    for operation in forwarded_of(gateway_document):
        PathRule.parse(f"{operation['method']} {operation['path']}")
        named = re.findall(r"\{([a-z_]+)\}", operation["path"])
        assert [one["name"] for one in operation["parameters"] if one.get("in") == "path"] == named


def test_every_operation_says_what_it_does_and_who_may(gateway_document: Document) -> None:
    tags = {tag["name"] for tag in gateway_document.document["tags"]}
    for name, operation in gateway_document.operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= tags, name
        assert operation["security"] == ([{"token": []}] if name not in OWN - {"checkKey"} else []), name


def test_every_problem_that_only_the_gateway_has_is_documented(gateway_document: Document) -> None:
    described = " ".join(
        answer["description"] for answer in gateway_document.document["components"]["responses"].values()
    )
    for slug in KINDS:
        if slug.startswith("provider-") or slug == "path-not-allowed":
            assert f"`{slug}`" in described


async def test_a_problem_of_the_gateway_fits_its_schema(gateway: Scene, gateway_document: Document) -> None:
    answer = await gateway.ask("GET", "/openai/v1/files", gateway.headers)
    assert answer.status == 403
    schema = gateway_document.document["components"]["responses"]["403"]["content"]["application/problem+json"]
    gateway_document.validator(schema["schema"]).validate(msgspec.json.decode(answer.body))


def test_every_example_fits_its_schema(gateway_document: Document) -> None:
    examples = list(examples_of(gateway_document.document))
    assert len(examples) > 15
    for schema, example in examples:
        shape = {key: value for key, value in schema.items() if key != "examples"}
        gateway_document.validator(shape).validate(example)
