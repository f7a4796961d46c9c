"""A wrapped secret ID is unwrapped once; anything else in its place is reported and not used."""

import asyncio
from io import StringIO
from secrets import token_hex

import pytest

from keyman.config.vault import VaultSettings
from keyman.errors import ConfigurationError, VaultReason, VaultUnavailable
from keyman.metrics import Metrics
from keyman.retry import ATTEMPTS
from keyman.secret import Secret
from keyman.vault import wrapping
from keyman.vault.adapter import AsyncAdapter, extract
from keyman.vault.provision import issue_wrapped_credentials
from keyman.vault.wrapping import unwrap, unwrap_when_possible
from tests.support.exceptions import everything_in
from tests.support.http import HANG_UP, Reply, Request, answer, faulty_server
from tests.support.waiting import PATIENCE, becomes
from tests.vault.bench import ROLE, Bench, SealableVault, bench_at

pytestmark = pytest.mark.anyio

LOOKUP = "/sys/wrapping/lookup"
UNWRAP = "/sys/wrapping/unwrap"
CANARY = "s.c4n4ry-wrapping-token"
USED_UP = "is used up or has expired"
FORGED = "holds no secret ID of the AppRole"
NOT_USED = "was not used"


async def wrapped(bench: Bench, role: str = ROLE, wrap_ttl: int = 60) -> Bench:
    """The bench with a wrapped secret ID in the place of its own."""
    issued = await issue_wrapped_credentials(bench.admin, role, wrap_ttl)
    return holding(bench, issued.secret_id.reveal())


def holding(bench: Bench, token: str) -> Bench:
    return bench.with_settings(secret_id=None, wrapped_secret_id=Secret(token))


async def response_wrapped(bench: Bench, method: str, path: str, body: object) -> Bench:
    """The bench with what Vault answers at `path`, wrapped."""
    made = await bench.admin.request(method, f"/v1/{path}", json=body, wrap_ttl=60)
    return holding(bench, extract(made, str, "wrap_info", "token"))


async def refused(bench: Bench, role: str = ROLE) -> str:
    """What is said of a wrapped secret ID that is not used."""
    with pytest.raises(ConfigurationError) as caught:
        await unwrap(bench.settings, role)
    token = bench.settings.wrapped_secret_id
    assert token is not None
    assert token.reveal() not in everything_in(caught.value)
    said = str(caught.value)
    assert "\n" not in said
    assert "KEYMAN_VAULT_WRAPPED_SECRET_ID" in said
    return said


async def logs_in(settings: VaultSettings, bench: Bench) -> None:
    """A login with these settings and an operation of the role's."""
    seen = Bench(bench.vault, bench.admin, settings, stack=bench.stack)
    assert (await seen.warm_cipher()) is not None


async def test_it_is_exchanged_for_a_secret_id_that_logs_in(bench: Bench, logged: StringIO) -> None:
    seen, proxy = await (await wrapped(bench)).behind_a_proxy()
    unwrapped = await unwrap(seen.settings, ROLE)
    assert unwrapped.wrapped_secret_id is None
    assert unwrapped.secret_id is not None
    assert [call.path.removeprefix("/v1") for call in proxy.calls] == [LOOKUP, UNWRAP]
    await logs_in(unwrapped, bench)
    assert unwrapped.secret_id.reveal() not in logged.getvalue()


async def test_settings_without_one_stay_as_they_are_and_vault_is_not_asked(bench: Bench) -> None:
    seen, proxy = await bench.behind_a_proxy()
    assert await unwrap(seen.settings, ROLE) is seen.settings
    assert proxy.calls == []


async def test_the_second_who_takes_it_hears_that_somebody_has(bench: Bench) -> None:
    once = await wrapped(bench)
    await unwrap(once.settings, ROLE)
    said = await refused(once)
    assert USED_UP in said
    assert "stolen" in said
    assert f"auth/approle/role/{ROLE}/secret-id-accessor/destroy" in said
    assert f"keyman vault secret-id {ROLE}" in said


async def test_what_is_taken_between_lookup_and_unwrapping_is_noticed(bench: Bench) -> None:
    once, proxy = await (await wrapped(bench)).behind_a_proxy()
    with proxy.holding(UNWRAP):
        second = asyncio.create_task(refused(once))
        await proxy.arrived(UNWRAP, 1)
        await unwrap(bench.with_settings(wrapped_secret_id=once.settings.wrapped_secret_id).settings, ROLE)
    assert USED_UP in await second


async def test_one_that_has_expired_is_not_valid(bench: Bench) -> None:
    late = await wrapped(bench, wrap_ttl=1)
    await asyncio.sleep(1.5)
    assert USED_UP in await refused(late)


@pytest.mark.parametrize("garbage", ["s.garbage", "not a token", "ünïcode", "x" * 5000])
async def test_garbage_is_not_valid(bench: Bench, garbage: str) -> None:
    assert USED_UP in await refused(holding(bench, f"{garbage}-{token_hex(4)}"))


async def test_a_token_that_wraps_nothing_is_not_valid(bench: Bench) -> None:
    made = await bench.admin.post("/v1/auth/token/create", json={"ttl": "60s", "policies": ["default"]})
    assert USED_UP in await refused(holding(bench, made["auth"]["client_token"]))


async def test_another_roles_is_not_taken(bench: Bench) -> None:
    other = await wrapped(bench, "keyman-resolver")
    assert FORGED in await refused(other)
    assert (await unwrap(other.settings, "keyman-resolver")).secret_id is not None


async def test_the_role_can_have_another_name(bench: Bench) -> None:
    other = await wrapped(bench, "keyman-resolver")
    named = other.with_settings(role="keyman-resolver")
    assert (await unwrap(named.settings, ROLE)).secret_id is not None


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "sys/wrapping/wrap", {"secret_id": "00000000-0000-0000-0000-000000000000"}),
        ("POST", "auth/token/create", {"ttl": "60s", "policies": ["default"]}),
        ("POST", f"auth/approle/role/{ROLE}/custom-secret-id", {"secret_id": f"chosen-{token_hex(8)}"}),
        ("GET", f"auth/approle/role/{ROLE}/role-id", None),
        ("GET", "cubbyhole/stored", None),
    ],
    ids=["made by hand", "a token", "a chosen secret id", "the role id", "a stored secret"],
)
async def test_what_was_put_in_its_place_is_not_opened(bench: Bench, method: str, path: str, body: object) -> None:
    await bench.admin.post("/v1/cubbyhole/stored", json={"secret_id": "00000000-0000-0000-0000-000000000000"})
    forged = await response_wrapped(bench, method, path, body)
    seen, proxy = await forged.behind_a_proxy()
    said = await refused(seen)
    assert FORGED in said
    assert NOT_USED in said
    assert "stolen" in said
    assert proxy.to(UNWRAP) == []
    # It is not changed, so that an investigation of the forgery can still use it.
    token = forged.settings.wrapped_secret_id
    assert token is not None
    assert await bench.admin.post(f"/v1{LOOKUP}", json={"token": token.reveal()})


async def test_inside_a_namespace_it_is_the_same(embedded_bench: Bench) -> None:
    name = f"team-{token_hex(4)}"
    await embedded_bench.admin.post(f"/v1/sys/namespaces/{name}", json={})
    async with bench_at(embedded_bench.vault, namespace=name) as inside:
        once = await wrapped(inside)
        await logs_in(await unwrap(once.settings, ROLE), inside)
        assert USED_UP in await refused(once)
    await embedded_bench.admin.delete(f"/v1/sys/namespaces/{name}")


async def test_one_of_another_namespace_looks_the_same_and_does_not_log_in(embedded_bench: Bench) -> None:
    """Its path is counted from its own namespace: the lookup cannot tell."""
    name = f"team-{token_hex(4)}"
    await embedded_bench.admin.post(f"/v1/sys/namespaces/{name}", json={})
    async with bench_at(embedded_bench.vault, namespace=name) as inside:
        token = (await wrapped(inside)).settings.wrapped_secret_id
        foreign = embedded_bench.with_settings(secret_id=None, wrapped_secret_id=token)
        unwrapped = await unwrap(foreign.settings, ROLE)
        seen = embedded_bench.with_settings(secret_id=unwrapped.secret_id)
        with pytest.raises(VaultUnavailable) as caught:
            await seen.guard().verify()
        assert caught.value.reason == VaultReason.LOGIN
    await embedded_bench.admin.delete(f"/v1/sys/namespaces/{name}")


async def test_a_sealed_vault_neither_uses_it_up_nor_is_called_a_theft(sealable_vault: SealableVault) -> None:
    once = await wrapped(sealable_vault.bench)
    await sealable_vault.seal()
    said = await refused(once)
    assert "sealed" in said
    assert NOT_USED in said
    assert "stolen" not in said
    await sealable_vault.unseal()
    await logs_in(await unwrap(once.settings, ROLE), sealable_vault.bench)


async def test_a_vault_that_is_sealed_between_the_two_calls_leaves_it_too(sealable_vault: SealableVault) -> None:
    once, proxy = await (await wrapped(sealable_vault.bench)).behind_a_proxy()
    with proxy.holding(UNWRAP):
        refusal = asyncio.create_task(refused(once))
        await proxy.arrived(UNWRAP, 1)
        await sealable_vault.seal()
    assert NOT_USED in await refusal
    await sealable_vault.unseal()
    await logs_in(await unwrap(once.settings, ROLE), sealable_vault.bench)


async def test_a_vault_that_is_away_is_no_theft() -> None:
    settings = VaultSettings("http://127.0.0.1:1", role_id="r", wrapped_secret_id=Secret(CANARY), timeout=1)
    with pytest.raises(ConfigurationError, match=NOT_USED):
        await unwrap(settings, ROLE)


async def test_a_plane_waits_for_a_sealed_vault_and_unwraps_once(
    sealable_vault: SealableVault, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    monkeypatch.setattr(wrapping, "PAUSE", 0.05)
    once, proxy = await (await wrapped(sealable_vault.bench)).behind_a_proxy()
    await sealable_vault.seal()
    waiting = asyncio.create_task(unwrap_when_possible(once.settings, ROLE))
    await becomes(lambda: len(proxy.to(LOOKUP)) > 2 * ATTEMPTS, "a third attempt")
    assert not waiting.done()
    assert logged.getvalue().count("vault is away") == 1
    assert "sealed" in logged.getvalue()
    await sealable_vault.unseal()
    await logs_in(await waiting, sealable_vault.bench)
    assert len(proxy.to(UNWRAP)) == 1
    token = once.settings.wrapped_secret_id
    assert token is not None
    assert token.reveal() not in logged.getvalue()


async def test_a_plane_asks_again_while_vault_is_away_and_sends_the_token_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    monkeypatch.setattr(wrapping, "PAUSE", 0.0)
    away = [Reply(503, b'{"errors": ["Vault is sealed"]}'), HANG_UP, Reply(429, b"{}")] * 4

    def back_later(request: Request) -> Reply:
        if away:
            return away.pop()
        if request.target.endswith(LOOKUP):
            return answer({"data": {"creation_path": f"auth/approle/role/{ROLE}/secret-id"}})
        return answer({"data": {"secret_id": "s3cr3t"}})

    async with faulty_server(back_later) as server:
        given = holding(bench, CANARY).with_settings(address=server.address)
        unwrapped = await unwrap_when_possible(given.settings, ROLE)
        asked = [request.target.removeprefix("/v1") for request in server.requests]
    assert unwrapped.secret_id is not None
    assert unwrapped.secret_id.reveal() == "s3cr3t"
    assert asked == [*[LOOKUP] * 13, UNWRAP]
    assert "vault is away" in logged.getvalue()
    assert CANARY not in logged.getvalue()


async def test_a_plane_does_not_wait_for_what_does_not_end_by_itself(bench: Bench) -> None:
    for name, said in ((CANARY, USED_UP), (None, FORGED)):
        given = holding(bench, name) if name else await wrapped(bench, "keyman-resolver")
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ConfigurationError, match=said):
                await unwrap_when_possible(given.settings, ROLE)
    async with faulty_server([Reply(200, b"{}")] * 5) as server, asyncio.timeout(PATIENCE):
        with pytest.raises(ConfigurationError, match=NOT_USED):
            await unwrap_when_possible(holding(bench, CANARY).with_settings(address=server.address).settings, ROLE)


async def test_an_answer_that_is_lost_is_not_asked_for_again(bench: Bench) -> None:
    """A second attempt would find the token used up, and speak of a theft."""

    def losing(request: Request) -> Reply:
        if request.target.endswith(LOOKUP):
            return answer({"data": {"creation_path": f"auth/approle/role/{ROLE}/secret-id"}})
        return HANG_UP

    async with faulty_server(losing) as server:
        said = await refused(holding(bench, CANARY).with_settings(address=server.address))
        assert [request.target.removeprefix("/v1") for request in server.requests] == [LOOKUP, UNWRAP]
    assert "may be used up" in said


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"data": {"secret_id": 7}}', b"not json"])
async def test_an_answer_that_is_not_understood_is_no_secret_id(bench: Bench, body: bytes) -> None:
    async with faulty_server([Reply(200, body)]) as server:
        said = await refused(holding(bench, CANARY).with_settings(address=server.address))
    assert NOT_USED in said


async def test_a_lookup_does_not_use_it_up(bench: Bench) -> None:
    once = await wrapped(bench)
    token = once.settings.wrapped_secret_id
    assert token is not None
    nobody = AsyncAdapter(once.settings, Metrics())
    try:
        for _ in range(3):
            await nobody.post(f"/v1{LOOKUP}", json={"token": token.reveal()})
    finally:
        await nobody.close()
    await unwrap(once.settings, ROLE)
