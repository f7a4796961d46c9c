"""The client has an error for each error of the server."""

from __future__ import annotations

import pickle

import pytest

from keyman.client import errors
from keyman.client.errors import BadAnswer, ClientError, Unavailable, kind_of
from keyman.http.problems import KINDS

CLOSE_ENOUGH = {
    "method-not-allowed": errors.ServerFailed,  # the client asks by none that is not
    "payload-too-large": errors.InvalidRequest,
    "unsupported-media-type": errors.InvalidRequest,
    "headers-too-large": errors.InvalidRequest,
    "vault-unavailable": Unavailable,
    "database-unavailable": Unavailable,
    "issuer-unavailable": Unavailable,
    "gateway-unavailable": Unavailable,
    "path-not-allowed": errors.Forbidden,  # this and the next four come from the gateway only
    "provider-unreachable": Unavailable,
    "provider-answer-refused": Unavailable,
    "provider-redirected": Unavailable,
    "provider-timeout": Unavailable,
    "overloaded": Unavailable,
    "internal": errors.ServerFailed,
}


@pytest.mark.parametrize("slug", KINDS)
def test_every_problem_of_the_server_has_its_error(slug: str) -> None:
    expected = CLOSE_ENOUGH.get(slug) or getattr(errors, KINDS[slug].problem.__name__)
    assert kind_of(KINDS[slug].status, slug) is expected


def test_the_tree_that_the_module_draws_is_the_one_there_is() -> None:
    drawn = str(errors.__doc__)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, ClientError):
            assert f"{name} " in drawn


def test_an_error_survives_the_way_between_processes() -> None:
    fault = BadAnswer("so it is", status=200, request_id="9f3c")
    again = pickle.loads(pickle.dumps(fault))  # noqa: S301
    assert (type(again), str(again), again.__dict__) == (BadAnswer, "so it is", fault.__dict__)
