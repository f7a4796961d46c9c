"""Where a client may send a token, and where it reads the token."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from stack.certificates import authority, issue

from keyman.client import AsyncKeyman, AsyncResolver, Forbidden, Keyman, Resolver, Secret, Unreachable
from keyman.identity.tokens import Token
from tests.client.asking import TOKEN, VALUE, Asked, Kind, given, problem, resolver
from tests.support.http import faulty_server

CLIENTS = (Resolver, AsyncResolver, Keyman, AsyncKeyman)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "url",
    [
        "http://keyman.example.com",
        "http://10.0.0.1:8001",
        "http://localhost.example.com",
        "http://notlocalhost",
        "http://[2001:db8::1]",
    ],
)
def test_plain_http_is_only_for_loopback(client: type[Resolver], url: str) -> None:
    with pytest.raises(ValueError, match="plain http") as caught:
        client(url, TOKEN)
    assert TOKEN not in str(caught.value)
    assert "at http" in repr(client(url, TOKEN, allow_http=True)).replace(" of ", " at ")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8001",
        "http://[::1]:8001",
        "http://localhost",
        "http://keyman.localhost",
        "http://KEYMAN.localhost:8001",
        "https://10.0.0.1/x/",
    ],
)
def test_loopback_and_https_are_taken(url: str) -> None:
    assert not repr(Resolver(url, TOKEN)).endswith("/>")


@pytest.mark.parametrize(
    "url",
    [
        "keyman.example.com",
        "ftp://x",
        "https://",
        "https://user:pw@x",
        "https://x/?a=b",
        "https://x/#f",
        "https://x\n",
        "https://a..example.com",
        "https://.example.com",
        f"https://{'a' * 64}.example.com",
        f"https://{'a.' * 127}com",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="URL must") as caught:
        Resolver(url, TOKEN)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("token", ["x", f"{TOKEN}\r\nX-Evil: 1", f"Bearer {TOKEN}", TOKEN[:-1], VALUE])
def test_what_is_no_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ValueError, match="token must") as caught:
        Resolver("https://x", token)
    assert token not in repr(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, 301, float("nan"), float("inf")])
def test_a_call_has_a_bound(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Resolver("https://x", TOKEN, timeout=timeout)


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KEYMAN_APP_TOKEN or KEYMAN_APP_TOKEN_FILE"):
        Resolver("https://x")
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KEYMAN_APP_TOKEN_FILE", str(file))
    with pytest.raises(ValueError, match="KEYMAN_RESOLVER_URL"):
        Resolver()
    monkeypatch.setenv("KEYMAN_RESOLVER_URL", "https://resolver.example.com")
    assert repr(Resolver()) == "<Resolver of https://resolver.example.com>"
    monkeypatch.setenv("KEYMAN_TOKEN", "no token")
    with pytest.raises(ValueError, match="token must"):
        Keyman("https://x")
    assert Keyman("https://x", Secret(TOKEN))


@pytest.mark.anyio
async def test_a_token_in_a_file_is_read_again_and_the_last_one_counts_while_there_is_none(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation replaces the file, or the link to it; some tools empty it first."""
    file, second, third = tmp_path / "token", Token.generate().reveal(), Token.generate().reveal()
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KEYMAN_APP_TOKEN_FILE", str(file))
    async with faulty_server([given()]) as server, _from_environment(kind, server.address) as client:
        for content in (None, second, "", "km_half", "\ufffd", None, third):
            if content is not None:
                file.write_text(content)
            await client.resolve()
        file.unlink()
        await client.resolve()
    sent = [request.headers["authorization"].removeprefix("Bearer ") for request in server.requests]
    assert sent == [TOKEN, second, second, second, second, second, third, third]


@pytest.mark.anyio
async def test_an_error_repeats_neither_the_token_of_a_file_nor_the_one_before(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, second = tmp_path / "token", Token.generate().reveal()
    file.write_text(TOKEN)
    monkeypatch.setenv("KEYMAN_APP_TOKEN_FILE", str(file))
    refusal = problem(403, "forbidden", f"neither {TOKEN} nor {second}")
    async with faulty_server([given(), refusal]) as server, _from_environment(kind, server.address) as client:
        await client.resolve()
        file.write_text(second)
        with pytest.raises(Forbidden, match=r"neither \*\*\* nor \*\*\*"):
            await client.resolve()


@asynccontextmanager
async def _from_environment(kind: Kind, url: str) -> AsyncIterator[Asked]:
    if kind == "async":
        async with AsyncResolver(url) as client:
            yield Asked(client)
    else:
        with Resolver(url) as blocking:
            yield Asked(blocking)


def test_a_line_break_at_the_end_of_a_variable_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KEYMAN_RESOLVER_URL", "https://resolver.example.com\n")
    monkeypatch.setenv("KEYMAN_APP_TOKEN_FILE", f"{file}\n")
    assert repr(Resolver()) == "<Resolver of https://resolver.example.com>"
    monkeypatch.setenv("KEYMAN_TOKEN", f"{TOKEN}\r\n")
    assert Keyman("https://x")


def test_authorities_that_would_not_be_asked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ca_file"):
        Resolver("https://x", TOKEN, ca_file=tmp_path, transport=httpx.HTTPTransport())


@pytest.mark.anyio
async def test_no_variable_has_the_keys_of_a_connection_written_down(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with resolver(kind, "https://127.0.0.1:1") as client:
        with pytest.raises(Unreachable):
            await client.resolve()
    assert not (tmp_path / "keys").exists()


@pytest.mark.anyio
async def test_a_certificate_is_verified(kind: Kind, tmp_path: Path) -> None:
    """Neither a stranger's, nor one for another name; and nothing is sent to either."""
    ours, theirs = authority(tmp_path), authority(_new(tmp_path / "theirs"))
    (tmp_path / "server.pem").write_bytes((pair := issue(ours, ["127.0.0.1"])).certificate_pem() + pair.key_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "server.pem")
    assert theirs
    async with faulty_server([given()], serving) as server:
        for ca_file, url in (
            (None, server.address),
            (tmp_path / "theirs" / "ca.crt", server.address),
            (tmp_path / "ca.crt", server.address.replace("127.0.0.1", "localhost")),
        ):
            async with resolver(kind, url, ca_file=ca_file) as client:
                with pytest.raises(Unreachable, match="certificate"):
                    await client.resolve()
        assert server.requests == []
        async with resolver(kind, server.address, ca_file=tmp_path / "ca.crt") as client:
            assert (await client.resolve()).reveal() == VALUE
        async with resolver(kind, server.address.replace("https:", "http:")) as client:
            with pytest.raises(Unreachable):
                await client.resolve()


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory
