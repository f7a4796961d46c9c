"""Checks of the issuers of identities: of JSON Web Tokens, and of the sign-in with OpenID Connect."""

from __future__ import annotations

from collections.abc import AsyncIterator

from keyman.clock import now
from keyman.config.identity import JwtSettings
from keyman.config.oidc import OidcSettings
from keyman.config.settings import Settings
from keyman.doctor.findings import Finding, failed, ok, warning
from keyman.doctor.vault import clock
from keyman.errors import IssuerUnavailable
from keyman.identity.fetching import Fetcher, FetchFailed
from keyman.identity.jwks import KeySet
from keyman.identity.key_sets import FileKeys, keys_address
from keyman.identity.provider import Provider, redirect_uri
from keyman.quantities import quantity

NO_KEY = "let it sign with RS256, PS256, ES256, EdDSA or their longer forms, and RSA keys of 2,048 bits or more"


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Check what is set up: JSON Web Tokens, OpenID Connect, both or neither."""
    if settings.jwt is not None:
        async for finding in _of_jwt(settings, settings.jwt):
            yield finding
    if settings.oidc is not None:
        async for finding in _of_oidc(settings, settings.oidc):
            yield finding


async def _of_jwt(settings: Settings, jwt: JwtSettings) -> AsyncIterator[Finding]:
    fetcher = Fetcher(settings.jwt_ca_certificate)
    try:
        keys = await _keys(fetcher, jwt)
    except (FetchFailed, ValueError) as fault:
        yield failed(
            "jwt-issuer",
            f"the keys of KEYMAN_JWT_ISSUER cannot be used: it {fault}",
            "check KEYMAN_JWT_ISSUER byte for byte, KEYMAN_JWT_JWKS_URL or KEYMAN_JWT_JWKS_FILE, and KEYMAN_JWT_CACERT",
        )
        return
    yield _count("jwt-issuer", keys)
    if fetcher.date is not None:
        yield clock("jwt-clock", (now() - fetcher.date).total_seconds(), "the issuer's")


async def _keys(fetcher: Fetcher, jwt: JwtSettings) -> KeySet:
    if jwt.jwks_file is not None:
        return await FileKeys(jwt.jwks_file).current()
    return KeySet.parse(await fetcher.get(jwt.jwks_url or await keys_address(fetcher, jwt.issuer)))


async def _of_oidc(settings: Settings, oidc: OidcSettings) -> AsyncIterator[Finding]:
    fetcher, base = Fetcher(oidc.cacert), f"{settings.public_url or ''}{settings.root_path}"
    provider = Provider(oidc, base)
    try:
        keys = KeySet.parse(await fetcher.get(await keys_address(fetcher, oidc.issuer)))
        await provider.metadata()
    except (FetchFailed, ValueError) as fault:
        yield failed(
            "oidc-provider",
            f"KEYMAN_OIDC_ISSUER cannot be used: it {fault}",
            "compare KEYMAN_OIDC_ISSUER with `issuer` in the provider's discovery document, byte for byte, and check "
            "KEYMAN_OIDC_CACERT",
        )
        return
    except IssuerUnavailable:
        yield failed(
            "oidc-provider", "its discovery document lacks an address, or has one that is not https", "ask its operator"
        )
        return
    yield _count("oidc-provider", keys)
    if fetcher.date is not None:
        yield clock("oidc-clock", (now() - fetcher.date).total_seconds(), "the provider's")
    yield await _redirect(provider, base)


async def _redirect(provider: Provider, base: str) -> Finding:
    """Check whether the provider knows keyman's redirect address. Not every provider says so without a sign-in."""
    address = redirect_uri(base)
    try:
        knows = await provider.knows_redirect()
    except IssuerUnavailable:
        knows = None
    if knows is False:
        return failed(
            "oidc-redirect", f"the provider refuses {address}", "register exactly this address at the provider"
        )
    if knows is None:
        return warning(
            "oidc-redirect",
            "the provider does not say whether it knows the redirect address",
            f"register exactly this address at the provider: {address}",
        )
    return ok("oidc-redirect", f"the provider knows {address}")


def _count(check: str, keys: KeySet) -> Finding:
    if not len(keys):
        return warning(check, "the issuer has no key that verifies a token", NO_KEY)
    return ok(check, f"has {quantity(len(keys), 'key')} that keyman can use")
