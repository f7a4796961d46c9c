"""An issuer whose certificate a private authority signed counts with `KEYMAN_JWT_CACERT` or `KEYMAN_OIDC_CACERT`."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keyman.config.identity import JwtSettings
from keyman.config.oidc import OidcSettings
from keyman.errors import IssuerUnavailable
from keyman.identity.jose import Rules
from keyman.identity.jwt import keys_of
from keyman.identity.key_sets import verify
from keyman.identity.provider import Provider
from keyman.secret import Secret
from tests.support.http import faulty_server
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.openid import Forger

pytestmark = pytest.mark.anyio


def self_signed(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, which is its own authority, and its key."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=issuer", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[tuple[Issuer, Forger, Path]]:
    """An issuer of JWTs and a provider behind one certificate, and the file with its authority."""
    certificate, key = self_signed(tmp_path, "issuer")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    issuer, forger = Issuer(""), Forger()
    async with faulty_server(issuer.reply, context) as of_issuer, faulty_server(forger, context) as of_forger:
        issuer.url, forger.address = of_issuer.address, of_forger.address
        assert issuer.url.startswith("https://")
        yield issuer, forger, certificate


async def test_the_keys_of_the_issuer_come_only_over_a_connection_that_its_authority_vouches_for(
    private: tuple[Issuer, Forger, Path], tmp_path: Path
) -> None:
    issuer, _, authority = private
    another, _ = self_signed(tmp_path, "another")
    rules = Rules(issuer.url, AUDIENCE)
    for trusted, is_reached in ((authority, True), (another, False), (None, False)):
        keys = keys_of(JwtSettings(issuer.url, AUDIENCE), trusted)
        if is_reached:
            assert (await verify(issuer.token(), keys, rules)).subject == "ada"
        else:
            with pytest.raises(IssuerUnavailable):
                await verify(issuer.token(), keys, rules)
        await keys.close()


async def test_so_do_all_answers_of_the_provider(private: tuple[Issuer, Forger, Path], tmp_path: Path) -> None:
    _, forger, authority = private
    another, _ = self_signed(tmp_path, "another")
    for trusted, is_reached in ((authority, True), (another, False), (None, False)):
        settings = OidcSettings(forger.address, "keyman", cacert=trusted)
        provider = Provider(settings, "https://keys.example.com")
        if is_reached:
            assert (await provider.exchange("the-code", "the-verifier")).id_token
            assert (await provider.userinfo(Secret("access"), "user-42"))["sub"] == "user-42"
        else:
            with pytest.raises(IssuerUnavailable):
                await provider.metadata()
        await provider.close()
    assert len(forger.forms) == 1
