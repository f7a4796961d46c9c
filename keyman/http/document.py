"""Generates the OpenAPI document of routes with Litestar, and adds the parts that Litestar cannot know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from litestar import Litestar, Response, get, post
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, Contact, License, SecurityScheme, Tag
from litestar.params import JSONBody
from litestar.types import ControllerRouterHandler

from keyman.http.body import TAKES, ValueSchemas
from keyman.http.guards import PUBLIC
from keyman.http.problems import MEDIA_TYPE
from keyman.http.requests import Injected
from keyman.version import __version__


@get("/docs/openapi.json", opt=PUBLIC, include_in_schema=False, sync_to_thread=True)
def openapi_document(openapi: Injected[Callable[[], bytes]]) -> Response[bytes]:
    """Return the document of a plane, from `openapi` in the state of the Litestar application."""
    return Response(openapi(), media_type="application/json")


@dataclass(frozen=True)
class Words:
    """The parts of a plane's document besides its routes. `examples` has an example, as JSON, of each schema."""

    title: str
    description: str
    tags: Sequence[Tag]
    security: Mapping[str, SecurityScheme]
    examples: Mapping[str, object]


class Document:
    """An OpenAPI 3.1 document as JSON, and the parts of it to which keyman adds something.

    `schemas` are the schemas of its components, by name. `operations` are the operations of all paths.
    """

    def __init__(self, described: Litestar) -> None:
        self.json = described.openapi_schema.to_schema()
        self.schemas = self.json["components"].setdefault("schemas", {})
        self.operations = [operation for path in self.json["paths"].values() for operation in path.values()]

    def encoded(self) -> bytes:
        return msgspec.json.encode(self.json)


def describe(routes: Sequence[ControllerRouterHandler], dependencies: Mapping[str, Provide], words: Words) -> Document:
    """Return the document of these routes.

    A separate Litestar application generates it and serves no request. Litestar adds pages to an application that has a
    document, and these pages load scripts from other hosts.
    """
    described = _described(routes, dependencies, words)
    document = Document(described)
    _add_bodies(document, _models(described))
    _refine(document, words.examples)
    return document


def _described(
    routes: Sequence[ControllerRouterHandler], dependencies: Mapping[str, Provide], words: Words
) -> Litestar:
    config = OpenAPIConfig(
        title=words.title,
        version=__version__,
        description=words.description,
        contact=Contact(name="The keyman developers"),
        license=License(name="Apache License 2.0", identifier="Apache-2.0"),
        tags=list(words.tags),
        components=Components(security_schemes=dict(words.security)),
    )
    return Litestar(
        list(routes),
        dependencies=dict(dependencies),
        openapi_config=config,
        plugins=[ValueSchemas()],
        logging_config=None,
    )


def _models(app: Litestar) -> dict[str, type[msgspec.Struct]]:
    """Return the models of the bodies that handlers read themselves, by operation id."""
    handlers = [handler for route in app.routes for handler in getattr(route, "route_handlers", [])]
    return {handler.operation_id: handler.opt[TAKES] for handler in handlers if TAKES in handler.opt}


def _add_bodies(document: Document, models: Mapping[str, type[msgspec.Struct]]) -> None:
    """Add the descriptions of the bodies to the document.

    Litestar describes a body only if it decodes the body itself. So this creates handlers for which Litestar decodes
    the same bodies, and copies the descriptions from their document.
    """
    decoding = [_decoded(name, model) for name, model in models.items()]
    bodies = Document(_described(decoding, {}, Words("bodies", "", (), {}, {})))
    document.schemas.update(bodies.schemas)
    for operation in document.operations:
        if operation["operationId"] in models:
            operation["requestBody"] = bodies.json["paths"][f"/{operation['operationId']}"]["post"]["requestBody"]


def _decoded(name: str, model: type[msgspec.Struct]) -> HTTPRouteHandler:
    async def decoded(data: object) -> None: ...

    decoded.__annotations__["data"] = JSONBody[model]  # type: ignore[misc, valid-type]  # known when this runs, not when it is checked
    return post(f"/{name}")(decoded)


def _merge_single_choices(node: object) -> None:
    """Replace each `oneOf` of one schema by that schema. Litestar writes one for a field that may be left out."""
    if isinstance(node, dict):
        if isinstance(node.get("oneOf"), list) and len(node["oneOf"]) == 1:
            node |= {**node.pop("oneOf")[0], **node}
        for part in node.values():
            _merge_single_choices(part)
    elif isinstance(node, list):
        for part in node:
            _merge_single_choices(part)


def _refine(document: Document, examples: Mapping[str, object]) -> None:
    """Add to the document that unknown fields are rejected, and the examples. Litestar cannot know them."""
    _merge_single_choices(document.schemas)
    for name, example in examples.items():
        document.schemas[name]["examples"] = [example]
    for operation in document.operations:
        operation.setdefault("security", [])  # an empty list says that no credentials are needed
        for content in operation.get("requestBody", {}).get("content", {}).values():
            document.schemas[content["schema"]["$ref"].rpartition("/")[2]]["additionalProperties"] = False
        for answer in operation["responses"].values():
            for header in answer.get("headers", {}).values():
                header["schema"] = {"type": "string"}
            for content in answer.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    del example["id"]  # Litestar adds this name, which OpenAPI does not have
        operation["responses"].get("204", {}).pop("content", None)
        # Litestar adds its own answer 400 to each operation that has a parameter. keyman never returns that answer.
        answer = operation["responses"].get("400")
        if answer is not None and MEDIA_TYPE not in answer["content"]:
            del operation["responses"]["400"]
