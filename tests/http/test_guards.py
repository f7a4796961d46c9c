"""`keyman.http.guards`: a route without an access rule. planes/management/api tests scopes and credentials."""

from __future__ import annotations

from typing import Any

import pytest
from litestar import Litestar, get

from keyman.errors import ConfigurationError
from keyman.http.guards import PUBLIC, needs, require_rules
from keyman.identity.tokens import Scope


def app(**options: Any) -> Litestar:
    @get("/ruled", opt=PUBLIC)
    async def ruled() -> None: ...

    @get("/other", **options)
    async def other() -> None: ...

    return Litestar([ruled, other], openapi_config=None, logging_config=None)


def test_a_route_without_a_rule_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="/other"):
        require_rules(app())


@pytest.mark.parametrize("rule", [PUBLIC, needs(None), needs(Scope.KEYS_READ)])
def test_routes_that_all_have_a_rule_start(rule: dict[str, Any]) -> None:
    require_rules(app(opt=rule))
