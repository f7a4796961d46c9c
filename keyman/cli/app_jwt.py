"""The options of `keyman app create` for an application that logs in with a JWT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from keyman.cli.common import parsed
from keyman.config.identity import WORKLOAD_AUDIENCE, audience_of, discoverable_issuer, issuer, issuer_url, load_jwt
from keyman.identity.applications import Workload
from keyman.identity.jwks import MAX_BYTES, KeySet
from keyman.values import Subject

T = TypeVar("T")


def workload_of(options: Mapping[str, object], environ: Mapping[str, str]) -> Workload | None:
    """Return the login by JWT that the options describe, or None. Raises click.UsageError (exit code 2)."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return None
    if not {"jwt_issuer", "jwt_subject"} <= given.keys():
        raise click.UsageError("Give --jwt-issuer and --jwt-subject together, with every other --jwt- option.")
    if {"jwt_jwks_url", "jwt_jwks_file"} <= given.keys():
        raise click.UsageError("Give either --jwt-jwks-url or --jwt-jwks-file.")
    has_keys = not given.keys().isdisjoint({"jwt_jwks_url", "jwt_jwks_file"})
    return Workload(
        _parsed(issuer if has_keys else discoverable_issuer, given["jwt_issuer"], "--jwt-issuer"),
        parsed(Subject, str(given["jwt_subject"]), "--jwt-subject"),
        _audience(str(given.get("jwt_audience", WORKLOAD_AUDIENCE)), environ),
        _parsed(issuer_url, given["jwt_jwks_url"], "--jwt-jwks-url") if "jwt_jwks_url" in given else None,
        _parsed(_key_set, given["jwt_jwks_file"], "--jwt-jwks-file") if "jwt_jwks_file" in given else None,
    )


def _audience(text: str, environ: Mapping[str, str]) -> str:
    audience = _parsed(audience_of, text, "--jwt-audience")
    users = load_jwt(environ)
    if users is not None and users.audience == audience:
        raise of_users()
    return audience


def of_users() -> click.BadParameter:
    """Return the fault of an audience that is that of users (exit code 2)."""
    return click.BadParameter(
        "must not be KEYMAN_JWT_AUDIENCE: a token of a user would be one of the application",
        param_hint="--jwt-audience",
    )


def _key_set(name: str) -> str:
    """Return the content of a file with a key set that has a key which keyman can use."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError:
        raise ValueError("names a file that cannot be read") from None
    try:
        is_usable = len(KeySet.parse(content)) > 0
    except ValueError as fault:
        raise ValueError(f"names a file that {fault}") from None
    if not is_usable:
        raise ValueError("names a file without a key that verifies signatures")
    return content.decode()


def _parsed(parse: Callable[[str], T], text: object, name: str) -> T:
    try:
        return parse(str(text))
    except ValueError as fault:
        raise click.BadParameter(str(fault), param_hint=name) from None
