"""Logging in and renewing: credentials, leases, intervals, revoked tokens, lost policies, bad secrets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any, Literal

import pytest
from joserfc.jwk import ECKey

from keyman.certificates import OTHER_HOST, UNKNOWN_CA
from keyman.config.vault import VaultSettings
from keyman.errors import VaultReason, VaultUnavailable
from keyman.metrics import Metrics
from keyman.secret import Secret
from keyman.vault import login as module
from keyman.vault.adapter import VaultFault
from keyman.vault.login import VaultClient
from keyman.vault.provision import provision
from tests.support.exceptions import everything_in
from tests.support.http import (
    SILENCE,
    Call,
    FaultyServer,
    RecordingProxy,
    Reply,
    Request,
    Script,
    answer,
    faulty_server,
    recording_proxy,
)
from tests.support.issuer import sign
from tests.support.logs import request_id_is
from tests.support.waiting import becomes
from tests.vault.bench import (
    ROLE,
    Bench,
    SealableVault,
    a_context,
    agent,
    bench_at,
    own_token,
    read_key,
    refusal,
    tls_vault,
)

pytestmark = pytest.mark.anyio

LOGIN = "/auth/approle/login"
RENEWAL = "/auth/token/renew-self"
LOOKUP = "/auth/token/lookup-self"

OWN_TOKEN_ALONE = """
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""


async def lives(bench: Bench, token: str | None) -> bool:
    """What root says of a token."""
    try:
        await bench.admin.post("/v1/auth/token/lookup", json={"token": token})
    except VaultFault as fault:
        if fault.status in (403, 404):
            return False
        raise
    return True


def refused_by(recording_proxy: RecordingProxy) -> list[Call]:
    """The calls that got another answer than 200; with a dead token they do. One may have none yet."""
    return [call for call in recording_proxy.calls if call.status not in (200, None)]


def without_content(call: Call, status: int, content: bytes) -> tuple[int, bytes]:
    """JSON without what was asked for."""
    return 200, b"{}"


@pytest.fixture
def early_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short leases with long reserves: a slow machine is not to lose a token."""
    monkeypatch.setattr(module, "RENEWAL_SHARE", 0.3)


@pytest.fixture
def no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause after a refused login lasts longer than the test."""
    monkeypatch.setattr(module, "REFUSED_PAUSE", 600.0)


# --- For all callers


async def test_a_login_and_the_question_whether_a_token_lives_carry_no_callers_request_id(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    with request_id_is("first-callers"):
        await asyncio.gather(*(read_key(client, seen) for _ in range(3)))
        await bench.revoke(client.adapter.token)
        await read_key(client, seen)
    assert len(recording_proxy.to(LOGIN)) == 2
    assert len(recording_proxy.to(LOOKUP)) == 1
    assert {call.request_id for call in [*recording_proxy.to(LOGIN), *recording_proxy.to(LOOKUP)]} == {None}
    assert recording_proxy.calls[-1].request_id == "first-callers"


# --- AppRole


async def test_it_logs_in_with_the_app_role_at_the_first_use(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    assert client.adapter.token is None
    assert recording_proxy.calls == []
    token = await own_token(client)
    assert token["policies"] == [ROLE]
    assert token["path"] == "auth/approle/login"
    assert token["id"] != bench.vault.root_token
    assert recording_proxy.calls[0].path.endswith(LOGIN)
    assert recording_proxy.calls[0].token is None
    assert recording_proxy.calls[1].token == token["id"]


async def test_the_token_may_do_what_its_policy_says_and_nothing_of_the_default_policy(bench: Bench) -> None:
    client = bench.client()
    await read_key(client, bench)
    with pytest.raises(VaultFault) as caught:
        await client.adapter.get("/v1/cubbyhole/anything")
    assert caught.value.status == 403


async def test_fifty_first_operations_log_in_once(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await asyncio.gather(*(read_key(client, seen) for _ in range(50)))
    assert len(recording_proxy.to(LOGIN)) == 1
    assert len(recording_proxy.to("/keys/")) == 50


async def test_a_renewal_is_due_when_two_thirds_of_the_lease_are_over(bench: Bench) -> None:
    client = bench.client()
    before = monotonic()
    await read_key(client, bench)
    assert client._renew_at is not None
    assert client._renew_at - before >= 0.6 * 3600
    assert client._renew_at - monotonic() <= 3600 * 2 / 3


@pytest.mark.usefixtures("early_renewals")
async def test_a_lease_is_renewed_before_it_ends(bench: Bench) -> None:
    await bench.change_role(token_ttl=3, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    first = await own_token(client)
    assert first["creation_ttl"] == 3
    await recording_proxy.answered(RENEWAL, 4)  # each 0.8 s after the last at the earliest: the first lease is over
    assert (await own_token(client))["id"] == first["id"]
    assert len(recording_proxy.to(LOGIN)) == 1
    assert {call.token for call in recording_proxy.to(RENEWAL)} == {first["id"]}
    assert refused_by(recording_proxy) == []


@pytest.mark.usefixtures("early_renewals")
async def test_a_token_whose_lease_grows_short_is_replaced_before_it_dies(bench: Bench) -> None:
    def shortened(call: Call, status: int, content: bytes) -> tuple[int, bytes]:
        """As Vault answers near a token's longest life."""
        granted = json.loads(content)
        granted["auth"]["lease_duration"] = 1
        return status, json.dumps(granted).encode()

    await bench.change_role(token_ttl=3, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    first = (await own_token(client))["id"]
    with recording_proxy.changing(RENEWAL, shortened):
        await recording_proxy.answered(LOGIN, 2)
    await becomes(lambda: _is_another(client, first))
    assert (await own_token(client))["id"] == client.adapter.token
    assert refused_by(recording_proxy) == []


async def _is_another(client: VaultClient, token: str) -> bool:
    return client.adapter.token != token


async def test_at_the_end_of_its_longest_life_a_token_is_replaced_and_no_operation_fails(bench: Bench) -> None:
    await bench.change_role(token_ttl=2, token_max_ttl=4)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    async with asyncio.timeout(60):
        while len(recording_proxy.to(LOGIN)) < 2:
            await read_key(client, seen)
            await asyncio.sleep(0.05)
    assert recording_proxy.to(RENEWAL)


async def test_a_token_that_cannot_be_renewed_is_replaced_when_it_is_dead(bench: Bench) -> None:
    await bench.change_role(token_type="batch", token_ttl=1, token_max_ttl=1)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = VaultClient(seen.settings, seen.metrics)
    await read_key(client, seen)
    first = client.adapter.token

    async def is_dead() -> bool:
        return not await lives(bench, first)

    await becomes(is_dead)
    await read_key(client, seen)
    assert client.adapter.token != first
    assert len(recording_proxy.to(LOGIN)) == 2
    assert recording_proxy.to(RENEWAL) == []
    await client.close()  # a batch token cannot be revoked, and that is no error


async def test_a_revoked_token_costs_fifty_operations_one_login_and_none_of_them_fails(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    dead = client.adapter.token
    await bench.revoke(dead)
    with recording_proxy.holding("/keys/"):
        operations = [asyncio.create_task(read_key(client, seen)) for _ in range(50)]
        await recording_proxy.arrived("/keys/", 32)  # as many as there are connections
    keys = await asyncio.gather(*operations)
    assert all(key["data"]["name"] == bench.settings.key for key in keys)
    assert len(recording_proxy.to(LOGIN)) == 2
    assert len(recording_proxy.to(LOOKUP)) == 1
    assert client.adapter.token != dead


async def test_garbage_in_place_of_the_token_is_replaced(bench: Bench) -> None:
    client = bench.client()
    await read_key(client, bench)
    client.adapter.token = "s.garbage"
    await read_key(client, bench)
    assert client.adapter.token != "s.garbage"


# --- Policies


async def test_an_operation_that_the_policy_forbids_costs_no_login(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    token = client.adapter.token
    await bench.write_policy(OWN_TOKEN_ALONE)
    for _ in range(5):
        assert await refusal(read_key(client, seen)) == VaultReason.FORBIDDEN
    reasons = await asyncio.gather(*(refusal(read_key(client, seen)) for _ in range(20)))
    assert set(reasons) == {VaultReason.FORBIDDEN}
    assert len(recording_proxy.to(LOGIN)) == 1
    assert client.adapter.token == token


async def test_a_policy_that_comes_back_is_enough(bench: Bench) -> None:
    client = bench.client()
    await read_key(client, bench)
    await bench.write_policy(OWN_TOKEN_ALONE)
    assert await refusal(read_key(client, bench)) == VaultReason.FORBIDDEN
    await provision(bench.admin, bench.settings)
    await read_key(client, bench)


async def test_a_policy_that_is_gone_altogether_is_no_login_loop(bench: Bench) -> None:
    # Without any policy a token may not even look itself up, and looks as if it were dead.
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    await bench.admin.delete(f"/v1/sys/policies/acl/{ROLE}")
    for _ in range(20):
        assert await refusal(read_key(client, seen)) == VaultReason.FORBIDDEN
    assert len(recording_proxy.to(LOGIN)) <= 3
    await provision(bench.admin, bench.settings)


# --- A refused login


@pytest.mark.usefixtures("no_second_attempt")
async def test_a_wrong_secret_is_said_so_and_not_tried_again_and_again(bench: Bench) -> None:
    wrong, recording_proxy = await bench.with_settings(secret_id=Secret("0" * 8)).behind_a_proxy()
    client = wrong.client()
    reasons = await asyncio.gather(*(refusal(read_key(client, wrong)) for _ in range(50)))
    reasons += [await refusal(read_key(client, wrong)) for _ in range(10)]
    assert set(reasons) == {VaultReason.LOGIN}
    assert len(recording_proxy.calls) == 1


@pytest.mark.usefixtures("no_second_attempt")
async def test_an_unknown_role_is_a_refused_login(bench: Bench) -> None:
    client = bench.with_settings(role_id="nobody").client()
    assert await refusal(read_key(client, bench)) == VaultReason.LOGIN


@pytest.mark.usefixtures("no_second_attempt")
async def test_when_the_role_is_deleted_its_token_lasts_and_then_the_login_is_refused(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    await bench.admin.delete(f"/v1/auth/approle/role/{ROLE}")
    await read_key(client, seen)
    await bench.revoke(client.adapter.token)
    reasons = await asyncio.gather(*(refusal(read_key(client, seen)) for _ in range(20)))
    assert set(reasons) == {VaultReason.LOGIN}
    assert len(recording_proxy.to(LOGIN)) == 2


async def test_after_the_pause_a_login_that_was_refused_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSED_PAUSE", 0.0)
    seen, recording_proxy = await bench.behind_a_proxy()
    await bench.change_role(secret_id_bound_cidrs=["192.0.2.0/24"])
    client = seen.client()
    for _ in range(2):
        assert await refusal(read_key(client, seen)) == VaultReason.LOGIN
    await bench.change_role(secret_id_bound_cidrs=[])
    await read_key(client, seen)
    assert len(recording_proxy.to(LOGIN)) == 3


async def test_a_sealed_vault_is_not_a_refused_login(sealable_vault: SealableVault) -> None:
    await sealable_vault.seal()
    client = sealable_vault.bench.client()
    assert await refusal(read_key(client, sealable_vault.bench)) == VaultReason.SEALED
    await sealable_vault.unseal()
    await read_key(client, sealable_vault.bench)


# --- JWT


class Signer:
    """A new key, and tokens that it signs."""

    def __init__(self) -> None:
        self._key = ECKey.generate_key("P-256")
        self.public_pem = self._key.as_pem(private=False).decode()

    def token(self, claims: Mapping[str, object]) -> str:
        return sign(self._key, {"alg": "ES256", "typ": "JWT"}, json.dumps(claims).encode())


@dataclass
class JwtLogin:
    """A role of Vault's JWT login, mounted where hvac asks for it."""

    bench: Bench
    signer: Signer
    file: Path

    def settings(self) -> Bench:
        return self.bench.with_settings(auth="jwt", role="keyman", jwt_file=self.file, role_id=None, secret_id=None)

    def token(self, **claims: object) -> str:
        now = int(time.time())
        return self.signer.token({"sub": "keyman", "aud": "vault", "iat": now, "exp": now + 600, **claims})


@pytest.fixture
async def jwt_login(bench: Bench, tmp_path: Path) -> AsyncIterator[JwtLogin]:
    made = JwtLogin(bench, Signer(), tmp_path / "jwt")
    admin = bench.admin
    await admin.post("/v1/sys/auth/jwt", json={"type": "jwt"})
    await admin.post("/v1/auth/jwt/config", json={"jwt_validation_pubkeys": [made.signer.public_pem]})
    role = {
        "role_type": "jwt",
        "bound_audiences": ["vault"],
        "user_claim": "sub",
        "token_policies": [ROLE],
        "token_no_default_policy": True,
        "token_ttl": 600,
    }
    await admin.post("/v1/auth/jwt/role/keyman", json=role)
    yield made
    await admin.delete("/v1/sys/auth/jwt")


async def test_it_logs_in_with_a_jwt(jwt_login: JwtLogin) -> None:
    jwt_login.file.write_text(jwt_login.token() + "\n")
    bench = jwt_login.settings()
    client = bench.client()
    await read_key(client, bench)
    token = await own_token(client)
    assert token["path"] == "auth/jwt/login"
    assert token["policies"] == [ROLE]


async def test_the_jwt_is_read_again_for_each_login(jwt_login: JwtLogin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_PAUSE", 0.0)
    bench, recording_proxy = await jwt_login.settings().behind_a_proxy()
    client = bench.client()
    expired = jwt_login.token(exp=int(time.time()) - 3600, iat=int(time.time()) - 7200)
    strange = Signer().token({"sub": "keyman", "aud": "vault", "exp": int(time.time()) + 600})
    for refused in (expired, strange, "not.a.jwt"):
        jwt_login.file.write_text(refused)
        assert await refusal(read_key(client, bench)) == VaultReason.LOGIN
    for accepted in (jwt_login.token(jti="1"), jwt_login.token(jti="2")):
        jwt_login.file.write_text(accepted)
        await read_key(client, bench)
        assert recording_proxy.to("/auth/jwt/login")[-1].json == {"role": "keyman", "jwt": accepted}
        await jwt_login.bench.revoke(client.adapter.token)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "not text"])
async def test_a_jwt_that_cannot_be_read_is_a_refused_login(
    bench: Bench, tmp_path: Path, logged: StringIO, content: bytes | None
) -> None:
    path = tmp_path / "jwt"
    if content is not None:
        path.write_bytes(content)
    blind = bench.with_settings(auth="jwt", role="keyman", jwt_file=path)
    seen, recording_proxy = await blind.behind_a_proxy()
    client = seen.client()
    with pytest.raises(VaultUnavailable) as caught:
        await read_key(client, seen)
    assert caught.value.reason == VaultReason.LOGIN
    assert recording_proxy.calls == []
    assert "KEYMAN_VAULT_JWT_FILE" in logged.getvalue()
    assert str(path) not in everything_in(caught.value)


# --- Kubernetes


async def test_it_logs_in_with_a_kubernetes_service_account(embedded_bench: Bench, tmp_path: Path) -> None:
    def token_review(request: Request) -> Reply:
        """As the API server of Kubernetes answers, which is the one thing here that is not real."""
        asked = json.loads(request.body)["spec"]["token"]
        user = {"username": "system:serviceaccount:shop:keyman", "uid": "4711"}
        status = {"authenticated": True, "user": user} if asked == jwt else {"error": "unknown token"}
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        return answer({**kind, "status": status}, status=201)

    account = {"namespace": "shop", "serviceaccount": {"name": "keyman", "uid": "4711"}}
    now = int(time.time())
    claims = {"iss": "https://kubernetes", "sub": "system:serviceaccount:shop:keyman", "iat": now, "exp": now + 600}
    jwt = Signer().token({**claims, "kubernetes.io": account})
    file = tmp_path / "token"
    admin = embedded_bench.admin
    settings = {"auth": "kubernetes", "role": "keyman", "jwt_file": file, "role_id": None, "secret_id": None}
    authority = await embedded_bench.authority(tmp_path)
    context = await authority.server_context(common_name="kubernetes", ip_sans="127.0.0.1")
    async with faulty_server(token_review, context) as kubernetes:
        await admin.post("/v1/sys/auth/kubernetes", json={"type": "kubernetes"})
        try:
            config = {
                "kubernetes_host": kubernetes.address,
                "kubernetes_ca_cert": authority.certificate.read_text(),
                "disable_local_ca_jwt": True,
                "token_reviewer_jwt": jwt,
            }
            await admin.post("/v1/auth/kubernetes/config", json=config)
            role = {
                "bound_service_account_names": ["keyman"],
                "bound_service_account_namespaces": ["shop"],
                "token_policies": [ROLE],
            }
            await admin.post("/v1/auth/kubernetes/role/keyman", json=role)
            bench = embedded_bench.with_settings(**settings)
            file.write_text(f"{jwt}\n")
            client = bench.client()
            await read_key(client, bench)
            assert (await own_token(client))["path"] == "auth/kubernetes/login"
            assert kubernetes.requests[0].target == "/apis/authentication.k8s.io/v1/tokenreviews"
            file.write_text(Signer().token({**claims, "kubernetes.io": account}))
            assert await refusal(read_key(bench.client(), bench)) == VaultReason.LOGIN
        finally:
            await admin.delete("/v1/sys/auth/kubernetes")


# --- A token that is given


async def given_token(bench: Bench, **properties: object) -> str:
    asked = {"policies": [ROLE], "no_default_policy": True, "no_parent": True, **properties}
    made = await bench.admin.post("/v1/auth/token/create", json=asked)
    token: str = made["auth"]["client_token"]
    return token


async def test_a_given_token_is_used_as_it_is_and_outlives_the_client(bench: Bench) -> None:
    token = await given_token(bench, ttl="10m")
    seen, recording_proxy = await bench.with_settings(auth="token", token=Secret(token)).behind_a_proxy()
    client = VaultClient(seen.settings, seen.metrics)
    await read_key(client, seen)
    await client.close()
    assert {call.token for call in recording_proxy.calls} == {token}
    assert recording_proxy.to("/login") == []
    assert recording_proxy.to("revoke") == []
    assert await lives(bench, token)


@pytest.mark.usefixtures("early_renewals")
async def test_a_given_token_is_renewed(bench: Bench) -> None:
    token = await given_token(bench, period="4s")
    seen, recording_proxy = await bench.with_settings(auth="token", token=Secret(token)).behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    await recording_proxy.answered(RENEWAL, 2)
    await read_key(client, seen)
    assert refused_by(recording_proxy) == []


@pytest.mark.usefixtures("no_second_attempt")
async def test_a_given_token_that_dies_is_a_refused_login(bench: Bench) -> None:
    token = await given_token(bench, ttl="10m")
    client = bench.with_settings(auth="token", token=Secret(token)).client()
    await read_key(client, bench)
    await bench.revoke(token)
    reasons = await asyncio.gather(*(refusal(read_key(client, bench)) for _ in range(20)))
    assert set(reasons) == {VaultReason.LOGIN}


@pytest.mark.usefixtures("no_second_attempt")
async def test_a_given_token_that_is_garbage_is_a_refused_login(bench: Bench) -> None:
    client = bench.with_settings(auth="token", token=Secret("s.garbage")).client()
    assert await refusal(read_key(client, bench)) == VaultReason.LOGIN
    assert await refusal(read_key(client, bench)) == VaultReason.LOGIN


# --- An agent in front


@pytest.mark.parametrize("kind", ["agent", "proxy"])
async def test_behind_an_agent_it_uses_the_agents_token_and_does_not_renew_or_revoke_it(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO, kind: Literal["agent", "proxy"]
) -> None:
    async with agent(embedded_bench.settings, kind, tmp_path) as address, recording_proxy(address) as seen:
        behind = embedded_bench.with_settings(address=seen.address, auth="agent", role_id=None, secret_id=None)
        client = VaultClient(behind.settings, behind.metrics)
        cipher = behind.cipher(client)
        context = a_context()
        sealed = await cipher.encrypt(Secret("sk-c4n4ry"), context)
        assert await behind.opened(sealed.ciphertext, context) == "sk-c4n4ry"
        await client.close()
        assert client.adapter.token is None
        assert {call.token for call in seen.calls} == {None}
        assert [call for call in seen.calls if "/auth/" in call.path] == []
        # The agent's token is still good: closing has not revoked it.
        await read_key(behind.client(), behind)
    assert "logged in to vault" not in logged.getvalue()


async def test_a_403_behind_an_agent_is_the_agents_and_costs_one_call(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO
) -> None:
    async with agent(embedded_bench.settings, "proxy", tmp_path) as address, recording_proxy(address) as seen:
        behind = embedded_bench.with_settings(address=seen.address, auth="agent", role_id=None, secret_id=None)
        client = behind.client()
        await read_key(client, behind)
        await client.adapter.post("/v1/auth/token/revoke-self")  # which keyman never does by itself there
        before = len(seen.calls)
        assert await refusal(read_key(client, behind)) == VaultReason.FORBIDDEN
        assert len(seen.calls) == before + 1
        assert "vault refuses the token of the vault agent" in logged.getvalue()


async def test_where_no_agent_stands_in_front_a_client_without_a_token_is_refused(embedded_bench: Bench) -> None:
    alone = embedded_bench.with_settings(auth="agent")
    assert await refusal(read_key(alone.client(), alone)) == VaultReason.FORBIDDEN


# --- TLS, and namespaces


@pytest.mark.usefixtures("early_renewals")
@pytest.mark.parametrize("namespace", [None, "team"])
async def test_login_sealing_and_renewal_go_over_tls_with_a_private_authority_and_inside_a_namespace(
    embedded_bench: Bench, tmp_path: Path, namespace: str | None
) -> None:
    authority = await embedded_bench.authority(tmp_path)
    async with tls_vault(authority, tmp_path) as vault:
        if namespace is not None:
            async with bench_at(vault, ca_certificate=authority.certificate) as outside:
                await outside.admin.post(f"/v1/sys/namespaces/{namespace}", json={})
        async with bench_at(vault, namespace=namespace, ca_certificate=authority.certificate) as bench:
            await bench.change_role(token_ttl=2, token_max_ttl=600)
            client = bench.client()
            cipher = bench.cipher(client)
            first = await own_token(client)
            assert first.get("namespace_path", "").strip("/") == (namespace or "")

            async def renewed() -> bool:
                return bool((await own_token(client)).get("last_renewal_time"))

            await becomes(renewed)
            context = a_context()
            sealed = await cipher.encrypt(Secret("sk-c4n4ry"), context)
            assert await bench.opened(sealed.ciphertext, context) == "sk-c4n4ry"
            assert (await own_token(client))["id"] == first["id"]


@pytest.mark.parametrize("wrong", ["authority", "host"])
async def test_a_vault_that_is_not_the_one_that_was_meant_gets_nothing_and_is_said_in_one_line(
    embedded_bench: Bench, tmp_path: Path, logged: StringIO, wrong: str
) -> None:
    authority = await embedded_bench.authority(tmp_path)
    other = await embedded_bench.authority(tmp_path)
    async with tls_vault(authority, tmp_path) as vault:
        address = vault.address.replace("127.0.0.1", "localhost") if wrong == "host" else vault.address
        trusted = other if wrong == "authority" else authority
        bench = embedded_bench.with_settings(address=address, ca_certificate=trusted.certificate)
        assert await refusal(read_key(bench.client(), bench)) == VaultReason.UNTRUSTED
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert [line["why"] for line in lines if line["event"] == "vault's certificate is refused"] == [
        OTHER_HOST.format(address="KEYMAN_VAULT_ADDR")
        if wrong == "host"
        else UNKNOWN_CA.format(cacert="KEYMAN_VAULT_CACERT")
    ]


# --- Closing


async def test_closing_revokes_the_token(bench: Bench) -> None:
    client = VaultClient(bench.settings, bench.metrics)
    await read_key(client, bench)
    token = client.adapter.token
    assert await lives(bench, token)
    await client.close()
    assert not await lives(bench, token)


async def test_closing_twice_is_nothing(bench: Bench) -> None:
    client = VaultClient(bench.settings, bench.metrics)
    await read_key(client, bench)
    await client.close()
    await client.close()


async def test_a_closed_client_asks_nothing_more(bench: Bench) -> None:
    # What is still under way when a process stops would log in again, with a token that nobody revokes.
    seen, recording_proxy = await bench.behind_a_proxy()
    client = VaultClient(seen.settings, seen.metrics)
    await read_key(client, seen)
    await client.close()
    before = len(recording_proxy.calls)
    try:
        assert await refusal(read_key(client, seen)) == VaultReason.UNREACHABLE
        assert len(recording_proxy.calls) == before
    finally:
        await client.close()


async def test_closing_what_never_logged_in_asks_nothing(bench: Bench) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    await VaultClient(seen.settings, seen.metrics).close()
    assert recording_proxy.calls == []


async def test_closing_ends_though_vault_does_not_answer() -> None:
    def silent_at_the_end(request: Request) -> Reply:
        return LOGGED_IN if request.target.endswith("/login") else SILENCE

    async with clients(silent_at_the_end, timeout=60) as (server, client), asyncio.timeout(30):
        await client.call("nothing", _nothing)
        await client.close()
    assert server.requests[-1].target.endswith("/revoke-self")


async def test_closing_ends_the_renewals(bench: Bench) -> None:
    await bench.change_role(token_ttl=1, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = VaultClient(seen.settings, seen.metrics)
    await read_key(client, seen)
    await recording_proxy.answered(RENEWAL, 1)
    await client.close()
    before = len(recording_proxy.calls)
    await asyncio.sleep(1.0)  # a renewal would be due
    assert len(recording_proxy.calls) == before


# --- Answers that no Vault gives

LOGGED_IN = answer({"auth": {"client_token": "s.fake", "lease_duration": 0, "renewable": False}})


@asynccontextmanager
async def clients(script: Script, **settings: Any) -> AsyncIterator[tuple[FaultyServer, VaultClient]]:
    async with faulty_server(script) as server:
        told = VaultSettings(address=server.address, role_id="r", secret_id=Secret("s"), **settings)
        yield server, VaultClient(told, Metrics())


async def _nothing() -> None:
    return None


GARBAGE = [b"{}", b"[]", b"null", b"7", b'{"auth": null}', b'{"auth": {}}', b'{"auth": {"client_token": "s.x"}}']


@pytest.mark.parametrize("body", GARBAGE)
async def test_a_login_answer_that_is_not_understood_is_an_error_of_vault(body: bytes) -> None:
    async with clients([Reply(200, body)]) as (_, client):
        try:
            assert await refusal(client.call("nothing", _nothing)) == VaultReason.ERROR
        finally:
            await client.close()


@pytest.mark.usefixtures("early_renewals")
async def test_a_renewal_that_is_not_understood_does_not_end_the_renewals(bench: Bench) -> None:
    await bench.change_role(token_ttl=3, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    with recording_proxy.changing(RENEWAL, without_content):
        await read_key(client, seen)
        await recording_proxy.answered(RENEWAL, 1)
    await recording_proxy.answered(RENEWAL, 2)
    await read_key(client, seen)


@pytest.mark.usefixtures("early_renewals")
async def test_a_renewal_that_fails_is_tried_again_and_the_service_goes_on(bench: Bench) -> None:
    await bench.change_role(token_ttl=5, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    with recording_proxy.changing(RENEWAL, lambda *_: (500, b'{"errors":["internal"]}')):
        await read_key(client, seen)
        first = client.adapter.token
        await recording_proxy.answered(RENEWAL, 1)
    await recording_proxy.answered(RENEWAL, 2)
    await read_key(client, seen)
    assert client.adapter.token == first


@pytest.mark.usefixtures("early_renewals")
async def test_an_unexpected_failure_of_a_renewal_is_logged_without_its_message_and_the_renewals_go_on(
    bench: Bench, logged: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.change_role(token_ttl=5, token_max_ttl=600)
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    renew, failures = client._token_api.renew_self, [RuntimeError("c4n4ry")]

    def failing_once() -> Awaitable[Any]:
        if failures:
            raise failures.pop()
        again: Awaitable[Any] = renew()
        return again

    monkeypatch.setattr(client._token_api, "renew_self", failing_once)
    await read_key(client, seen)
    await recording_proxy.answered(RENEWAL, 1)
    assert failures == []
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    [line] = [line for line in lines if "unexpected" in line["event"]]
    assert line["fault"] == "builtins.RuntimeError"
    assert any("failing_once" in place for place in line["frames"])
    assert "c4n4ry" not in logged.getvalue()


async def test_one_deadline_bounds_login_and_operation_together() -> None:
    async with clients([Reply(503, delay=0.3)], timeout=0.5) as (server, client), asyncio.timeout(30):
        reason = await refusal(client.call("nothing", _nothing))
        assert reason in (VaultReason.TIMEOUT, VaultReason.UNREACHABLE)
        assert len(server.requests) <= 2
        await client.close()


# --- What is reported


async def test_failures_are_counted_by_operation_and_reason(bench: Bench) -> None:
    client = bench.client()
    await read_key(client, bench)
    await bench.write_policy(OWN_TOKEN_ALONE)
    assert await refusal(read_key(client, bench)) == VaultReason.FORBIDDEN
    assert bench.count("keyman_vault_operation_seconds_count", operation="read-key") == 2
    assert bench.count("keyman_vault_failures_total", operation="read-key", reason="forbidden") == 1


async def test_neither_log_nor_error_holds_a_credential(bench: Bench, logged: StringIO, tmp_path: Path) -> None:
    seen, recording_proxy = await bench.behind_a_proxy()
    client = seen.client()
    await read_key(client, seen)
    await bench.revoke(client.adapter.token)
    await read_key(client, seen)
    wrong = seen.with_settings(secret_id=Secret(f"wrong-{token_hex(16)}"))
    jwt = f"canary.{token_hex(16)}.jwt"
    (tmp_path / "jwt").write_text(jwt)
    with_jwt = seen.with_settings(auth="jwt", role="keyman", jwt_file=tmp_path / "jwt")
    told = ""
    for refused in (wrong, with_jwt):
        with pytest.raises(VaultUnavailable) as caught:
            await read_key(refused.client(), refused)
        told += everything_in(caught.value)
        told += refused.exposed_metrics()
    told += logged.getvalue() + seen.exposed_metrics()
    assert "logged in to vault" in told
    assert "vault refuses the login" in told
    tokens = {call.token for call in recording_proxy.calls} - {None}
    secret_id = bench.settings.secret_id
    assert secret_id is not None
    assert wrong.settings.secret_id is not None
    for secret in [*tokens, secret_id.reveal(), wrong.settings.secret_id.reveal(), jwt]:
        assert secret is not None
        assert secret not in told
