"""`keyman.audit.chain` and `.verification`: every change of the audit log is found, with its place."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, func, select, text

from keyman.audit import export, verification
from keyman.audit.chain import Head, digest, genesis, line
from keyman.audit.entries import OPERATOR, Action, Actor, Entry, Origin
from keyman.audit.log import record
from keyman.audit.tables import audit_chains, audit_log
from keyman.clock import now
from keyman.ids import KeyId, UserId
from keyman.storage.transactions import Unchecked
from tests.audit.conftest import Trail
from tests.support.rows import add_owner

pytestmark = pytest.mark.anyio

NAMES = [column.name for column in audit_log.c]
CHANGES: list[dict[str, Any]] = [
    {"action": Action.ENABLE},
    {"actor": "session"},
    {"actor_id": 1},
    {"key_id": None},
    {"token_id": 3},
    {"service": "XAI"},
    {"application": "chat"},
    {"reason": "unknown"},
    {"purpose": "-"},
    {"request_id": "-"},
    {"vault_request_id": "-"},
    {"address": "192.0.2.1"},
    {"detail": "-"},
    {"value_uuid": uuid4()},
    {"as_of": 1},
    {"hash": bytes(32)},
]
NO_ROW = "the row of the chain in audit_chains is missing, so its entries cannot be verified"
CHANGED = "its hash does not match: this entry or the one before it was changed or replaced"


async def test_an_unchanged_audit_log_verifies_with_every_entry(bent: Trail) -> None:
    found = await bent.verified()
    assert found.breaks == []
    assert found.entries == len(await bent.rows()) == await verification.count(bent.db)
    assert {(head.chain, head.sequence) for head in found.heads if head.sequence} == {
        (row.chain, max(other.sequence for other in await bent.rows(audit_log.c.chain == row.chain)))
        for row in await bent.rows()
    }


async def test_an_empty_audit_log_verifies(kept: Trail) -> None:
    found = await kept.verified()
    assert (found.entries, found.breaks) == (0, [])


async def test_the_hash_covers_the_entry_and_the_hash_before(kept: Trail) -> None:
    """As an auditor would compute it, who knows the documentation and not this code."""
    await add_owner(kept.db)
    value = uuid4()
    origin = Origin(Actor.APPLICATION, 7, "f" * 32, "2001:db8::1")
    async with kept.db.write(Unchecked.OPERATOR) as connection:
        await record(
            connection,
            Entry(
                Action.KEY_CREATE,
                origin,
                UserId(1),
                key_id=KeyId(5),
                service="OPENAI",
                purpose="naïve \u201ctest\u201d \U0001f511 \\ / \x7f",
                value_uuid=value,
            ),
        )
    (row,) = await kept.rows()
    told = {
        "action": "key.create",
        "actor": "application",
        "actor_id": 7,
        "address": "2001:db8::1",
        "as_of": row.id,
        "at": row.at.isoformat().replace("+00:00", "Z"),
        "chain": row.chain,
        "id": row.id,
        "key_id": 5,
        "previous": hashlib.sha256(f"keyman audit|v1|{kept.deployment}|{row.chain}".encode()).hexdigest(),
        "purpose": "naïve \u201ctest\u201d \U0001f511 \\ / \x7f",
        "request_id": "f" * 32,
        "sequence": 1,
        "service": "OPENAI",
        "user_id": 1,
        "value_uuid": str(value),
    }
    hashed = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(hashed).digest() == row.hash


async def test_no_chain_fits_behind_another_or_in_another_deployment(kept: Trail) -> None:
    beginnings = {genesis(uuid, chain) for uuid in (kept.deployment, uuid4()) for chain in range(32)}
    assert len(beginnings) == 64


async def test_a_changed_entry_is_named_whatever_was_changed(bent: Trail) -> None:
    rows = await bent.longest()
    row, following = rows[4], rows[5]
    for change in CHANGES:
        await bent.change(row.id, **change)
        found = await bent.broken()
        # Of a hash that was changed, the entry behind it does not follow either.
        after = [(6, following.id, CHANGED)] if "hash" in change else []
        assert found == [(5, row.id, CHANGED), *after], change
        await bent.change(row.id, **row._mapping)
    assert await bent.broken() == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL refuses such values
async def test_what_no_entry_can_hold_is_found_and_what_is_around_it_still_verified(
    bent: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "PAGE", 4)
    harms = (
        *("at = 'c4n4ry'", "value_uuid = 'c4n4ry'", "key_id = 'c4n4ry'", "as_of = 'c4n4ry'"),
        *("purpose = CAST(x'ff' AS TEXT)", "hash = printf('%032d', 7)"),
    )
    for harm in harms:
        row = (await bent.longest())[4]
        async with bent.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text(f"UPDATE audit_log SET {harm} WHERE id = {row.id}"))  # noqa: S608
        found = await bent.broken()
        assert (found[0][0], "c4n4ry" in repr(found)) == (5, False), harm
        assert {place for place, _, _ in found} <= {5, 6}, harm
        await bent.change(row.id, **row._mapping)
    assert await bent.broken() == []
    for harm in ("sequence = 'c4n4ry'", "base_sequence = 'c4n4ry', sequence = 'd'", "base_hash = printf('%032d', 7)"):
        async with bent.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text(f"UPDATE audit_chains SET {harm}"))  # noqa: S608
        assert await bent.broken() == [
            (0, None, "the row of the chain in audit_chains contains a value of the wrong type")
        ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL refuses such values
async def test_what_hashes_alike_and_is_another_thing_in_sqlite_is_found(bent: Trail) -> None:
    await bent.write(1, service="OPEN", value_uuid=uuid4())
    row = (await bent.longest())[-1]
    harms = (
        "service = x'38f10d'",  # bytes are in the line as base64
        "at = datetime(at, '+5 hours') || substr(at, 20) || '+05:00'",
        "at = replace(at, ' ', 'T')",
        "value_uuid = upper(value_uuid)",
        "value_uuid = '{' || value_uuid || '}'",
        "detail = x'00', action = 'trail.prune'",
        *("sequence = 'c4n4ry'", "sequence = x'00'", "sequence = 12.5", "sequence = 9e999", "chain = 'c4n4ry'"),
    )
    for harm in harms:
        async with bent.db.write(Unchecked.OPERATOR) as connection:
            await connection.execute(text(f"UPDATE audit_log SET {harm} WHERE id = {row.id}"))  # noqa: S608
        found = await bent.broken()
        assert row.id in {entry_id for _, entry_id, _ in found}, harm
        assert "c4n4ry" not in repr(found)
        await bent.change(row.id, **row._mapping)
    assert await bent.broken() == []


@pytest.mark.parametrize("sequence", [0, -1, -(2**63)])
async def test_an_entry_before_the_beginning_is_found(bent: Trail, sequence: int) -> None:
    row = (await bent.longest())[4]
    await bent.put(**{**row._mapping, "id": 1000, "sequence": sequence, "value_uuid": uuid4(), "as_of": 1000})
    assert await bent.broken() == [(sequence, 1000, "the entry is before the beginning of the chain")]


async def test_what_was_pruned_and_put_back_is_found(bent: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PAGE", 2)
    rows = await bent.longest()
    async with bent.db.write(Unchecked.OPERATOR) as connection:
        detail = f"up to 5 {rows[4].hash.hex()}"
        await record(connection, Entry(Action.TRAIL_PRUNE, OPERATOR, detail=detail), chain=rows[0].chain)
    await bent.end(rows[0].chain, base_sequence=5, base_hash=rows[4].hash)
    assert await bent.broken() == [
        (n + 1, rows[n].id, "the entry is before the beginning of the chain") for n in range(5)
    ]


async def test_a_chain_of_any_number_is_found_without_a_line_for_each_before_it(bent: Trail) -> None:
    values = {"sequence": 0, "base_sequence": 0, "hash": bytes(32), "base_hash": bytes(32)}
    async with bent.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(audit_chains.insert().values(chain=2**31 - 1, **values))
    found = (await bent.verified()).breaks
    assert {one.chain for one in found} > {3, 2**31 - 1}
    assert len(found) < 2 * verification.MOST


async def test_an_anchor_finds_what_was_pruned_after_it_though_the_audit_log_records_the_pruning(bent: Trail) -> None:
    heads = (await bent.verified()).heads
    rows = await bent.longest()
    # Somebody removes what they do not like, and says that it was pruned.
    await bent.remove(*[row.id for row in rows[:4]])
    await bent.end(rows[0].chain, base_sequence=4, base_hash=rows[3].hash)
    async with bent.db.write(Unchecked.OPERATOR) as connection:
        detail = f"up to 4 {rows[3].hash.hex()}"
        await record(connection, Entry(Action.TRAIL_PRUNE, OPERATOR, detail=detail), chain=rows[0].chain)
    found = await bent.verified(heads)
    assert (found.breaks, found.pruned_since) == ([], 4)
    later = found.heads
    assert (await bent.verified(later)).pruned_since == 0
    await bent.end(rows[0].chain, base_sequence=3)
    assert (0, None, "the chain begins at an earlier place than when it was anchored") in await bent.broken(later)


async def test_what_an_anchor_does_not_hold_any_more_it_does_not_vouch_for(bent: Trail) -> None:
    old = (await bent.verified()).heads
    await bent.write(60)
    newer = (await bent.verified()).heads
    rows = await bent.longest()
    at = next(n for n, row in enumerate(rows) if row.sequence == {head.chain: head.sequence for head in old}[row.chain])
    await bent.remove(*[row.id for row in rows[: at + 2]])
    base = rows[at + 1]
    await bent.end(base.chain, base_sequence=base.sequence, base_hash=base.hash)
    assert (await bent.verified(old)).unheld() == {base.chain}
    assert (await bent.verified([*old, *newer])).unheld() == set()


async def test_anchors_that_differ_do_not_hide_each_other(bent: Trail) -> None:
    head = next(head for head in (await bent.verified()).heads if head.sequence)
    other = head._replace(hash=bytes(32))
    for anchored in ([head, other], [other, head]):
        found = await bent.verified(anchored)
        assert [one.what for one in found.breaks] == ["this is not the entry that was anchored"]
        assert found.held == [head]


async def test_every_column_is_covered(bent: Trail) -> None:
    row = (await bent.longest())[4]
    names = {name for name in NAMES if name != "hash"}
    entry = dict(row._mapping)
    for name in names:
        other = {**entry, name: {"at": now(), "actor": "token", "action": "key.create"}.get(name, 999_999)}
        assert digest(bytes(32), other) != digest(bytes(32), entry), name
    shown = json.loads(line(bytes(32), {name: entry[name] if entry[name] is not None else "-" for name in names}))
    assert shown.keys() == names | {"previous"}


async def test_times_and_ids_are_covered(bent: Trail) -> None:
    rows = await bent.longest()
    await bent.change(rows[2].id, at=now())
    await bent.change(rows[6].id, id=10_000)
    assert await bent.broken() == [(3, rows[2].id, CHANGED), (7, 10_000, CHANGED)]


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 3), (4, 1), (4, 4), (8, 1)])
async def test_removed_entries_are_counted_where_they_were(bent: Trail, first: int, count: int) -> None:
    rows = (await bent.longest())[:10]
    await bent.remove(*[row.id for row in rows[first : first + count]])
    after = rows[first + count]
    assert await bent.broken() == [(after.sequence, after.id, f"entries missing before this one: {count}")]


async def test_entries_that_are_cut_off_are_counted(bent: Trail) -> None:
    rows = await bent.longest()
    await bent.remove(rows[-1].id, rows[-2].id)
    assert await bent.broken() == [(len(rows) - 1, None, "entries missing at the end of the chain: 2")]


async def test_a_whole_chain_that_is_gone_is_counted(bent: Trail) -> None:
    rows = await bent.longest()
    await bent.remove(*[row.id for row in rows])
    assert await bent.broken() == [(1, None, f"entries missing at the end of the chain: {len(rows)}")]


async def test_exchanged_entries_are_named(bent: Trail) -> None:
    rows = await bent.longest()
    one, other = rows[3], rows[6]
    told = {name: getattr(other, name) for name in NAMES if name not in ("id", "chain", "sequence")}
    await bent.change(one.id, **told)
    assert (4, one.id, CHANGED) in await bent.broken()


async def test_reordered_entries_are_named(bent: Trail) -> None:
    rows = await bent.longest()
    await bent.change(rows[3].id, sequence=10_000)
    await bent.change(rows[4].id, sequence=4)
    await bent.change(rows[3].id, sequence=5)
    assert {(4, rows[4].id, CHANGED), (5, rows[3].id, CHANGED)} <= set(await bent.broken())


async def test_an_entry_that_was_added_behind_the_end_is_found(bent: Trail) -> None:
    last = (await bent.longest())[-1]
    forged = {**last._mapping, "id": last.id + 1000, "sequence": last.sequence + 1}
    forged["hash"] = digest(last.hash, forged)
    await bent.put(**forged)
    assert await bent.broken() == [(last.sequence + 1, None, "entries after the end of the chain: 1")]


async def test_an_entry_that_would_overrule_all_that_come_is_found_though_it_was_chained(bent: Trail) -> None:
    async with bent.db.write(Unchecked.OPERATOR) as connection:
        await record(connection, Entry(Action.TRAIL_CARRY, OPERATOR, key_id=KeyId(1), value_uuid=uuid4(), as_of=10_000))
    (last,) = await bent.rows(audit_log.c.as_of == 10_000)
    assert await bent.broken() == [
        (last.sequence, last.id, "as_of is higher than the id, so the entry claims to be newer than it is")
    ]


async def test_an_entry_of_a_chain_that_does_not_exist_is_found(bent: Trail) -> None:
    last = (await bent.longest())[-1]
    await bent.put(**{**last._mapping, "id": last.id + 1000, "chain": 77, "sequence": 1})
    breaks = (await bent.verified()).breaks
    assert {one.chain for one in breaks} == set(range(max(one.chain for one in breaks), 78)) - {0}
    assert {one.what for one in breaks} == {NO_ROW}


async def test_an_end_that_was_changed_or_removed_is_found(bent: Trail) -> None:
    chain = (await bent.longest())[-1].chain
    count = len(await bent.longest())
    await bent.end(chain, hash=bytes(32))
    assert await bent.broken() == [(count, None, "the hash of the last entry is not the one in audit_chains")]
    await bent.end(chain, base_hash=bytes(32), hash=(await bent.longest())[-1].hash)
    assert (0, None, "the first hash of the chain is not that of this deployment") in await bent.broken()
    async with bent.db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(delete(audit_chains).where(audit_chains.c.chain == chain))
    assert (0, None, NO_ROW) in await bent.broken()


async def test_a_beginning_that_was_cut_off_is_found_though_the_end_was_moved_with_it(bent: Trail) -> None:
    rows = await bent.longest()
    await bent.remove(*[row.id for row in rows[:4]])
    await bent.end(rows[0].chain, base_sequence=4, base_hash=rows[3].hash)
    assert await bent.broken() == [
        (1, None, "entries missing at the beginning of the chain, whose pruning no entry records: 4")
    ]


async def test_a_changed_entry_with_recomputed_hashes_is_found_only_with_an_anchor(bent: Trail) -> None:
    heads = (await bent.verified()).heads
    rows = await bent.longest()
    await bent.rewrite(rows[5:], application="somebody else")
    assert await bent.broken() == []
    last = rows[-1]
    assert await bent.broken(heads) == [(last.sequence, last.id, "this is not the entry that was anchored")]


async def test_removed_entries_with_the_end_moved_are_found_only_with_an_anchor(bent: Trail) -> None:
    heads = (await bent.verified()).heads
    rows = await bent.longest()
    await bent.remove(rows[-1].id)
    await bent.end(rows[-1].chain, sequence=rows[-2].sequence, hash=rows[-2].hash)
    assert await bent.broken() == []
    assert await bent.broken(heads) == [(rows[-1].sequence, None, "the entry that was anchored is missing")]


async def test_an_anchor_holds_however_many_entries_follow(bent: Trail) -> None:
    heads = (await bent.verified()).heads
    await bent.write(40)
    assert await bent.broken(heads) == []
    assert await bent.broken([Head(99, 1, bytes(32))]) != []


async def test_an_audit_log_longer_than_a_page_verifies_and_its_breaks_between_pages_are_found(
    bent: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "PAGE", 4)
    reported: list[int] = []
    found = await verification.verify(bent.db, bent.deployment, (), reported.append)
    assert (found.breaks, sum(reported)) == ([], found.entries)
    rows = await bent.longest()
    await bent.remove(rows[4].id)
    assert await bent.broken() == [(6, rows[5].id, "entries missing before this one: 1")]


async def test_writers_at_once_leave_one_chain_of_each(kept: Trail) -> None:
    async def write() -> None:
        async with kept.db.write(Unchecked.OPERATOR) as connection:
            await record(connection, Entry(Action.DISABLE, OPERATOR), Entry(Action.ENABLE, OPERATOR))
            await asyncio.sleep(0.01)  # while it holds the end of its chain

    await asyncio.gather(*(write() for _ in range(40)))
    found = await kept.verified()
    assert (found.entries, found.breaks) == (80, [])
    async with kept.db.read() as connection:
        used = (await connection.execute(select(func.count(audit_log.c.chain.distinct())))).scalar_one()
    assert used == 1 if kept.db.is_sqlite else used > 5
    for row in await kept.rows(audit_log.c.action == Action.ENABLE):
        (first,) = await kept.rows(audit_log.c.chain == row.chain, audit_log.c.sequence == row.sequence - 1)
        assert (first.action, first.id < row.id) == (Action.DISABLE, True)


async def test_it_verifies_while_others_write(bent: Trail) -> None:
    async def verify() -> list[verification.Break]:
        return [one for _ in range(5) for one in (await bent.verified()).breaks]

    breaks, *_ = await asyncio.gather(verify(), *(bent.write(10) for _ in range(4)))
    assert breaks == []


async def test_a_transaction_that_fails_leaves_its_chain_as_it_was(bent: Trail) -> None:
    async def fail() -> None:
        async with bent.db.write(Unchecked.OPERATOR) as connection:
            await record(connection, Entry(Action.DISABLE, OPERATOR))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await bent.write(5)
    assert await bent.broken() == []


async def test_an_export_has_every_entry_with_what_was_hashed(bent: Trail) -> None:
    lines = [text async for text in export.lines(bent.db, None)]
    assert len(lines) == len(await bent.rows())
    ends: dict[int, str] = {}
    for shown in lines:
        entry = json.loads(shown)
        value = entry.pop("hash")
        hashed = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert hashlib.sha256(hashed).hexdigest() == value
        assert entry["previous"] == ends.get(entry["chain"], genesis(bent.deployment, entry["chain"]).hex())
        ends[entry["chain"]] = value


async def test_an_export_since_a_time_begins_there(bent: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAGE", 3)
    moment = now()
    await bent.write(7)
    later = [json.loads(text)["id"] async for text in export.lines(bent.db, moment)]
    assert sorted(later) == [row.id for row in await bent.rows(audit_log.c.at >= moment)]
    assert len(later) == 7


@pytest.mark.parametrize("fault", [TypeError, AttributeError, ValueError])
async def test_a_mistake_of_keymans_own_code_is_not_called_tampering(
    bent: Trail, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def mistaken(_count: int) -> None:
        raise fault

    with pytest.raises(fault):
        await verification.verify(bent.db, bent.deployment, (), mistaken)
