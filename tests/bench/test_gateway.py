"""The comparison of gateways: its arithmetic, its order, and that its provider and its bare proxy work."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner

from bench import gateway
from bench.bare_proxy import create_app as create_proxy
from bench.gateway import ALONE, BARE, DIRECT, KEYMAN, KINDS, LITELLM, Kind
from bench.peers import install
from bench.provider import ANSWER, EVENTS, STREAM, create_app
from bench.wrk import Measured

PLAIN = Kind(0, is_streamed=False)


def measured(rate: float, p50: float) -> Measured:
    return Measured(rate, p50, 2 * p50, 0, {})


def test_a_rate_is_compared_with_a_rate_and_an_added_time_with_an_added_time() -> None:
    results = {(PLAIN.of(DIRECT), 32): measured(8000, 4), (PLAIN.of(BARE), 32): measured(3000, 10)}
    results |= {(PLAIN.of(KEYMAN), 32): measured(1500, 22), (PLAIN.of(LITELLM), 32): measured(30, 904)}
    results |= {(PLAIN.of(DIRECT), ALONE): measured(8000, 0.5), (PLAIN.of(KEYMAN), ALONE): measured(200, 4.5)}
    found = {one.label: (one.value, one.goal, one.is_at_most) for one in gateway.ratios(results, commit=2.0)}
    assert found == {
        "plain, 0 ms, 32 clients: requests a second ÷ those of bare proxy": (0.5, 0.33, False),
        "plain, 0 ms, 32 clients: added p50 ÷ that of bare proxy": (3.0, 4, True),
        "plain, 0 ms, 32 clients: requests a second ÷ those of LiteLLM": (50.0, 20, False),
        "plain, 0 ms, 32 clients: added p50 ÷ that of LiteLLM": (0.02, 0.1, True),
        "plain, 0 ms, 1 client: added p50 ÷ p50 of a durable commit": (2.0, None, False),
    }


def test_what_is_compared_follows_one_another() -> None:
    servers = {name: lambda kind: gateway.target("http://127.0.0.1:1", kind) for name in (DIRECT, BARE, KEYMAN)}
    order = list(gateway.plan([1, 32], servers))
    assert order[:4] == [*((PLAIN.of(name), 1) for name in (DIRECT, BARE, KEYMAN)), (PLAIN.of(DIRECT), 32)]
    assert len(order) == 3 * 2 * len(KINDS)


def test_the_table_shows_what_each_server_adds() -> None:
    results = {(kind.of(name), 1): measured(1, p50) for kind in KINDS for name, p50 in ((DIRECT, 1), (KEYMAN, 3.5))}
    assert gateway.added_table(results, [1]).splitlines()[0] == "| added p50 in ms | clients | keyman |"
    assert gateway.added_table(results, [1]).splitlines()[-1] == "| 40 events, 20 ms | 1 | 2.50 |"


@pytest.mark.anyio
@pytest.mark.parametrize("through_proxy", [False, True])
async def test_the_provider_answers_plainly_and_in_events(through_proxy: bool) -> None:
    async with TestServer(create_app()) as provider, TestServer(create_proxy(str(provider.make_url("")))) as proxy:
        client: TestClient[web.Request, None] = TestClient(proxy if through_proxy else provider)
        wanted = {kind: gateway.target("/v1", kind).bodies[0] for kind in KINDS}
        plain = await client.post("/20/v1/chat/completions", json=wanted[KINDS[0]])
        assert (plain.content_type, await plain.read()) == ("application/json", ANSWER)
        streamed = await client.post("/0/v1/chat/completions", json=wanted[KINDS[1]])
        assert (streamed.content_type, await streamed.read()) == ("text/event-stream", b"".join(STREAM))
        assert len(STREAM) == EVENTS
        await client.close()


def test_a_peer_that_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(click.ClickException, match=r"litellm 1\.0 could not be installed"):
        install("litellm[proxy]", "1.0")


def test_the_command_describes_its_options_and_needs_wrk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--without-litellm" in CliRunner().invoke(gateway.main, ["--help"]).output
    monkeypatch.setenv("PATH", "/nonexistent")
    result = CliRunner().invoke(gateway.main, [])
    assert result.exit_code == 1
    assert "apt-get install wrk" in result.output
