"""Rows that were swapped in the database, or put back from a backup: values that do not belong together do not open.

A row is bound twice. Its ciphertext opens only under its own user, service and value uuid, which Vault sees
to; and the value uuid must be the newest one in the audit log, which keyman checks before it asks Vault.
"""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import delete, insert

from keyman.errors import Undecryptable
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.principals import Credentials
from keyman.keys.release import release
from keyman.keys.request import Request
from keyman.keys.tables import api_keys
from keyman.storage.transactions import Database, Unchecked
from keyman.vault.cipher import Context
from tests.planes.management.api.harness import problem, state_of
from tests.planes.resolver.pair import App, Owner, Pair
from tests.support.needs import quick, quick_on
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

Stored = dict[str, Any]
"""A row of `api_keys`, by column."""

Told = list[tuple[str, str | None]]
"""Entries of the audit log: action and reason."""

NOT_CURRENT: Told = [("key.resolve-refused", "not-current")]
DOES_NOT_OPEN: Told = [("key.resolve", None), ("key.resolve-failed", "undecryptable")]

VALUE = ("encrypted_key", "value_uuid", "key_version", "last_4_chars")
BOUND = ("owner_id", "service", "value_uuid", "encrypted_key")
"""The columns that say whose a value is, and which: if they are a row's own, so is what opens."""

EXCHANGED: tuple[tuple[str, ...], ...] = (
    ("encrypted_key",),
    ("encrypted_key", "key_version", "last_4_chars"),
    ("value_uuid",),
    ("encrypted_key", "value_uuid"),
    VALUE,
    (*VALUE, "service"),
    (*VALUE, "owner_id"),
    (*VALUE, "owner_id", "service"),
    ("owner_id",),
    ("service",),
    ("owner_id", "service"),
    ("id",),
    ("id", "owner_id"),
    ("id", "service"),
)


class Truth(NamedTuple):
    """Whose a key is, for what, and what it holds."""

    user_id: int
    service: str
    value: str


@dataclass
class Held:
    """Keys that tests exchange: two of one user and service, one of another service, two of another user."""

    pair: Pair
    app: App
    ada: Owner
    ids: dict[str, int]
    truths: dict[int, Truth]
    now: dict[int, Stored]
    before: dict[int, Stored]

    def row(self, name: str) -> Stored:
        return dict(self.now[self.ids[name]])

    async def put(self, rows: Iterable[Stored]) -> None:
        await put(self.pair.resolver.database, self.now, rows)

    async def refuses(self, key_id: int, told: Told) -> None:
        """The key is not given out, the audit log has these entries, and the row is marked."""
        known = len(await self.pair.told(self.app))
        answer = await self.app.ask(key_id=key_id)
        problem(answer, "undecryptable")
        assert not [truth.value for truth in self.truths.values() if truth.value in answer.text]
        assert (await self.pair.told(self.app))[known:] == told
        assert (await self.pair.row(key_id)).undecryptable

    async def gives_only_what_is_true(self) -> None:
        """Asked in the other way, for each user and service, whatever is given out is what that key holds."""
        for user_id, service in {(truth.user_id, truth.service) for truth in self.truths.values()}:
            answer = await self.app.ask(user_id=user_id, service=service)
            assert answer.status_code in {200, 404, 409}
            if answer.status_code == 200:
                shown = answer.json()
                assert self.truths[shown["key_id"]] == (user_id, service, shown["api_key"])

    async def opens(self) -> None:
        """Every key gives its own value."""
        for key_id, truth in self.truths.items():
            answer = await self.app.ask(key_id=key_id)
            assert answer.status_code == 200, answer.text
            assert given(answer) == truth


@pytest.fixture
async def held(shared_pair: Pair) -> Held:
    ada, grace, app = await shared_pair.owner(), await shared_pair.owner(), await shared_pair.app("OPENAI", "ANTHROPIC")
    ids = {
        "ada's": await ada.key(value=_value("first")),
        "ada's other": await ada.key(value=_value("second")),
        "ada's of another service": await ada.key("ANTHROPIC", _value("third")),
        "grace's": await grace.key(value=_value("fourth")),
        "grace's of another service": await grace.key("ANTHROPIC", _value("fifth")),
    }
    before = {key_id: await stored(shared_pair, key_id) for key_id in ids.values()}
    truths = {}
    for number, (name, key_id) in enumerate(ids.items()):
        owner = ada if name.startswith("ada") else grace
        value = _value(f"replaced{number}")
        answer = await owner.client.put(f"/api/keys/{key_id}", json={"api_key": value})
        assert answer.status_code == 200, answer.text
        truths[key_id] = Truth(owner.id, before[key_id]["service"], value)
    now = {key_id: await stored(shared_pair, key_id) for key_id in ids.values()}
    return Held(shared_pair, app, ada, ids, truths, now, before)


@pytest.mark.parametrize("shared_pair", ["sqlite"], indirect=True)
@pytest.mark.parametrize("other", quick(["grace's"], ["ada's other", "ada's of another service"]))
async def test_two_rows_that_were_exchanged_in_any_part_open_as_nothing(held: Held, other: str) -> None:
    await _open_as_nothing(held, other)


@quick_on("sqlite", "shared_pair")
async def test_two_rows_of_different_users_and_services_open_as_nothing(held: Held) -> None:
    await _open_as_nothing(held, "grace's of another service")


async def _open_as_nothing(held: Held, other: str) -> None:
    """Exchange any part of a row with the same part of another one, and ask for both."""
    one, two = held.row("ada's"), held.row(other)
    tried = 0
    for columns in EXCHANGED:
        changed = [exchanged(one, two, columns), exchanged(two, one, columns)]
        wrong = [row for row in changed if not is_itself(row, held.now)]
        await held.put(changed)
        await held.gives_only_what_is_true()
        for row in wrong:
            tried += 1
            await held.put(changed)
            is_current = row["value_uuid"] == held.now[row["id"]]["value_uuid"]
            await held.refuses(row["id"], DOES_NOT_OPEN if is_current else NOT_CURRENT)
        await held.put(())  # the right rows put back, and unmarked
    await held.opens()
    assert tried >= 2 * 8


async def test_an_older_value_put_back_into_its_own_row_does_not_open(held: Held) -> None:
    """All that Vault sees of it belongs together, so only the audit log can show it."""
    key_id = held.ids["ada's"]
    now, before = held.now[key_id], held.before[key_id]
    assert await opened(held.pair, before) == _value("first")
    for columns, told in (
        (("encrypted_key",), DOES_NOT_OPEN),
        (("encrypted_key", "key_version", "last_4_chars"), DOES_NOT_OPEN),
        (("value_uuid",), NOT_CURRENT),
        (("encrypted_key", "value_uuid"), NOT_CURRENT),
        (tuple(now), NOT_CURRENT),
    ):
        await held.put([exchanged(now, before, columns)])
        await held.refuses(key_id, told)
        await held.gives_only_what_is_true()
    # Marked, it is refused for that, and nobody asks Vault.
    problem(await held.app.ask(key_id=key_id), "undecryptable")
    assert (await held.pair.told(held.app))[-1] == ("key.resolve-refused", "undecryptable")
    await held.put(())
    await held.opens()


async def test_a_deleted_key_that_is_put_back_does_not_open(held: Held) -> None:
    key_id, row = held.ids["ada's other"], held.row("ada's other")
    assert (await held.ada.client.delete(f"/api/keys/{key_id}")).status_code == 204
    answer = await held.app.ask(key_id=key_id)
    problem(answer, "not-found")
    for again in (row, held.before[key_id]):
        await put(held.pair.resolver.database, [key_id], [again])
        await held.refuses(key_id, NOT_CURRENT)
        answer = await held.app.ask(user_id=row["owner_id"], service="OPENAI")
        assert given(answer) == held.truths[held.ids["ada's"]]


async def test_a_row_under_another_id_does_not_open(held: Held) -> None:
    """Moved or copied: the audit log has no entry of a key that was never stored."""
    row = held.row("ada's")
    strange = max(held.now) + 10_000
    await put(held.pair.resolver.database, [row["id"]], [{**row, "id": strange}])
    problem(await held.app.ask(key_id=row["id"]), "not-found")
    await held.refuses(strange, NOT_CURRENT)
    await put(held.pair.resolver.database, [strange], [{**row, "id": strange, "value_uuid": uuid4()}])
    await held.put(())
    await held.refuses(strange, NOT_CURRENT)
    await put(held.pair.resolver.database, [strange], [])
    await held.opens()


async def test_a_whole_table_put_back_from_an_older_day_opens_where_nothing_has_changed_since(held: Held) -> None:
    kept = held.ids["grace's"]
    backup = [*(row for key_id, row in held.before.items() if key_id != kept), held.now[kept]]
    since = await held.ada.key(value=_value("since"))
    await put(held.pair.resolver.database, [*held.now, since], backup)
    problem(await held.app.ask(key_id=since), "not-found")
    for key_id in held.now.keys() - {kept}:
        await held.refuses(key_id, NOT_CURRENT)
    assert given(await held.app.ask(key_id=kept)) == held.truths[kept]
    await held.put(())
    await held.opens()


USERS, SERVICES, KEYS, GENERATIONS = 8, ("OPENAI", "ANTHROPIC", "GROQ"), 40, 4
TRIED_OF_VAULT = 10_000
TRIED_OF_THE_RESOLVER = 500
BATCH = 200
"""Values that Vault is asked for in one call."""


@dataclass
class Crowd:
    """Many keys, with every value that each of them ever held: the last one is the current one."""

    pair: Pair
    services: tuple[str, ...]
    generations: dict[int, list[Stored]]
    truths: dict[int, Truth]

    @property
    def now(self) -> dict[int, Stored]:
        return {key_id: rows[-1] for key_id, rows in self.generations.items()}


async def test_of_10_000_random_pairs_of_ciphertext_and_context_vault_opens_none(
    crowd: Crowd, provisioned: Vault
) -> None:
    """The real Vault is asked for each, with a token that may do anything."""
    rows = [row for generations in crowd.generations.values() for row in generations]
    deployment: UUID = state_of(crowd.pair.resolver).releasing.deployment
    own = {row["encrypted_key"]: context_of(deployment, row) for row in rows}
    assert len(own) == KEYS * GENERATIONS
    drawn = random.Random(5)  # noqa: S311  # the same exchanges each time
    wrong: set[tuple[str, str]] = set()
    while len(wrong) < TRIED_OF_VAULT:
        # Its parts too are exchanged one by one: the user's, the service's, the value's, the deployment's.
        parts = [drawn.choice(rows)[column] for column in ("owner_id", "service", "value_uuid")]
        context = Context(deployment if drawn.random() < 0.9 else UUID(int=drawn.getrandbits(128)), *parts).encoded()
        ciphertext = drawn.choice(rows)["encrypted_key"]
        whole = own[drawn.choice(rows)["encrypted_key"]]
        pair = (ciphertext, drawn.choice((context, whole)))
        if own[ciphertext] != pair[1]:
            wrong.add(pair)
    refused = 0
    async with httpx.AsyncClient(
        base_url=provisioned.server.address, headers={"X-Vault-Token": provisioned.server.root_token.reveal()}
    ) as vault:
        right = [result async for result in decrypted(vault, own.items())]
        assert [bool(result.get("error")) for result in right] == [False] * len(own)
        async for result in decrypted(vault, sorted(wrong)):
            assert result["error"]
            assert not result.get("plaintext")
            refused += 1
    assert refused == TRIED_OF_VAULT


@pytest.mark.slow
async def test_of_500_random_exchanges_the_resolver_opens_none(crowd: Crowd) -> None:
    """What an exchange leaves as it is opens as it did. `python -m bench.exchanges` tries 10,000 by HTTP."""
    state = state_of(crowd.pair.resolver)
    db: Database = state.db
    app = await crowd.pair.app(*crowd.services)
    application = await ApplicationProof().verify(db, app.token, Credentials(app.token, None, "0" * 32, None))
    drawn = random.Random(17)  # noqa: S311  # the same exchanges each time
    refused = unchanged = 0
    while refused < TRIED_OF_THE_RESOLVER:
        rows = list(random_exchanges(drawn, crowd.generations))
        await put(db, crowd.now, rows)
        for row in rows:
            wanted = Request(key_id=row["id"])
            if is_itself(row, crowd.now):
                resolved = await release(state.releasing, application, wanted)
                shown = Truth(resolved.user_id, resolved.service, resolved.value.reveal())
                assert shown == crowd.truths[row["id"]]
                unchanged += 1
                continue
            with pytest.raises(Undecryptable):
                await release(state.releasing, application, wanted)
            refused += 1
            if refused == TRIED_OF_THE_RESOLVER:
                break
    assert unchanged > 5
    told = [(entry.action, entry.reason) for entry in await crowd.pair.entries(app)]
    last = [told.count(one) for one in (NOT_CURRENT[-1], DOES_NOT_OPEN[-1])]
    assert sum(last) == TRIED_OF_THE_RESOLVER
    assert min(last) > TRIED_OF_THE_RESOLVER // 10  # both bindings were put to the test
    assert len(told) == sum(last) + last[1] + unchanged


@pytest.fixture(scope="module")
async def crowd(sqlite_pair: Pair) -> Crowd:
    return await crowd_of(sqlite_pair)


async def crowd_of(pair: Pair) -> Crowd:
    """Store every key, replace each a few times, and keep what its row held on the way."""
    owners = [await pair.owner() for _ in range(USERS)]
    generations: dict[int, list[Stored]] = {}
    truths = {}
    for number in range(KEYS):
        owner, service = owners[number % USERS], SERVICES[number // USERS % len(SERVICES)]
        key_id = await owner.key(service, _value(f"{number}-0"))
        generations[key_id] = [await stored(pair, key_id)]
        for generation in range(1, GENERATIONS):
            value = _value(f"{number}-{generation}")
            answer = await owner.client.put(f"/api/keys/{key_id}", json={"api_key": value})
            assert answer.status_code == 200, answer.text
            generations[key_id].append(await stored(pair, key_id))
        truths[key_id] = Truth(owner.id, service, value)
    return Crowd(pair, SERVICES, generations, truths)


def random_exchanges(drawn: random.Random, generations: Mapping[int, Sequence[Stored]]) -> Iterator[Stored]:
    """A row for each key: with columns, drawn at random, of what another one holds or held, or it held itself."""
    ids = list(generations)
    drawn.shuffle(ids)
    subsets = [some for size in range(1, len(BOUND) + 1) for some in itertools.combinations(BOUND, size)]
    for one, two in zip(ids[::2], ids[1::2], strict=True):
        columns = drawn.choice(subsets)
        is_own = drawn.random() < 0.25
        for key_id, other in ((one, two), (two, one)):
            donors = generations[key_id][:-1] if is_own else generations[other]
            yield exchanged(generations[key_id][-1], drawn.choice(donors), columns)


def exchanged(row: Stored, other: Stored, columns: Sequence[str]) -> Stored:
    return {**row, **{column: other[column] for column in columns}}


def is_itself(row: Stored, now: Mapping[int, Stored]) -> bool:
    """Whether an exchange has left what a row is bound to as it was: two rows may have it in common."""
    return all(row[column] == now[row["id"]][column] for column in BOUND)


async def stored(pair: Pair, key_id: int) -> Stored:
    return dict((await pair.row(key_id))._mapping)


async def put(db: Database, current: Mapping[int, Stored] | Sequence[int], rows: Iterable[Stored]) -> None:
    """Have the table hold these rows in the place of those that have their ids, and of the others what is current."""
    changed = {row["id"]: row for row in rows}
    whole = {**current, **changed} if isinstance(current, Mapping) else changed
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(api_keys).where(api_keys.c.id.in_({*current, *changed})))
        if whole:
            await connection.execute(insert(api_keys), list(whole.values()))


def context_of(deployment: UUID, row: Stored) -> str:
    return Context(deployment, row["owner_id"], row["service"], row["value_uuid"]).encoded()


async def opened(pair: Pair, row: Stored) -> str:
    """What Vault opens a row as, no matter what the audit log says."""
    releasing = state_of(pair.resolver).releasing
    context = Context(releasing.deployment, row["owner_id"], row["service"], row["value_uuid"])
    value = await releasing.opener.open(row["encrypted_key"], context)
    return str(value.reveal())


async def decrypted(vault: httpx.AsyncClient, pairs: Iterable[tuple[str, str]]) -> Any:
    """What Vault makes of each ciphertext under its context, in their order."""
    items = [{"ciphertext": ciphertext, "context": context} for ciphertext, context in pairs]
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        # 400 when one of them does not open, with the results all the same.
        answer = await vault.post("/v1/transit/decrypt/keyman", json={"batch_input": batch})
        results = answer.json()["data"]["batch_results"]
        assert len(results) == len(batch)
        for result in results:
            assert base64.b64decode(result.get("plaintext") or "") == b"" or not result.get("error")
            yield result


def given(answer: httpx.Response) -> Truth:
    shown = answer.json()
    return Truth(shown["user_id"], shown["service"], shown["api_key"])


def _value(name: str) -> str:
    return f"sk-{name}-q7w2e9r4t6y1u8i3o5p0"
