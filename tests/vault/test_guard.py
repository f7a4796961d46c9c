"""The guard: the right key passes; any other key is distinguished from a key that cannot be reached."""

import asyncio
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest

from keyman.dev import embedded
from keyman.errors import DatabaseUnavailable, VaultReason, VaultUnavailable
from keyman.vault.cipher import Context
from keyman.vault.guard import SENTINEL_PLAINTEXT, KeyGuard, sentinel_context
from keyman.vault.provision import policy
from tests.support.http import Call
from tests.support.logs import request_id_is
from tests.support.vault import as_running, kill
from tests.vault.bench import ROLE, Bench, SealableVault, Shelf, a_context, bench_at, refusal

pytestmark = pytest.mark.anyio


def policy_without(bench: Bench, path: str) -> str:
    """keyman's policy but for the rule about `path`."""
    before, _, after = policy(ROLE, bench.settings).partition(f'path "{bench.settings.mount}/{path}/')
    return before + after.partition("}\n")[2]


# --- The right key


async def test_the_right_key_passes_and_its_sentinel_is_kept(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    assert shelf.stored is not None
    assert shelf.stored.startswith("vault:v1:")
    await bench.guard(shelf).verify()


async def test_a_sentinel_that_is_stored_is_never_replaced(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    kept = shelf.stored
    for _ in range(3):
        await bench.guard(shelf).verify()
    assert shelf.stored == kept


async def test_the_sentinel_is_a_known_word_bound_to_the_deployment(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    opened = await bench.transit.decrypt_data(
        bench.settings.key, shelf.stored, context=sentinel_context(shelf.uuid), mount_point=bench.settings.mount
    )
    assert opened["data"]["plaintext"] == "a2V5bWFuIHNlbnRpbmVs"
    assert SENTINEL_PLAINTEXT == "keyman sentinel"


async def test_the_sentinels_context_is_no_values_context() -> None:
    deployment = uuid4()
    assert sentinel_context(deployment) not in {
        Context(deployment, user, "SENTINEL", uuid4()).encoded() for user in range(3)
    }


async def test_after_a_rotation_the_old_sentinel_still_passes(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    await bench.transit.rotate_key(bench.settings.key, mount_point=bench.settings.mount)
    await bench.guard(shelf).verify()


async def test_of_two_replicas_that_start_at_once_one_keeps_the_sentinel_and_both_pass(bench: Bench) -> None:
    shelf = Shelf()
    await asyncio.gather(*(bench.guard(shelf).verify() for _ in range(4)))
    assert shelf.stored is not None


# --- Another key


@pytest.mark.parametrize(
    "properties",
    [
        {"derived": False},
        {"exportable": True},
        {"allow_plaintext_backup": True},
        {"type": "chacha20-poly1305"},
        {"type": "aes128-gcm96"},
        {"type": "ed25519"},
        {"type": "rsa-2048", "derived": False},
    ],
    ids=lambda properties: "-".join(str(value) for value in properties.values()),
)
async def test_a_key_of_another_nature_is_the_wrong_key(bench: Bench, properties: dict[str, object]) -> None:
    shelf = Shelf()
    await bench.delete_key()
    await bench.make_key(**properties)
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.WRONG_KEY
    assert shelf.stored is None


async def test_a_missing_key_is_the_wrong_key_and_stays_missing(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    await bench.delete_key()
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.WRONG_KEY
    assert await refusal(bench.guard(Shelf()).verify()) == VaultReason.WRONG_KEY
    assert bench.count("keyman_vault_failures_total", operation="check-key", reason="wrong-key") >= 2
    assert bench.settings.key not in await keys_of(bench)


async def keys_of(bench: Bench) -> list[str]:
    """The names of all keys of the mount; Vault answers 404 where there is none."""
    await bench.transit.create_key("another", mount_point=bench.settings.mount)
    names: list[str] = (await bench.transit.list_keys(mount_point=bench.settings.mount))["data"]["keys"]
    return names


async def test_a_key_made_again_under_its_name_is_the_wrong_key(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    await bench.delete_key()
    await bench.make_key()
    sealed = await bench.transit.encrypt_data(
        bench.settings.key, "eA==", context=a_context().encoded(), mount_point=bench.settings.mount
    )
    assert sealed["data"]["ciphertext"]  # to encrypt, it is as good as the old one
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.WRONG_KEY


async def test_the_sentinel_of_another_deployment_is_the_wrong_key(bench: Bench) -> None:
    ours = Shelf()
    await bench.guard(ours).verify()
    theirs = Shelf(sentinel=ours.stored)
    assert await refusal(bench.guard(theirs).verify()) == VaultReason.WRONG_KEY
    assert bench.count("keyman_vault_failures_total", operation="check-key", reason="wrong-key") == 1


async def test_a_database_with_keys_and_without_a_sentinel_is_the_wrong_key(bench: Bench) -> None:
    shelf = Shelf(has_keys=True)
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.WRONG_KEY
    assert shelf.stored is None


@pytest.mark.parametrize(
    "sentinel", ["", "sentinel", "vault:v1:", "vault:v9:AAAA", "vault:v1:%%%", "vault:v1:" + "A" * 60]
)
async def test_a_sentinel_that_is_no_ciphertext_is_the_wrong_key(bench: Bench, sentinel: str) -> None:
    assert await refusal(bench.guard(Shelf(sentinel=sentinel)).verify()) == VaultReason.WRONG_KEY


# --- Out of reach


async def test_a_policy_without_rewrap_is_forbidden_and_not_the_wrong_key(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    await bench.write_policy(policy_without(bench, "rewrap"))
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.FORBIDDEN


async def test_a_policy_without_reading_the_key_is_forbidden(bench: Bench) -> None:
    await bench.write_policy(policy_without(bench, "keys"))
    assert await refusal(bench.guard().verify()) == VaultReason.FORBIDDEN


async def test_a_policy_without_encrypt_is_forbidden_at_the_first_start(bench: Bench) -> None:
    await bench.write_policy(policy_without(bench, "encrypt"))
    shelf = Shelf()
    assert await refusal(bench.guard(shelf).verify()) == VaultReason.FORBIDDEN
    assert shelf.stored is None


async def test_a_sealed_vault_is_sealed_and_then_passes_again(sealable_vault: SealableVault) -> None:
    guard = sealable_vault.bench.guard()
    await guard.verify()
    await sealable_vault.seal()
    assert await refusal(guard.verify(max_age=0)) == VaultReason.SEALED
    await sealable_vault.unseal()
    await guard.verify(max_age=0)


async def test_a_frozen_vault_is_a_timeout_and_then_passes_again(sealable_vault: SealableVault) -> None:
    guard = sealable_vault.bench.with_settings(timeout=1.0).guard()
    await guard.verify()
    sealable_vault.freeze()
    async with asyncio.timeout(60):
        assert await refusal(guard.verify(max_age=0)) == VaultReason.TIMEOUT
    sealable_vault.thaw()
    await guard.verify(max_age=0)


async def test_a_stopped_vault_is_unreachable_and_then_passes_again(tmp_path: Path) -> None:
    server = await embedded.start(tmp_path / "vault")
    try:
        async with bench_at(as_running(server)) as bench:
            shelf = Shelf()
            guard = bench.guard(shelf)
            await guard.verify()
            server.close()
            assert await refusal(guard.verify(max_age=0)) == VaultReason.UNREACHABLE
            server = await embedded.start(tmp_path / "vault")
            bench.admin.base_uri = server.address
            await bench.with_settings(address=server.address).guard(shelf).verify()
    finally:
        kill(server)


async def test_a_database_that_fails_is_not_blamed_on_vault(bench: Bench) -> None:
    class Broken(Shelf):
        async def sentinel(self, *, refresh: bool = False) -> str | None:
            raise DatabaseUnavailable

    guard = bench.guard(Broken())
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await guard.verify()


# --- How often it asks


async def test_a_hundred_at_once_share_one_check(bench: Bench) -> None:
    shelf = Shelf()
    await bench.guard(shelf).verify()
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard(shelf)
    await asyncio.gather(*(guard.verify() for _ in range(100)))
    assert len(proxy.to("/keys/")) == 1
    assert len(proxy.to("/rewrap/")) == 1
    assert proxy.to("/encrypt/") == []


async def test_a_hundred_at_once_keep_one_sentinel(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    await asyncio.gather(*(guard.verify() for _ in range(100)))
    assert len(proxy.to("/encrypt/")) == 1
    assert len(proxy.to("/rewrap/")) == 1


async def test_all_who_wait_share_one_check_however_long_it_takes(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    await guard.verify()
    await asyncio.sleep(0.15)  # that verdict is too old for those who ask now
    before = len(proxy.to("/keys/"))
    with proxy.slowing("/keys/", 0.15):  # and so is each by the time that it is there
        await asyncio.gather(*(guard.verify(max_age=0.1) for _ in range(20)))
    assert len(proxy.to("/keys/")) == before + 1


async def test_a_failure_too_is_asked_for_once_by_all_who_wait(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    await bench.delete_key()
    with proxy.holding("/keys/"):
        verdicts = [asyncio.create_task(refusal(guard.verify(max_age=0.1))) for _ in range(50)]
        await proxy.arrived("/keys/", 1)
        await asyncio.sleep(0.2)
    assert set(await asyncio.gather(*verdicts)) == {VaultReason.WRONG_KEY}
    assert len(proxy.to("/keys/")) == 1


async def test_a_fresh_verdict_is_not_asked_for_again_and_an_old_one_is(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    await guard.verify()
    before = len(proxy.to("/keys/"))
    await guard.verify(max_age=600)
    assert len(proxy.to("/keys/")) == before
    await guard.verify(max_age=0)
    assert len(proxy.to("/keys/")) == before + 1


async def test_a_caller_that_gives_up_takes_nobody_along(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    with proxy.holding("/keys/"):
        impatient = asyncio.create_task(guard.verify())
        await proxy.arrived("/keys/", 1)
        patient = [asyncio.create_task(guard.verify()) for _ in range(10)]
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
    await asyncio.gather(*patient)
    assert impatient.cancelled()


async def test_a_caller_that_gives_up_does_not_cancel_the_check_of_the_others(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    with proxy.holding("/keys/"):
        impatient = asyncio.create_task(guard.verify())
        await asyncio.sleep(0)
        patient = [asyncio.create_task(guard.verify(max_age=60)) for _ in range(10)]
        await proxy.arrived("/keys/", 1)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
    await asyncio.gather(*patient)
    await guard.verify(max_age=60)
    assert len(proxy.to("/keys/")) == 2  # one check of a first start, which asks before it seals and after it


async def test_a_check_that_others_may_share_carries_no_callers_request_id(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    guard = seen.guard()
    with request_id_is("first-callers"):
        await asyncio.gather(*(guard.verify() for _ in range(3)))
        await guard._client.call("read", lambda: key_of(seen, guard))
    checks = [call for call in proxy.calls[:-1] if "/auth/" not in call.path]
    assert checks
    assert {call.request_id for call in checks} == {None}
    assert proxy.calls[-1].request_id == "first-callers"  # a call for one caller only has its id


async def key_of(bench: Bench, guard: KeyGuard) -> None:
    await guard._transit.read_key(bench.settings.key, mount_point=bench.settings.mount)


async def test_each_caller_gets_an_exception_of_its_own(bench: Bench) -> None:
    await bench.delete_key()
    guard = bench.guard()
    faults = await asyncio.gather(*(guard.verify() for _ in range(10)), return_exceptions=True)
    assert all(isinstance(fault, VaultUnavailable) for fault in faults)
    assert len({id(fault) for fault in faults}) == 10


# --- Answers that no Vault gives, and the reports of them


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'{"data": null}', b'{"data": []}', b'{"data": {}}'])
@pytest.mark.parametrize("path", ["/keys/", "/encrypt/", "/rewrap/"])
async def test_an_answer_that_is_not_understood_passes_nothing(bench: Bench, path: str, body: bytes) -> None:
    seen, proxy = await bench.behind_a_proxy()
    shelf = Shelf()

    def garbled(call: Call, status: int, content: bytes) -> tuple[int, bytes]:
        return 200, body

    with proxy.changing(path, garbled):
        assert await refusal(seen.guard(shelf).verify()) in (VaultReason.WRONG_KEY, VaultReason.ERROR)
    await seen.guard(shelf).verify()


async def test_the_log_says_what_is_wrong_with_the_key(bench: Bench, logged: StringIO) -> None:
    await bench.delete_key()
    assert await refusal(bench.guard().verify()) == VaultReason.WRONG_KEY
    assert "missing" in logged.getvalue()
    await bench.make_key(derived=False)
    assert await refusal(bench.guard().verify()) == VaultReason.WRONG_KEY
    assert '"derived"' in logged.getvalue()
