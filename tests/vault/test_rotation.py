"""Versions of the encryption key, on the embedded server and on the container, with the rotator's login."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from keyman.errors import VaultReason
from keyman.metrics import Metrics
from keyman.vault.cipher import Context
from keyman.vault.login import VaultClient
from keyman.vault.provision import issue_credentials
from keyman.vault.rotation import MAX_BATCH, Bound, KeyRotation
from tests.vault.bench import Bench, a_context, refusal

pytestmark = pytest.mark.anyio


async def rotation_of(bench: Bench, role: str = "keyman-rotator") -> KeyRotation:
    issued = await issue_credentials(bench.admin, role)
    settings = replace(bench.settings, role_id=issued.role_id, secret_id=issued.secret_id)
    client = VaultClient(settings, Metrics())
    bench.stack.push_async_callback(client.close)
    return KeyRotation(client, settings)


async def sealed(bench: Bench, context: Context, text: str = "sk-1") -> Bound:
    answer = await bench.transit.encrypt_data(
        bench.settings.key,
        base64.b64encode(text.encode()).decode(),
        context=context.encoded(),
        mount_point=bench.settings.mount,
    )
    return Bound(answer["data"]["ciphertext"], context.encoded())


async def test_a_rotation_makes_the_next_version_and_keeps_the_old_ones(bench: Bench) -> None:
    rotation = await rotation_of(bench)
    assert await rotation.versions() == (1, 1)
    assert await rotation.rotate() == (2, 1)
    assert await rotation.versions() == (2, 1)


async def test_each_item_has_a_result_of_its_own(bench: Bench) -> None:
    rotation = await rotation_of(bench)
    contexts = [a_context() for _ in range(4)]
    items = [await sealed(bench, context, f"sk-{n}") for n, context in enumerate(contexts)]
    await rotation.rotate()
    wrong = [
        Bound(items[1].ciphertext, items[2].context),
        Bound("vault:v9:" + items[1].ciphertext[9:], items[1].context),
        Bound("vault:v1:AAAA", items[1].context),
        Bound("nothing like it", items[1].context),
        Bound("", items[1].context),
        Bound(items[1].ciphertext, ""),
    ]
    results = await rotation.rewrap([items[0], *wrong, items[3]])
    assert results[1:-1] == [None] * len(wrong)
    for number, result in ((0, results[0]), (3, results[-1])):
        assert result is not None
        assert result.key_version == 2
        assert result.ciphertext.startswith("vault:v2:")
        assert await bench.opened(result.ciphertext, contexts[number]) == f"sk-{number}"


async def test_a_full_batch_is_taken_and_items_keep_their_order(bench: Bench) -> None:
    rotation = await rotation_of(bench)
    contexts = [a_context() for _ in range(3)]
    items = [await sealed(bench, context, f"sk-{n}") for n, context in enumerate(contexts)]
    await rotation.rotate()
    results = await rotation.rewrap(items * (MAX_BATCH // 3))
    assert len(results) == MAX_BATCH
    for number, result in enumerate(results[-3:]):
        assert result is not None
        assert await bench.opened(result.ciphertext, contexts[number]) == f"sk-{number}"


async def test_a_batch_that_is_refused_as_a_whole_is_taken_apart(bench: Bench) -> None:
    """Of a context that is no base64 Vault says nothing but 400 for all."""
    rotation = await rotation_of(bench)
    context = a_context()
    good = await sealed(bench, context)
    results = await rotation.rewrap([good, Bound(good.ciphertext, "§"), good, good])
    assert [result is not None for result in results] == [True, False, True, True]


async def test_the_management_role_rewraps_and_cannot_rotate(bench: Bench) -> None:
    rotation = await rotation_of(bench, "keyman-management")
    item = await sealed(bench, a_context())
    assert (await rotation.rewrap([item]))[0] is not None
    assert await refusal(rotation.rotate()) is VaultReason.FORBIDDEN


async def test_the_resolver_role_can_do_neither(bench: Bench) -> None:
    rotation = await rotation_of(bench, "keyman-resolver")
    item = await sealed(bench, a_context())
    for attempt in (rotation.versions(), rotation.rotate(), rotation.rewrap([item])):
        assert await refusal(attempt) is VaultReason.FORBIDDEN
