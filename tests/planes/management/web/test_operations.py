"""`keyman.planes.management.web.operations`: what the API Reference reads from an OpenAPI document."""

from __future__ import annotations

import json
from functools import cache

from keyman.planes.management.app import create_app
from keyman.planes.management.web.operations import Operation, Reference, read
from tests.http.test_edge import settings


@cache
def document() -> bytes:
    found: bytes = create_app(settings())._app._application.state["openapi"]()  # type: ignore[attr-defined]  # of Starting
    return found


@cache
def reference() -> Reference:
    return read(document())


def operation(name: str) -> Operation:
    (found,) = (each for group in reference().groups for each in group.operations if each.id == name)
    return found


def test_it_has_every_operation_once() -> None:
    ids = [each["operationId"] for methods in json.loads(document())["paths"].values() for each in methods.values()]
    assert sorted(each.id for group in reference().groups for each in group.operations) == sorted(ids)


def test_a_body_has_its_members_and_an_example() -> None:
    create = operation("createKey")
    members = {each.name: each for each in create.fields}
    assert members["service"].is_required
    assert not members["name"].is_required
    assert members["expires_at"].kind == "time or null"
    assert json.loads(create.body)["service"] == "OPENAI"
    assert create.draft == create.body
    assert json.loads(create.result)["last_4_chars"] == "sk-...1234"
    assert {"201", "400", "503"} <= {each.status for each in create.answers}


def test_what_can_be_sent_without_an_example_has_the_members() -> None:
    assert operation("logIn").body == ""
    assert json.loads(operation("logIn").draft) == {"email": "", "password": ""}
    assert operation("logOut").draft == ""


def test_parameters_say_where_they_are_and_what_they_may_be() -> None:
    parameters = {each.name: each for each in operation("listKeys").parameters}
    assert parameters["limit"].kind == "integer, 1 to 200"
    assert parameters["q"].kind == "string, at most 100 characters or null"
    assert parameters["status"].kind.startswith("`active`, `disabled`")
    assert {each.place for each in parameters.values()} == {"query"}
    number = operation("getKey").parameters[0]
    assert (number.name, number.place, number.is_required) == ("key_id", "path", True)


def test_a_list_has_an_example_of_one() -> None:
    (key,) = json.loads(operation("listKeys").result)
    assert key["service"] == "OPENAI"


def test_what_needs_no_sign_in_says_so() -> None:
    assert operation("logIn").is_public
    assert operation("livez").is_public
    assert not operation("createKey").is_public
