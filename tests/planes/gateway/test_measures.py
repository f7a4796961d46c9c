"""What the metrics and the log say of a request: the provider's faults are not keyman's."""

from __future__ import annotations

import asyncio

import pytest

from keyman.identity import applications
from keyman.values import ApplicationName
from tests.planes.gateway.provider import Incoming
from tests.planes.gateway.scene import CHAT, Scene
from tests.support.logs import capture_logs

pytestmark = pytest.mark.anyio


def sample(scene: Scene, name: str, **labels: str) -> float | None:
    return scene.app.metrics.registry.get_sample_value(name, labels)


def errors(scene: Scene) -> dict[str, float]:
    """The errors of the plane by status."""
    families = scene.app.metrics.registry.collect()
    (found,) = (family for family in families if family.name == "keyman_http_errors")
    return {one.labels["status"]: one.value for one in found.samples if one.name.endswith("_total")}


async def test_an_error_of_the_provider_is_no_error_of_the_plane(gateway: Scene) -> None:
    for status in (500, 503, 429):
        gateway.provider.answers(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)
        before = errors(gateway)
        assert (await gateway.post()).status == status
        assert errors(gateway) == before


async def test_an_answer_that_is_refused_is_an_error_of_the_plane(gateway: Scene) -> None:
    gateway.provider.answers(b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 0\r\n\r\n")
    before = errors(gateway)
    assert (await gateway.post()).status == 502
    assert errors(gateway) == {**before, "502": before["502"] + 1}


async def test_every_counter_of_a_service_is_0_from_the_start(gateway: Scene) -> None:
    for name in ("keyman_gateway_answer_bytes_total", "keyman_gateway_unanswered_total"):
        assert sample(gateway, name, service="MISTRAL") == 0.0


async def test_a_request_counts_as_under_way_from_when_it_is_sent(gateway: Scene) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        asked.set()
        await go.wait()
        await incoming.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    gateway.provider.handler = handler
    assert sample(gateway, "keyman_gateway_requests_open") == 0
    talk = gateway.talk()
    talk.give(b"")
    async with asyncio.timeout(10):
        await asked.wait()
    assert sample(gateway, "keyman_gateway_requests_open") == 1
    go.set()
    assert await talk.begun() == 204
    await talk.ended()
    assert sample(gateway, "keyman_gateway_requests_open") == 0


async def test_a_stream_that_is_cut_is_logged_with_the_reason_and_is_no_fault(gateway: Scene) -> None:
    async def handler(incoming: Incoming) -> None:
        await incoming.rest()
        await incoming.begin()
        await incoming.event(b"one")
        await incoming.closed()

    gateway.provider.handler = handler
    before = errors(gateway)
    with capture_logs() as lines:
        talk = gateway.talk()
        talk.give(b"")
        assert await talk.begun() == 200
        assert await talk.part() == b"one"
        await applications.revoke(gateway.pair.management.database, ApplicationName(gateway.application.name))
        assert await talk.was_cut()
    assert errors(gateway) == {**before, "401": before["401"] + 1}
    logged_as = [(line["status"], line.get("cut")) for line in lines if line["event"] == "request"]
    assert logged_as == [(401, "unauthenticated")]


async def test_one_log_line_and_the_metrics_have_how_a_request_went(gateway: Scene) -> None:
    before = sample(gateway, "keyman_gateway_answer_bytes_total", service="OPENAI") or 0
    seen = sample(gateway, "keyman_gateway_first_byte_seconds_count", service="OPENAI", status="2xx") or 0
    with capture_logs() as lines:
        answer = await gateway.post()
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["service"], line["status"], line["bytes"]) == ("OPENAI", 200, len(answer.body))
    assert 0 < line["first_byte_ms"] <= line["duration_ms"]
    assert sample(gateway, "keyman_gateway_answer_bytes_total", service="OPENAI") == before + len(answer.body)
    assert sample(gateway, "keyman_gateway_first_byte_seconds_count", service="OPENAI", status="2xx") == seen + 1


async def test_a_credential_in_the_query_is_not_logged(gateway: Scene) -> None:
    with capture_logs() as lines:
        assert (await gateway.post(path=f"{CHAT}?key=sk-of-somebody-1234")).status == 400
    assert lines
    assert "sk-of-somebody" not in str(lines)
