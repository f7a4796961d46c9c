"""Fingerprints: what they are computed of, in how few calls, and what happens if Vault refuses them."""

from __future__ import annotations

import asyncio
import hashlib
from uuid import UUID

import pytest

from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault.duplicates import TransitFingerprints, _message
from keyman.vault.login import VaultClient
from tests.support.logs import capture_logs
from tests.vault.bench import Bench

pytestmark = pytest.mark.anyio

DEPLOYMENT, VALUE = UUID(int=1), Secret("sk-canary-4f1f7a2e9b")


def test_each_part_stands_after_its_length() -> None:
    message = _message(DEPLOYMENT, 7, "OPENAI", Secret("sk-x"))
    deployment = str(DEPLOYMENT).encode()
    expected = b"\0\0\0\x0dkeyman|dup|v1\0\0\0\x24" + deployment + b"\0\0\0\x017\0\0\0\x06OPENAI\0\0\0\x04sk-x"
    assert message == expected
    assert _message(DEPLOYMENT, 1, "1OPENAI", Secret("x")) != _message(DEPLOYMENT, 11, "OPENAI", Secret("x"))


async def test_a_fingerprint_stays_the_same_and_differs_with_each_part(bench: Bench) -> None:
    client = VaultClient(bench.settings, Metrics())
    fingerprints = TransitFingerprints(client, bench.settings)
    try:
        asked = [
            (DEPLOYMENT, 7, "OPENAI", VALUE),
            (UUID(int=2), 7, "OPENAI", VALUE),
            (DEPLOYMENT, 8, "OPENAI", VALUE),
            (DEPLOYMENT, 7, "DEEPSEEK", VALUE),
            (DEPLOYMENT, 7, "OPENAI", Secret("sk-canary-4f1f7a2e9c")),
        ]
        found = await asyncio.gather(*(fingerprints.start(*one) for one in asked * 2))
        assert found[:5] == found[5:]
        assert len(set(found)) == 5
        assert all(one is not None and len(one) == 32 for one in found)
        assert hashlib.sha256(VALUE.reveal().encode()).digest() not in found
        assert hashlib.sha256(_message(*asked[0])).digest() not in found
    finally:
        await fingerprints.close()
        await client.close()


async def test_a_key_that_is_missing_is_no_error_and_tells_nothing_of_the_value(bench: Bench) -> None:
    other = bench.with_settings(key="missing")
    client = VaultClient(other.settings, Metrics())
    fingerprints = TransitFingerprints(client, other.settings)
    try:
        with capture_logs() as logs:
            for _ in range(3):
                assert await fingerprints.start(DEPLOYMENT, 7, "OPENAI", VALUE) is None
        assert [line["event"] for line in logs].count("vault call failed") == 1
        assert VALUE.reveal() not in repr(logs)
    finally:
        await fingerprints.close()
        await client.close()
