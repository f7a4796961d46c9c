"""The opener: what it returns and how it fails. tests/faults/test_resolver.py tests the plane over it."""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import pytest

from keyman.errors import Undecryptable, VaultReason, VaultUnavailable
from keyman.secret import Secret
from keyman.vault.cipher import Context
from keyman.vault.guard import sentinel_context
from keyman.vault.opener import TransitOpener
from keyman.vault.provision import issue_credentials
from tests.support.exceptions import everything_in
from tests.support.http import Call
from tests.vault.bench import Bench, Shelf, a_context, refusal

pytestmark = pytest.mark.anyio

VALUE = "sk-hq2v9mXbT0c7eUKwN4Rd1234"


@dataclass
class Opening:
    """An opener with the resolver's own role, and one value that was sealed with the management plane's."""

    bench: Bench
    own: Bench  # with the resolver's login, and the metrics of the opener
    opener: TransitOpener
    shelf: Shelf
    ciphertext: str
    context: Context

    async def opened(self) -> str:
        return (await self.opener.open(self.ciphertext, self.context)).reveal()


async def opening_at(bench: Bench) -> Opening:
    shelf = Shelf()
    client = bench.client()
    await bench.guard(shelf, client).verify()
    context = a_context()
    sealed = await bench.cipher(client).encrypt(Secret(VALUE), context)
    role_id, secret_id = await issue_credentials(bench.admin, "keyman-resolver")
    theirs = replace(bench.settings, role_id=role_id, secret_id=secret_id)
    own = bench.with_settings(role_id=role_id, secret_id=secret_id)
    return Opening(bench, own, TransitOpener(own.client(), theirs, shelf), shelf, sealed.ciphertext, context)


@pytest.fixture
async def opening(bench: Bench) -> Opening:
    return await opening_at(bench)


async def test_what_was_sealed_is_opened_under_its_own_context(opening: Opening) -> None:
    assert await opening.opened() == VALUE


async def test_any_other_context_opens_nothing(opening: Opening) -> None:
    context = opening.context
    others = [
        context._replace(deployment=a_context().deployment),
        context._replace(owner_id=8),
        context._replace(service="GROQ"),
        context._replace(value=a_context().value),
    ]
    for other in others:
        with pytest.raises(Undecryptable) as caught:
            await opening.opener.open(opening.ciphertext, other)
        assert VALUE not in everything_in(caught.value)
        assert opening.ciphertext not in everything_in(caught.value)
    assert await opening.opened() == VALUE


async def test_after_a_rotation_what_was_sealed_before_opens(opening: Opening) -> None:
    settings = opening.bench.settings
    await opening.bench.transit.rotate_key(settings.key, mount_point=settings.mount)
    assert await opening.opened() == VALUE
    await opening.opener.verify()


async def test_after_old_versions_were_given_up_the_sentinel_that_was_brought_forward_opens(opening: Opening) -> None:
    settings, shelf = opening.bench.settings, opening.shelf
    assert shelf.stored is not None
    remembered, mount = shelf.stored, settings.mount
    await opening.bench.transit.rotate_key(settings.key, mount_point=mount)
    context = sentinel_context(shelf.uuid)
    answer = await opening.bench.transit.rewrap_data(settings.key, remembered, context=context, mount_point=mount)
    await opening.bench.transit.update_key_configuration(settings.key, min_decryption_version=2, mount_point=mount)

    class Stale(Shelf):
        """Remembers the sentinel of before."""

        async def sentinel(self, *, refresh: bool = False) -> str | None:
            return str(answer["data"]["ciphertext"]) if refresh else remembered

    opening.opener._store = Stale(uuid=shelf.uuid)
    await opening.opener.verify(max_age=0)


async def test_the_resolvers_role_opens_and_may_do_nothing_else(opening: Opening) -> None:
    assert await opening.opened() == VALUE
    adapter, settings = opening.opener._client.adapter, opening.bench.settings
    secret = base64.b64encode(VALUE.encode()).decode()
    refused: dict[str, tuple[str, dict[str, Any]]] = {
        "encrypt": ("POST", {"plaintext": secret, "context": opening.context.encoded()}),
        "rewrap": ("POST", {"ciphertext": opening.ciphertext, "context": opening.context.encoded()}),
        "keys": ("GET", {}),
        "decrypt": (
            "POST",
            {"batch_input": [{"ciphertext": opening.ciphertext, "context": opening.context.encoded()}]},
        ),
    }
    for operation, (method, body) in refused.items():
        url = f"{settings.address}/v1/{settings.mount}/{operation}/{settings.key}"
        headers = {"X-Vault-Token": adapter.token or ""}
        async with adapter.session.request(method, url, json=body or None, headers=headers) as answer:
            assert answer.status == 403, operation


async def test_the_management_planes_role_may_not_open(opening: Opening) -> None:
    opener = TransitOpener(opening.bench.client(), opening.bench.settings, opening.shelf)
    assert await refusal(opener.open(opening.ciphertext, opening.context)) == VaultReason.FORBIDDEN
    assert await refusal(opener.verify()) == VaultReason.FORBIDDEN


async def test_a_key_that_was_made_again_calls_no_value_unopenable(opening: Opening) -> None:
    await opening.bench.delete_key()
    for _ in range(2):
        assert await refusal(opening.opened()) == VaultReason.WRONG_KEY
        assert await refusal(opening.opener.verify(max_age=0)) == VaultReason.WRONG_KEY
        await opening.bench.make_key()


async def test_another_word_behind_the_sentinel_is_the_wrong_key(opening: Opening) -> None:
    """Anyone who may seal with the key and write to the database still cannot turn any word into a sentinel."""
    settings = opening.bench.settings
    for word in ("", "keyman sentinel ", "Keyman sentinel"):
        answer = await opening.bench.transit.encrypt_data(
            settings.key,
            plaintext=base64.b64encode(word.encode()).decode(),
            context=sentinel_context(opening.shelf.uuid),
            mount_point=settings.mount,
        )
        opening.shelf.stored = answer["data"]["ciphertext"]
        assert await refusal(opening.opener.verify(max_age=0)) == VaultReason.WRONG_KEY
    assert opening.own.count("keyman_vault_failures_total", operation="check-key", reason="wrong-key") == 3


def _answer(data: object) -> bytes:
    return json.dumps({"data": data}).encode()


STRANGE: dict[str, tuple[int, bytes]] = {
    "no data": (200, b"{}"),
    "no plaintext": (200, _answer({})),
    "null": (200, _answer({"plaintext": None})),
    "a number": (200, _answer({"plaintext": 7})),
    "a batch": (200, _answer({"batch_results": [{"plaintext": "a05yWWNBbkFyWQ=="}]})),
    "no base64": (200, _answer({"plaintext": "kNrYcAnArY!"})),
    "half a base64": (200, _answer({"plaintext": "a05yWWNBbkFyWQ"})),
    "no UTF-8": (200, _answer({"plaintext": base64.b64encode(b"kNrYcAnArY\xff").decode()})),
    "no JSON": (200, b"kNrYcAnArY"),
    "an error with a plaintext": (500, _answer({"plaintext": "a05yWWNBbkFyWQ=="})),
    "a redirect": (307, b"kNrYcAnArY"),
}


@pytest.mark.parametrize("strange", STRANGE)
async def test_an_answer_that_is_not_understood_opens_nothing_and_is_not_repeated(
    embedded_bench: Bench, strange: str, logged: StringIO
) -> None:
    bench, proxy = await embedded_bench.behind_a_proxy()
    opening = await opening_at(bench)
    status, content = STRANGE[strange]
    with (
        proxy.changing("/decrypt/", lambda _call, _status, _content: (status, content)),
        pytest.raises(VaultUnavailable) as caught,
    ):
        await opening.opened()
    said = everything_in(caught.value) + logged.getvalue()
    for word in ("kNrY", "a05yWW", VALUE, opening.ciphertext):
        assert word not in said


async def test_nothing_of_a_value_is_in_the_log_at_debug(opening: Opening, logged: StringIO) -> None:
    await opening.opened()
    with pytest.raises(Undecryptable):
        await opening.opener.open(opening.ciphertext, a_context())
    encoded = base64.b64encode(VALUE.encode()).decode()
    for word in (VALUE, encoded, opening.ciphertext, opening.context.encoded()):
        assert word not in logged.getvalue()


async def test_opening_takes_no_longer_than_one_operation_may(embedded_bench: Bench) -> None:
    bench, proxy = await embedded_bench.behind_a_proxy()
    opening = await opening_at(bench.with_settings(timeout=0.5))
    assert await opening.opened() == VALUE
    refuse: Callable[[Call, int, bytes], tuple[int, bytes]] = lambda _call, _status, _content: (400, b"{}")  # noqa: E731
    # Each call ends in time; all three of them together do not.
    with proxy.changing("/decrypt/", refuse), proxy.slowing("/decrypt/", 0.3):
        assert await refusal(opening.opened()) == VaultReason.TIMEOUT
    assert await opening.opened() == VALUE


async def test_many_at_once_get_their_own(embedded_bench: Bench) -> None:
    bench, proxy = await embedded_bench.behind_a_proxy()
    opening = await opening_at(bench)
    cipher = bench.cipher()
    contexts = [a_context(user_id=n) for n in range(1, 51)]
    sealed = await asyncio.gather(*(cipher.encrypt(Secret(f"{VALUE}-{c.owner_id}"), c) for c in contexts))
    before = len(proxy.to("/decrypt/"))
    opened = await asyncio.gather(
        *(opening.opener.open(one.ciphertext, c) for one, c in zip(sealed, contexts, strict=True))
    )
    assert [one.reveal() for one in opened] == [f"{VALUE}-{c.owner_id}" for c in contexts]
    assert len(proxy.to("/decrypt/")) == before + 50  # one value a call
