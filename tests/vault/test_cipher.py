"""Sealing: a ciphertext opens only under its own context, sealing takes few calls, a failure shows nothing."""

import asyncio
import base64
import contextlib
import json
import string
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyman.batching import _Waiting
from keyman.dev import embedded
from keyman.errors import VaultReason, VaultUnavailable
from keyman.secret import Secret
from keyman.vault import cipher as module
from keyman.vault.adapter import AsyncAdapter, VaultFault
from keyman.vault.cipher import MAX_BATCH, MAX_BATCHES, Context, Item, Sealed, TransitCipher
from tests.support.exceptions import everything_in
from tests.support.fast import examples
from tests.support.http import Call, RecordingProxy
from tests.support.vault import as_running, kill
from tests.support.waiting import becomes
from tests.vault.bench import Bench, SealableVault, a_context, bench_at, refusal

pytestmark = pytest.mark.anyio

ENCRYPT = "/encrypt/"
CANARY = "sk-canary-4f1f7a2e9b"
VISIBLE = string.printable.strip()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def put_in(cipher: TransitCipher, plaintext: str, context: str) -> _Waiting[Item, Sealed]:
    """A value in the queue as `encrypt` puts it there, but for what is given as base64. The next `encrypt` sends it."""
    item, result = {"plaintext": plaintext, "context": context}, asyncio.get_running_loop().create_future()
    waiting = _Waiting[Item, Sealed](item, result)
    cipher._batcher._queue.append(waiting)
    return waiting


def items_of(proxy: RecordingProxy) -> list[int]:
    """How many values each call to encrypt held; the guard's, which seals the sentinel, is none of them."""
    return [len(call.json["batch_input"]) for call in proxy.to(ENCRYPT) if "batch_input" in call.json]


async def some(cipher: TransitCipher, count: int) -> list[tuple[str, Context, Sealed]]:
    """Seal that many values at once."""
    values = [(f"value-{number:04}", a_context(number)) for number in range(count)]
    sealed = await asyncio.gather(*(cipher.encrypt(Secret(text), context) for text, context in values))
    return [(text, context, one) for (text, context), one in zip(values, sealed, strict=True)]


async def waiting_in(cipher: TransitCipher, count: int) -> None:
    async with asyncio.timeout(30):
        while len(cipher._batcher._queue) < count:
            await asyncio.sleep(0)


# --- What is sealed


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(alphabet=VISIBLE, min_size=8, max_size=512))
async def test_what_is_sealed_opens_to_the_same_text(bench: Bench, text: str) -> None:
    context = a_context()
    sealed = await bench.cipher().encrypt(Secret(text), context)
    assert await bench.opened(sealed.ciphertext, context) == text
    assert text not in sealed.ciphertext


async def test_a_context_has_the_layout_that_other_programs_rely_on() -> None:
    context = Context(uuid4(), 7, "OPENAI", uuid4())
    layout = f"keyman|v1|{context.deployment}|7|OPENAI|{context.value}"
    assert base64.b64decode(context.encoded()).decode() == layout


@pytest.mark.parametrize(
    "change",
    [
        {"deployment": UUID(int=1)},
        {"owner_id": 8},
        {"owner_id": 71},
        {"owner_id": 0},
        {"service": "ANTHROPIC"},
        {"service": "openai"},
        {"service": "OPENAI|"},
        {"value": UUID(int=1)},
    ],
    ids=str,
)
async def test_a_ciphertext_does_not_open_in_another_row(bench: Bench, change: dict[str, Any]) -> None:
    context = a_context(7, "OPENAI")
    sealed = await bench.cipher().encrypt(Secret(CANARY), context)
    assert await bench.opened(sealed.ciphertext, context) == CANARY
    with pytest.raises(VaultFault) as caught:
        await bench.opened(sealed.ciphertext, context._replace(**change))
    assert caught.value.status == 400


async def test_the_same_value_twice_gives_two_ciphertexts(bench: Bench) -> None:
    cipher, context = bench.cipher(), a_context()
    first, second = [await cipher.encrypt(Secret(CANARY), context) for _ in range(2)]
    assert first.ciphertext != second.ciphertext


async def test_a_ciphertext_tells_the_version_of_its_key(bench: Bench) -> None:
    cipher, context = bench.cipher(), a_context()
    before = await cipher.encrypt(Secret(CANARY), context)
    await bench.transit.rotate_key(bench.settings.key, mount_point=bench.settings.mount)
    after = await cipher.encrypt(Secret(CANARY), context)
    assert (before.key_version, after.key_version) == (1, 2)
    assert before.ciphertext.startswith("vault:v1:")
    assert after.ciphertext.startswith("vault:v2:")
    for sealed in (before, after):
        assert await bench.opened(sealed.ciphertext, context) == CANARY


async def test_a_rewrapped_ciphertext_still_opens_in_its_row_and_no_other(bench: Bench) -> None:
    context = a_context()
    sealed = await bench.cipher().encrypt(Secret(CANARY), context)
    place = {"mount_point": bench.settings.mount}
    await bench.transit.rotate_key(bench.settings.key, **place)
    answer = await bench.transit.rewrap_data(bench.settings.key, sealed.ciphertext, context=context.encoded(), **place)
    assert await bench.opened(answer["data"]["ciphertext"], context) == CANARY
    with pytest.raises(VaultFault):
        await bench.opened(answer["data"]["ciphertext"], a_context())


# --- Batches


async def test_many_at_once_go_in_few_calls_and_each_gets_its_own(bench: Bench) -> None:
    cipher = await bench.warm_cipher()
    results = await some(cipher, 500)
    opened = await asyncio.gather(*(bench.opened(sealed.ciphertext, context) for _, context, sealed in results))
    assert opened == [text for text, _, _ in results]
    assert len({sealed.ciphertext for _, _, sealed in results}) == 500
    assert bench.count("keyman_vault_encrypt_batch_items_sum") == 500
    assert bench.count("keyman_vault_encrypt_batch_items_count") == 3


async def test_no_call_holds_more_than_vault_takes(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    await some(await seen.warm_cipher(), 1000)
    assert sum(items_of(proxy)) == 1000
    assert max(items_of(proxy)) == MAX_BATCH


async def under_way(cipher: TransitCipher, proxy: RecordingProxy) -> list[asyncio.Task[Sealed]]:
    """As many batches of one value as may be under way at once, each of them seen at the proxy."""
    before, tasks = len(proxy.to(ENCRYPT)), list[asyncio.Task[Sealed]]()
    for number in range(1, MAX_BATCHES + 1):
        tasks.append(asyncio.create_task(cipher.encrypt(Secret(f"away-{number}"), a_context())))
        await proxy.arrived(ENCRYPT, before + number)
    return tasks


async def test_a_value_leaves_at_once_while_few_are_under_way_and_the_rest_leave_together(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    cipher = await seen.warm_cipher()
    with proxy.holding(ENCRYPT):
        leaving = await under_way(cipher, proxy)
        staying = [asyncio.create_task(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(30)]
        await waiting_in(cipher, 30)
        await cipher._guard.verify(max_age=0)  # had any of them left too, it would have arrived before this
        assert items_of(proxy) == [1] * MAX_BATCHES
    await asyncio.gather(*leaving, *staying)
    assert items_of(proxy) == [1] * MAX_BATCHES + [30]


async def test_a_single_value_waits_for_no_timer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = await bench.warm_cipher()
    await cipher.encrypt(Secret(CANARY), a_context())
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    original = loop.call_at

    def call_at(when: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(original(when, callback, *args, **kwargs))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", call_at)
    await cipher.encrypt(Secret(CANARY), a_context())
    monkeypatch.undo()
    assert timers  # the deadlines
    assert [timer for timer in timers if not timer.cancelled() and timer.when() <= loop.time()] == []
    assert bench.count("keyman_vault_encrypt_batch_items_count") == 2


async def test_a_value_that_comes_when_a_batch_has_just_ended_is_not_left_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCHES", 1)
    cipher = await bench.warm_cipher()
    first = await put_in(cipher, encoded("first"), a_context().encoded())

    async def at_the_end_of_the_first() -> Sealed:
        await first.result  # wakes in the very turn of the loop in which the sender of the first is done
        return await cipher.encrypt(Secret("second"), a_context())

    late = asyncio.create_task(at_the_end_of_the_first())
    await asyncio.sleep(0)
    await cipher.encrypt(Secret("with the first"), a_context())
    assert (await late).key_version == 1


# --- One bad value


@pytest.mark.parametrize(
    ("plaintext", "context"),
    [("%%%", encoded("context")), (encoded("value"), "%%%"), (encoded("value"), "")],
    ids=["plaintext", "context", "no context"],
)
async def test_a_value_that_vault_refuses_does_not_fail_the_others(bench: Bench, plaintext: str, context: str) -> None:
    # With one part that is not base64 Vault answers 400 and a result for each; without a context, 400 and none.
    cipher = await bench.warm_cipher()
    broken = await put_in(cipher, plaintext, context)
    results = await some(cipher, 20)
    assert await refusal(broken.result) == VaultReason.ERROR
    for text, own_context, sealed in results:
        assert await bench.opened(sealed.ciphertext, own_context) == text


async def test_a_value_that_is_refused_within_an_answer_of_200_does_not_fail_the_others(bench: Bench) -> None:
    # As some versions of Vault answer: OpenBao's own body, with the status that it does not use.
    seen, proxy = await bench.behind_a_proxy()
    cipher = await seen.warm_cipher()
    with proxy.changing(ENCRYPT, lambda call, status, content: (200, content)):
        broken = await put_in(cipher, encoded("value"), "%%%")
        results = await some(cipher, 20)
    assert await refusal(broken.result) == VaultReason.ERROR
    for text, own_context, sealed in results:
        assert await bench.opened(sealed.ciphertext, own_context) == text
    assert items_of(proxy) == [21]


async def test_a_single_value_that_is_refused_is_not_asked_for_again(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    cipher = await seen.warm_cipher()
    broken = await put_in(cipher, encoded("value"), "")
    await cipher._batcher._work()
    assert await refusal(broken.result) == VaultReason.ERROR
    assert items_of(proxy) == [1]


# --- Answers that no Vault gives


def batch_results(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Call, int, bytes], tuple[int, bytes]]:
    def rewrite(call: Call, status: int, content: bytes) -> tuple[int, bytes]:
        answer = json.loads(content)
        answer["data"]["batch_results"] = change(answer["data"]["batch_results"])
        return status, json.dumps(answer).encode()

    return rewrite


GARBLED = {
    "none": batch_results(lambda results: []),
    "one too few": batch_results(lambda results: results[1:]),
    "one too many": batch_results(lambda results: [*results, results[0]]),
    "null": batch_results(lambda results: None),
    "nulls": batch_results(lambda results: [None for _ in results]),
    "no ciphertexts": batch_results(lambda results: [{"key_version": 1} for _ in results]),
    "empty ciphertexts": batch_results(lambda results: [{**one, "ciphertext": ""} for one in results]),
    "another version": batch_results(lambda results: [{**one, "key_version": 2} for one in results]),
    "a version in words": batch_results(lambda results: [{**one, "key_version": "1"} for one in results]),
    "the plaintext": batch_results(lambda results: [{**one, "ciphertext": encoded(CANARY)} for one in results]),
    "errors beside": batch_results(lambda results: [{**one, "error": CANARY} for one in results]),
    "{}": lambda call, status, content: (200, b"{}"),
    "[]": lambda call, status, content: (200, b"[]"),
    "nothing": lambda call, status, content: (200, b"null"),
    "no data": lambda call, status, content: (200, b'{"data": null}'),
    "no JSON": lambda call, status, content: (200, b"<html>"),
    "no UTF-8": lambda call, status, content: (200, b'"\xff"'),
    "a single ciphertext": lambda call, status, content: (200, b'{"data": {"ciphertext": "vault:v1:AAAA"}}'),
}


@pytest.mark.parametrize("rewrite", GARBLED.values(), ids=GARBLED.keys())
async def test_an_answer_that_is_not_understood_seals_nothing(
    bench: Bench, rewrite: Callable[[Call, int, bytes], tuple[int, bytes]]
) -> None:
    seen, proxy = await bench.behind_a_proxy()
    cipher = await seen.warm_cipher()
    with proxy.changing(ENCRYPT, rewrite):
        reasons = await asyncio.gather(
            *(refusal(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(3)),
        )
    assert set(reasons) == {VaultReason.ERROR}
    await cipher.encrypt(Secret(CANARY), a_context())


# --- Who gives up


async def test_who_is_cancelled_is_not_sealed_and_disturbs_nobody(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    cipher = await seen.warm_cipher()
    with proxy.holding(ENCRYPT):
        leaving = await under_way(cipher, proxy)
        queued = [asyncio.create_task(cipher.encrypt(Secret(f"queued-{n}"), a_context())) for n in range(10)]
        await waiting_in(cipher, 10)
        gone = [*queued[::2], leaving[0]]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
    stayed = await asyncio.gather(*queued[1::2], *leaving[1:])
    assert all(task.cancelled() for task in gone)
    assert len({sealed.ciphertext for sealed in stayed}) == len(stayed) == 5 + MAX_BATCHES - 1
    calls = [call.json.get("batch_input", []) for call in proxy.to(ENCRYPT)]
    sent = [item["plaintext"] for items in calls for item in items]
    assert sent == [encoded(f"away-{n}") for n in range(1, MAX_BATCHES + 1)] + [
        encoded(f"queued-{n}") for n in range(1, 10, 2)
    ]


async def test_who_runs_out_of_time_is_not_sealed_and_disturbs_nobody(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    patient = await seen.warm_cipher()
    hurried = replace(seen.settings, timeout=0.3)
    cipher = TransitCipher(patient._client, hurried, patient._guard, seen.metrics)
    with proxy.holding(ENCRYPT):
        leaving = await under_way(cipher, proxy)
        late = [asyncio.create_task(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(10)]
        assert {await refusal(task) for task in [*leaving, *late]} == {VaultReason.TIMEOUT}
    cipher._settings = seen.settings
    text, context, sealed = (await some(cipher, 1))[0]
    assert await bench.opened(sealed.ciphertext, context) == text
    assert sum(items_of(proxy)) == MAX_BATCHES + 1  # those under way, and the last one


# --- Vault goes away


@asynccontextmanager
async def callers_without_end(cipher: TransitCipher) -> AsyncIterator[list[VaultReason]]:
    """Twenty callers that seal one value after another until the block ends. It begins once each has sealed one.

    Every failure must be VaultUnavailable: the reasons.
    """
    over, faults, sealed = asyncio.Event(), list[VaultReason](), [0] * 20

    async def go_on(caller: int) -> None:
        while not over.is_set():
            try:
                await cipher.encrypt(Secret(CANARY), a_context())
                sealed[caller] += 1
            except VaultUnavailable as fault:
                faults.append(fault.reason)

    async with asyncio.TaskGroup() as group:
        for caller in range(len(sealed)):
            group.create_task(go_on(caller))
        await becomes(lambda: all(sealed), "a value of each caller")
        yield faults
        over.set()


async def recovered(cipher: TransitCipher) -> None:
    """Return when a value is sealed again: for a moment the guard still goes by what it saw last."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(VaultUnavailable):
                await cipher.encrypt(Secret(CANARY), a_context())
                return
            await asyncio.sleep(0.05)


async def test_when_vault_is_sealed_every_caller_hears_it_and_then_it_goes_on(sealable_vault: SealableVault) -> None:
    cipher = await sealable_vault.bench.warm_cipher()
    async with callers_without_end(cipher) as faults:
        await sealable_vault.seal()
        reasons = await asyncio.gather(*(refusal(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(50)))
        assert set(reasons) == {VaultReason.SEALED}
        await becomes(lambda: VaultReason.SEALED in faults, "a caller that hears it")
    # While it seals itself Vault cuts calls off in its own ways; nothing is taken for a wrong key or a refused login.
    assert not {VaultReason.WRONG_KEY, VaultReason.LOGIN} & set(faults)
    await sealable_vault.unseal()
    await recovered(cipher)


async def test_when_vault_freezes_every_caller_hears_it_in_time_and_then_it_goes_on(
    sealable_vault: SealableVault,
) -> None:
    bench = sealable_vault.bench.with_settings(timeout=1.0)
    cipher = await bench.warm_cipher()
    leaving = [asyncio.create_task(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(50)]
    await asyncio.sleep(0)
    sealable_vault.freeze()
    async with asyncio.timeout(60):
        reasons = await asyncio.gather(*(refusal(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(50)))
        await asyncio.gather(*leaving, return_exceptions=True)
    assert set(reasons) == {VaultReason.TIMEOUT}
    sealable_vault.thaw()
    await recovered(cipher)
    text, context, sealed = (await some(cipher, 1))[0]
    assert await bench.opened(sealed.ciphertext, context) == text


async def test_when_vault_is_killed_every_caller_hears_it_and_nothing_sealed_is_lost(tmp_path: Path) -> None:
    server = await embedded.start(tmp_path / "vault")
    try:
        async with bench_at(as_running(server)) as bench:
            cipher = await bench.warm_cipher()
            kept = await some(cipher, 5)
            async with asyncio.timeout(60), callers_without_end(cipher) as faults:
                kill(server)
                attempts = [refusal(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(50)]
                assert set(await asyncio.gather(*attempts)) == {VaultReason.UNREACHABLE}
                await becomes(lambda: faults, "a caller that hears it")
            assert set(faults) == {VaultReason.UNREACHABLE}
            server = await embedded.start(tmp_path / "vault")
            bench.admin.base_uri = server.address
            for text, context, sealed in kept:
                assert await bench.opened(sealed.ciphertext, context) == text
            moved = bench.with_settings(address=server.address)
            await (await moved.warm_cipher()).encrypt(Secret(CANARY), a_context())
    finally:
        kill(server)


# --- The guard


async def test_nothing_is_returned_that_a_wrong_key_has_sealed(bench: Bench) -> None:
    cipher = await bench.warm_cipher()
    await bench.delete_key()
    await bench.make_key()
    cipher._guard._checked_at = float("-inf")  # a second has passed
    reasons = await asyncio.gather(*(refusal(cipher.encrypt(Secret(CANARY), a_context())) for _ in range(10)))
    assert set(reasons) == {VaultReason.WRONG_KEY}


async def test_a_key_that_is_gone_seals_nothing_and_is_not_made(bench: Bench) -> None:
    cipher = await bench.warm_cipher()
    await bench.delete_key()
    # The guard's last look was a moment ago: it is Vault that refuses.
    assert await refusal(cipher.encrypt(Secret(CANARY), a_context())) in (VaultReason.FORBIDDEN, VaultReason.WRONG_KEY)
    with pytest.raises(VaultFault) as caught:
        await bench.transit.read_key(bench.settings.key, mount_point=bench.settings.mount)
    assert caught.value.status == 404


async def test_a_database_without_its_sentinel_seals_nothing(bench: Bench) -> None:
    class Tampered:
        uuid = uuid4()

        async def sentinel(self, *, refresh: bool = False) -> None:
            return None

        async def store_sentinel(self, ciphertext: str) -> None:
            return None

    client = bench.client()
    cipher = TransitCipher(client, bench.settings, bench.guard(Tampered(), client), bench.metrics)
    assert await refusal(cipher.encrypt(Secret(CANARY), a_context())) == VaultReason.WRONG_KEY


# --- What the management plane's token may not do

FORBIDDEN: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "decrypt": ("POST", "{mount}/decrypt/{key}", {"ciphertext": "{ciphertext}", "context": "{context}"}),
    "decrypt a batch": (
        "POST",
        "{mount}/decrypt/{key}",
        {"batch_input": [{"ciphertext": "{ciphertext}", "context": "{context}"}]},
    ),
    "decrypt by PUT": ("PUT", "{mount}/decrypt/{key}", {"ciphertext": "{ciphertext}", "context": "{context}"}),
    "encrypt with another key": ("POST", "{mount}/encrypt/another", {"plaintext": "eA=="}),
    "make a key by encrypting": ("POST", "{mount}/encrypt/missing", {"plaintext": "eA=="}),
    "rewrap with another key": ("POST", "{mount}/rewrap/another", {"ciphertext": "vault:v1:AAAA"}),
    "export": ("GET", "{mount}/export/encryption-key/{key}", None),
    "export a version": ("GET", "{mount}/export/encryption-key/{key}/1", None),
    "backup": ("GET", "{mount}/backup/{key}", None),
    "restore": ("POST", "{mount}/restore/{key}", {"backup": "x"}),
    "data key": ("POST", "{mount}/datakey/plaintext/{key}", {"context": "eA=="}),
    "wrapped data key": ("POST", "{mount}/datakey/wrapped/{key}", {"context": "eA=="}),
    "hmac": ("POST", "{mount}/hmac/{key}", {"input": "eA=="}),
    "sign": ("POST", "{mount}/sign/{key}", {"input": "eA=="}),
    "verify": ("POST", "{mount}/verify/{key}", {"input": "eA==", "hmac": "vault:v1:AAAA"}),
    "random": ("POST", "{mount}/random/32", {}),
    "change the key": ("POST", "{mount}/keys/{key}/config", {"deletion_allowed": True}),
    "make it exportable": ("POST", "{mount}/keys/{key}/config", {"exportable": True}),
    "rotate": ("POST", "{mount}/keys/{key}/rotate", {}),
    "trim": ("POST", "{mount}/keys/{key}/trim", {"min_available_version": 1}),
    "import": ("POST", "{mount}/keys/{key}/import", {"ciphertext": "x"}),
    "import a version": ("POST", "{mount}/keys/{key}/import_version", {"ciphertext": "x"}),
    "delete": ("DELETE", "{mount}/keys/{key}", None),
    "make the key": ("POST", "{mount}/keys/{key}", {}),
    "make another": ("POST", "{mount}/keys/another", {}),
    "read another": ("GET", "{mount}/keys/another", None),
    "list": ("LIST", "{mount}/keys", None),
    "list by GET": ("GET", "{mount}/keys?list=true", None),
    "transit's settings": ("POST", "{mount}/config/keys", {"disable_upsert": False}),
    "transit's cache": ("POST", "{mount}/cache-config", {"size": 0}),
    "mounts": ("GET", "sys/mounts", None),
    "mount": ("POST", "sys/mounts/elsewhere", {"type": "transit"}),
    "move the mount": ("POST", "sys/remount", {"from": "{mount}", "to": "elsewhere"}),
    "policies": ("GET", "sys/policies/acl", None),
    "its own policy": ("GET", "sys/policies/acl/keyman-management", None),
    "change its policy": ("PUT", "sys/policies/acl/keyman-management", {"policy": 'path "*" {{}}'}),
    "login methods": ("GET", "sys/auth", None),
    "audit": ("GET", "sys/audit", None),
    "seal": ("PUT", "sys/seal", None),
    "raw storage": ("GET", "sys/raw/core/master", None),
    "snapshot": ("GET", "sys/storage/raft/snapshot", None),
    "rekey": ("GET", "sys/rotate/config", None),
    "leases": ("PUT", "sys/leases/revoke", {"lease_id": "x"}),
    "wrapping": ("POST", "sys/wrapping/wrap", {"a": "b"}),
    "child tokens": ("POST", "auth/token/create", {}),
    "orphan tokens": ("POST", "auth/token/create-orphan", {}),
    "other tokens": ("POST", "auth/token/lookup", {"token": "x"}),
    "revoke other tokens": ("POST", "auth/token/revoke", {"token": "x"}),
    "its role": ("GET", "auth/approle/role/keyman-management", None),
    "its role's secrets": ("POST", "auth/approle/role/keyman-management/secret-id", {}),
    "cubbyhole": ("POST", "cubbyhole/x", {"a": "b"}),
    "identity": ("GET", "identity/entity/id", None),
}


def filled(content: Any, names: dict[str, str]) -> Any:
    """The same with the names put in."""
    if isinstance(content, str):
        return content.format(**names)
    if isinstance(content, dict):
        return {name: filled(value, names) for name, value in content.items()}
    return [filled(value, names) for value in content] if isinstance(content, list) else content


async def test_the_management_token_may_seal_and_rewrap_and_nothing_else(bench: Bench) -> None:
    client, context = bench.client(), a_context()
    cipher = TransitCipher(client, bench.settings, bench.guard(client=client), bench.metrics)
    sealed = await cipher.encrypt(Secret(CANARY), context)
    await bench.transit.create_key("another", mount_point=bench.settings.mount)
    names = {
        "mount": bench.settings.mount,
        "key": bench.settings.key,
        "ciphertext": sealed.ciphertext,
        "context": context.encoded(),
    }
    allowed = []
    for name, (method, path, body) in FORBIDDEN.items():
        try:
            await client.adapter.request(method, f"/v1/{filled(path, names)}", json=filled(body, names))
        except VaultFault as fault:
            if fault.status == 403:
                continue
            allowed.append(f"{name}: {fault.status}")
        else:
            allowed.append(name)
    assert allowed == []
    assert await bench.opened(sealed.ciphertext, context) == CANARY  # with the same request, root may
    keys = (await bench.transit.list_keys(mount_point=bench.settings.mount))["data"]["keys"]
    assert sorted(keys) == sorted(["another", bench.settings.key, f"{bench.settings.key}-duplicates"])


async def test_the_management_token_may_not_unseat_the_leader(embedded_bench: Bench) -> None:
    # The container keeps everything in memory, knows of no leader, and says yes to everybody.
    client = embedded_bench.client()
    await embedded_bench.guard(client=client).verify()
    with pytest.raises(VaultFault) as caught:
        await client.adapter.put("/v1/sys/step-down")
    assert caught.value.status == 403


async def test_encrypting_does_not_make_the_key_when_it_is_missing(bench: Bench) -> None:
    client = bench.client()
    await bench.guard(client=client).verify()
    await bench.delete_key()
    body = {"plaintext": "eA==", "context": "eA==", "type": "aes256-gcm96"}
    with pytest.raises(VaultFault) as caught:
        await client.adapter.post(f"/v1/{bench.settings.mount}/encrypt/{bench.settings.key}", json=body)
    assert caught.value.status == 403


# --- Nothing leaks


async def caught_from(cipher: TransitCipher, context: Context) -> VaultUnavailable:
    async with asyncio.timeout(60):
        with pytest.raises(VaultUnavailable) as caught:
            await cipher.encrypt(Secret(CANARY), context)
    return caught.value


def echo(status: int) -> Callable[[Call, int, bytes], tuple[int, bytes]]:
    """An answer that repeats the request, as a careless proxy or a future Vault might."""
    return lambda call, _status, _content: (status, call.body + CANARY.encode())


async def test_a_plaintext_is_in_no_error_log_or_metric(bench: Bench, logged: StringIO) -> None:
    bench, proxy = await bench.with_settings(timeout=1.0).behind_a_proxy()
    cipher = await bench.warm_cipher()
    context = a_context()
    sealed = await cipher.encrypt(Secret(CANARY), context)
    told = [repr(sealed), repr(cipher), repr(vars(cipher))]
    for status in (200, 307, 400, 403, 404, 429, 500, 502, 503):
        with proxy.changing(ENCRYPT, echo(status)):
            told.append(everything_in(await caught_from(cipher, context)))
    with proxy.changing(ENCRYPT, batch_results(lambda results: [{"error": CANARY} for _ in results])):
        told.append(everything_in(await caught_from(cipher, context)))
    with proxy.holding(ENCRYPT):
        task = asyncio.create_task(caught_from(cipher, context))
        await proxy.arrived(ENCRYPT, 1)
        told += [repr(cipher._batcher._queue), repr(cipher._batcher._workers), repr(task)]
        told.append(everything_in(await task))
    await bench.write_policy('path "auth/token/lookup-self" { capabilities = ["read"] }')
    told.append(everything_in(await caught_from(cipher, context)))
    waiting = await put_in(cipher, encoded(CANARY), context.encoded())
    told += [repr(waiting), str(waiting), f"{waiting}"]
    waiting.result.cancel()
    told += [logged.getvalue(), bench.exposed_metrics()]
    for secret in (CANARY, encoded(CANARY), encoded(CANARY).rstrip("=")[:-1]):
        assert secret not in "\n".join(told)
    assert "vault call failed" in logged.getvalue()


async def test_a_text_that_is_no_text_is_refused_without_repeating_it(bench: Bench) -> None:
    with pytest.raises(VaultUnavailable) as caught:
        await bench.cipher().encrypt(Secret(f"{CANARY}\ud800"), a_context())
    assert CANARY not in everything_in(caught.value)


async def test_a_dead_vault_is_reported_without_the_plaintext(logged: StringIO, embedded_bench: Bench) -> None:
    nowhere = embedded_bench.with_settings(address="http://127.0.0.1:9")
    fault = await caught_from(nowhere.cipher(), a_context())
    assert fault.reason == VaultReason.UNREACHABLE
    for secret in (CANARY, encoded(CANARY)):
        assert secret not in everything_in(fault)
        assert secret not in logged.getvalue()


async def test_an_adapter_with_another_token_does_not_help(bench: Bench) -> None:
    stranger = AsyncAdapter(bench.settings, bench.metrics)
    try:
        with pytest.raises(VaultFault) as caught:
            await stranger.post(f"/v1/{bench.settings.mount}/encrypt/{bench.settings.key}", json={"plaintext": "eA=="})
    finally:
        await stranger.close()
    assert caught.value.reason == VaultReason.FORBIDDEN
