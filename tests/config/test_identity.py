"""The variables of JSON Web Tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyman.config.identity import SCOPES, JwtSettings, load_jwt
from keyman.config.settings import check_own
from keyman.errors import ConfigurationError
from keyman.identity.tokens import Scope

ISSUER = {"KEYMAN_JWT_ISSUER": "https://id.example.com/realms/one/", "KEYMAN_JWT_AUDIENCE": "keyman"}


def test_without_a_variable_no_token_is_accepted() -> None:
    assert load_jwt({}) is None
    assert load_jwt({"KEYMAN_JWT_CACERT": "/nowhere"}) is None


def test_the_issuer_is_kept_as_it_is() -> None:
    assert load_jwt(ISSUER) == JwtSettings("https://id.example.com/realms/one/", "keyman")


def test_everything_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text('{"keys": []}')
    more = {
        "KEYMAN_JWT_JWKS_FILE": str(file),
        "KEYMAN_JWT_SCOPES": "keys:read  tokens:manage",
        "KEYMAN_JWT_SIGNUP": "closed",
    }
    found = load_jwt({**ISSUER, "KEYMAN_JWT_ISSUER": "accounts.example.com", **more})
    assert found == JwtSettings(
        "accounts.example.com", "keyman", None, file, ("keys:read", "tokens:manage"), signup_open=False
    )


def test_the_scopes_are_those_of_tokens() -> None:
    assert tuple(Scope) == SCOPES


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"KEYMAN_JWT_AUDIENCE": ""}, "KEYMAN_JWT_AUDIENCE is not set"),
        ({"KEYMAN_JWT_ISSUER": ""}, "KEYMAN_JWT_ISSUER is not set"),
        ({"KEYMAN_JWT_ISSUER": "http://id.example.com"}, "KEYMAN_JWT_ISSUER must be an https URL"),
        ({"KEYMAN_JWT_ISSUER": "accounts.example.com"}, "KEYMAN_JWT_ISSUER must be an https URL"),
        ({"KEYMAN_JWT_ISSUER": "https://id.example.com?x"}, "KEYMAN_JWT_ISSUER must not have a query"),
        ({"KEYMAN_JWT_ISSUER": "https://id.example.com#x"}, "KEYMAN_JWT_ISSUER must be an https URL"),
        ({"KEYMAN_JWT_ISSUER": "https://u:c4n4ry@id.example.com"}, "KEYMAN_JWT_ISSUER must be an https URL"),
        ({"KEYMAN_JWT_ISSUER": "https://[c4n4ry"}, "KEYMAN_JWT_ISSUER is not a URL"),
        (
            {"KEYMAN_JWT_ISSUER": "keyman:app:c4n4ry", "KEYMAN_JWT_JWKS_URL": "https://id.example.com/jwks"},
            "KEYMAN_JWT_ISSUER must not begin with keyman:",
        ),
        ({"KEYMAN_JWT_AUDIENCE": "two words"}, "KEYMAN_JWT_AUDIENCE must be"),
        ({"KEYMAN_JWT_JWKS_URL": "http://id.example.com/jwks"}, "KEYMAN_JWT_JWKS_URL must be an https URL"),
        ({"KEYMAN_JWT_JWKS_FILE": "/nowhere/c4n4ry"}, "KEYMAN_JWT_JWKS_FILE names a file that does not exist"),
        ({"KEYMAN_JWT_JWKS_FILE": __file__}, "KEYMAN_JWT_JWKS_FILE names a file that is not a JSON Web Key Set"),
        (
            {"KEYMAN_JWT_JWKS_FILE": __file__, "KEYMAN_JWT_JWKS_URL": "https://id.example.com/jwks"},
            "KEYMAN_JWT_JWKS_URL and KEYMAN_JWT_JWKS_FILE are both set",
        ),
        ({"KEYMAN_JWT_SCOPES": "keys:c4n4ry"}, "KEYMAN_JWT_SCOPES may contain only"),
        ({"KEYMAN_JWT_SIGNUP": "c4n4ry"}, "KEYMAN_JWT_SIGNUP must be one of open, closed"),
    ],
)
def test_a_wrong_value_is_named_and_not_repeated(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError) as fault:
        load_jwt({**ISSUER, **changes})
    assert named in str(fault.value)
    assert "c4n4ry" not in str(fault.value)


def test_the_audience_is_not_the_client_of_the_sign_in() -> None:
    sign_in = {"KEYMAN_OIDC_ISSUER": "https://id.example.com", "KEYMAN_OIDC_CLIENT_ID": "keyman"}
    with pytest.raises(ConfigurationError, match="KEYMAN_JWT_AUDIENCE must not be KEYMAN_OIDC_CLIENT_ID"):
        check_own({**ISSUER, **sign_in})
    check_own({**ISSUER, **sign_in, "KEYMAN_OIDC_CLIENT_ID": "pages"})


def test_the_audience_is_not_that_of_applications() -> None:
    with pytest.raises(ConfigurationError, match="KEYMAN_JWT_AUDIENCE must not be keyman-resolver"):
        check_own({**ISSUER, "KEYMAN_JWT_AUDIENCE": "keyman-resolver"})


def test_http_is_for_loopback() -> None:
    for issuer in ("http://127.0.0.1:9000", "http://localhost/realm", "http://[::1]:1"):
        found = load_jwt({**ISSUER, "KEYMAN_JWT_ISSUER": issuer})
        assert found is not None
        assert found.issuer == issuer
