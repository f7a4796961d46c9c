"""Each statement uses the index that is meant for it, on both databases, with and without statistics.

`bench/plans.py` catches the statements while keyman's operations run, and writes docs/reference/query-plans.md as well.
"""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.engine import URL, make_url

from bench import filling, plans
from bench.plans import Captured
from keyman import migrations
from keyman.audit import counting
from keyman.clock import now
from keyman.identity import personal_tokens, users
from keyman.identity.standing import Grounds
from keyman.identity.tables import api_tokens
from keyman.ids import KeyId, OwnerId
from keyman.keys import duplicates, finding, uses
from keyman.keys.duplicates import Stored
from keyman.keys.finding import Wanted
from keyman.keys.left import left_through
from keyman.keys.uses import RELEASES
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress
from tests.support.database import PostgresServer
from tests.support.groups import groups_go_well

pytestmark = pytest.mark.anyio

KEYS = 20_000

ROWID = "INTEGER PRIMARY KEY"
OWNER, OF_SERVICE = "ix_api_keys_owner", "ix_api_keys_owner_service"
DEFAULT = "uq_api_keys_default"
IN_USE = rf"{DEFAULT}\b[\s\S]*\b{OF_SERVICE}"
"""The default, and then the newest key."""

OF_ACTION, AT = "ix_audit_log_owner_action", "ix_audit_log_at"
CHECKED = ("pk_api_tokens", ROWID)
"""The check of the caller, whose credential is a token."""

OF_APPLICATION = ("pk_application_tokens|ix_application_tokens_application_id", ROWID)
"""The check of an application. Most have one token, so either index finds it."""

BY_PAIR = (
    r"uq_application_identities_issuer_subject\b[\s\S]*\buq_identities_issuer_subject",
    r"sqlite_autoindex_application_identities_1[\s\S]*sqlite_autoindex_identities_1",
)
"""An identity by its issuer and subject, in both tables of identities."""

BLOCKS = ("pk_application_blocks", "sqlite_autoindex_application_blocks_1")
OF_ISSUERS = ("ix_identities_user_id", "ix_identities_user_id")
"""The issuers that know a user."""

PERMITTED = (rf"pk_applications\b[\s\S]*\b{OF_ISSUERS[0]}", rf"{ROWID}[\s\S]*{OF_ISSUERS[1]}[\s\S]*{BLOCKS[1]}")
"""An application, whether it serves the owner of the keys, and whether the owner has blocked it."""

CURRENT = ("ix_audit_log_value", "ix_audit_log_value")
"""The value of a key that the audit log names."""

# The index of each statement of a label: PostgreSQL's name, and SQLite's where it has another for a constraint's.
INDEXES: dict[str, list[tuple[str, str]]] = {
    "keys: the first page": [(OWNER, OWNER)],
    "keys: a page in the middle": [(OWNER, OWNER)],
    "keys: the first page of an owner of three old keys": [(OWNER, OWNER)],
    "keys: the first page of an owner of none": [(OWNER, OWNER)],
    "keys: one service": [(OF_SERVICE, OF_SERVICE)],
    "keys: one service, a page in the middle": [(OF_SERVICE, OF_SERVICE)],
    "keys: one service that the owner has no key of": [(OF_SERVICE, OF_SERVICE)],
    # Both begin with the owner; a filter on the name fits neither better.
    "keys: by a name that many have": [(f"{OWNER}|{OF_SERVICE}", f"{OWNER}|{OF_SERVICE}")],
    "keys: by a name that none has": [(f"{OWNER}|{OF_SERVICE}", f"{OWNER}|{OF_SERVICE}")],
    **{
        label: [(f"{OWNER}|{OF_SERVICE}", f"{OWNER}|{OF_SERVICE}|{DEFAULT}")]
        for label in (
            "keys: of a status",
            "keys: sorted by name",
            "keys: sorted by name, a page in the middle",
            "keys: sorted by last use",
            "keys: counted",
            "keys: those that applications get",
        )
    },
    "keys: one by its id": [(f"{OWNER}|pk_api_keys", ROWID)],
    "keys: the oldest other with the same value": [("ix_api_keys_fingerprint", "ix_api_keys_fingerprint")],
    "keys: a new one": [
        CHECKED,
        (f"{OWNER}|{OF_SERVICE}", f"{OWNER}|{OF_SERVICE}"),
        ("pk_idempotency", "sqlite_autoindex_idempotency_1"),
    ],
    "keys: one more than the owner may have": [
        CHECKED,
        (f"{OWNER}|{OF_SERVICE}", f"{OWNER}|{OF_SERVICE}"),
    ],
    "keys: a change": [CHECKED, (f"{OWNER}|pk_api_keys", ROWID), ("pk_api_keys", ROWID)],
    "keys: another default": [
        CHECKED,
        (OF_SERVICE, OF_SERVICE),
        (f"{OWNER}|pk_api_keys", ROWID),
        (DEFAULT, DEFAULT),
        ("pk_api_keys", ROWID),
    ],
    "keys: a new value": [
        (f"{OWNER}|pk_api_keys", ROWID),
        CHECKED,
        (f"{OWNER}|pk_api_keys", ROWID),
        CURRENT,
        ("pk_api_keys", ROWID),
    ],
    "keys: removed": [CHECKED, (f"{OWNER}|pk_api_keys", ROWID), ("pk_api_keys", ROWID)],
    "keys: who has used one of late, of three applications": [("ix_audit_log_uses", "ix_audit_log_uses")] * 5,
    "an application by its token": [
        ("uq_application_tokens_token_hash", "sqlite_autoindex_application_tokens_1"),
        OF_APPLICATION,
    ],
    "resolve: a key by its id": [OF_APPLICATION, CURRENT],
    "resolve: a user's key of a service": [OF_APPLICATION, (IN_USE, IN_USE)],
    "resolve: a user without such a key": [
        OF_APPLICATION,
        (IN_USE, IN_USE),
        (OF_SERVICE, f"{OWNER}|{OF_SERVICE}"),
        ("pk_users", ROWID),
    ],
    "resolve: a subject's key of a service": [OF_APPLICATION, BY_PAIR, (IN_USE, IN_USE)],
    "resolve: an unknown subject": [OF_APPLICATION, BY_PAIR],
    "resolve: the last use": [("pk_api_keys", ROWID)],
    "consent: an application that its owner blocks": [CHECKED, PERMITTED, ("pk_users", ROWID)],
    "consent: a resolve by a blocked application": [OF_APPLICATION, CURRENT, BLOCKS],
    "consent: the blocks of the owners whose requests are under way": [BLOCKS],
    "consent: an application that is not blocked any more": [CHECKED, PERMITTED, BLOCKS],
    "applications: a new token": [
        ("uq_applications_name", "sqlite_autoindex_applications_1"),
        ("uq_applications_name", "sqlite_autoindex_applications_1"),
        ("ix_application_tokens_application_id", "ix_application_tokens_application_id"),
    ],
    "a token by its hash": [
        ("uq_api_tokens_token_hash", "sqlite_autoindex_api_tokens_1"),
        ("pk_api_tokens", ROWID),
    ],
    "a session by its hash": [("uq_sessions_id_hash", "sqlite_autoindex_sessions_1")],
    "sessions: an owner's": [("ix_sessions_user_id", "ix_sessions_user_id")],
    "sessions: a new one": [("ix_sessions_user_id", "ix_sessions_user_id")],
    "tokens: an owner's": [("ix_api_tokens_user_id", "ix_api_tokens_user_id")],
    "tokens: a new one": [CHECKED, ("ix_api_tokens_user_id", "ix_api_tokens_user_id")],
    "tokens: one revoked": [CHECKED, ("pk_api_tokens|ix_api_tokens_user_id", ROWID)],
    "an account by its address": [
        ("uq_users_email_key", "sqlite_autoindex_users_1"),
        ("uq_users_email_key", "sqlite_autoindex_users_1"),  # again, after the lock
        ("pk_users", ROWID),
        ("ix_sessions_user_id", "ix_sessions_user_id"),
    ],
    "an identity: its user, at a first use or a sign-in": [BY_PAIR],
    "an identity: the issuers of a user": [OF_ISSUERS],
    "a user by a JWT": [BY_PAIR],
    "an application by its JWT": [("ix_applications_jwt", "ix_applications_jwt")],
    "audit: the first page": [("ix_audit_log_owner", "ix_audit_log_owner")],
    "audit: a page in the middle": [("ix_audit_log_owner", "ix_audit_log_owner")],
    "audit: the first page of an owner of none": [("ix_audit_log_owner", "ix_audit_log_owner")],
    "audit: one action, of which there are few": [(OF_ACTION, OF_ACTION)],
    "audit: three actions, a page in the middle": [(f"{OF_ACTION}|ix_audit_log_owner|pk_audit_log", OF_ACTION)],
    "audit: a day": [(AT, AT)],
    "audit: one action on a day": [(AT, AT)],
    "an idempotency key": [("pk_idempotency", "sqlite_autoindex_idempotency_1")],
    # SQLite does not show how an upsert finds its row: it is the constraint's index by necessity.
    "throttle: an attempt": [("pk_throttle", "")],
    "throttle: forgiven": [("pk_throttle", "sqlite_autoindex_throttle_1")] * 2,
    "throttle: a wrong password": [("pk_throttle", "sqlite_autoindex_throttle_1"), ("pk_throttle", "")],
    "throttle: windows that have ended": [("pk_throttle", "sqlite_autoindex_throttle_1")],
    "housekeeping: sessions": [("ix_sessions_last_seen_at", "ix_sessions_last_seen_at")],
    "housekeeping: provider_visits": [("ix_provider_visits_expires_at", "ix_provider_visits_expires_at")],
    "housekeeping: logout_tokens": [("ix_logout_tokens_expires_at", "ix_logout_tokens_expires_at")],
    "housekeeping: throttle": [("ix_throttle_ends_at", "ix_throttle_ends_at")],
    "housekeeping: idempotency": [("ix_idempotency_created_at", "ix_idempotency_created_at")],
}

IN_ORDER = [
    label
    for label in INDEXES
    if label.startswith(("keys: the first", "keys: the oldest", "keys: a page", "audit:", "keys: one service that"))
    and not label.endswith(" day")
]
"""Listings that PostgreSQL must not sort either. Some rows of one service or of one day it may: that costs it less."""

SORT = r"\bSort\b(?! Key| Method)"
"""PostgreSQL's word for what sorts; what merges has a sort key, too."""

SORTED = (
    "keys: sorted",
    "audit: one action",
    "audit: three actions",
    "sessions: an owner's",
    "resolve: a key by its id",
    "consent: a resolve",  # finds a key by its id
    "resolve: a user",  # with or without such a key: a key is found by its id, too
    "resolve: a subject's key of a service",
)
"""SQLite may sort the keys of an owner, a page of each action, the sessions of an account, which has 100 at
most, and the entries that name a value of one key.
"""


@pytest.fixture(scope="module")
async def filled_sqlite(tmp_path_factory: pytest.TempPathFactory) -> tuple[URL, list[Captured]]:
    return await _filled(make_url(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('plans')}/keyman.db"))


@pytest.fixture(scope="module")
async def filled_postgresql(postgres: PostgresServer) -> tuple[URL, list[Captured]]:
    url, captured = await _filled(make_url(postgres.create_database("plans")))
    await filling.analyze(url)
    return url, captured


async def _filled(url: URL) -> tuple[URL, list[Captured]]:
    await migrations.upgrade(url)
    await filling.build(url, KEYS, at_least=KEYS)  # so that no table is small enough to be better read whole
    db = Database(url)
    captured = await plans.capture(db)
    await db.close()
    return url, captured


@pytest.mark.parametrize("analyzed", [False, True], ids=["knowing nothing", "analyzed"])
async def test_sqlite_answers_from_the_intended_index(
    filled_sqlite: tuple[URL, list[Captured]], analyzed: bool
) -> None:
    url, captured = filled_sqlite
    if analyzed:
        await filling.analyze(url)
    explained = await plans.explain(url, captured)
    assert explained.keys() == INDEXES.keys()
    for label, texts in explained.items():
        assert len(texts) == len(INDEXES[label]), label
        for text, (_, index) in zip(texts, INDEXES[label], strict=True):
            assert re.search(index, text), f"{label}\n{text}"
            assert not re.search(r"SCAN (?!anon)", text), f"{label}\n{text}"
            assert "TEMP B-TREE" not in text or label.startswith(SORTED), f"{label}\n{text}"


async def test_postgresql_answers_from_the_intended_index(filled_postgresql: tuple[URL, list[Captured]]) -> None:
    url, captured = filled_postgresql
    explained = await plans.explain(url, captured)
    assert explained.keys() == INDEXES.keys()
    for label, texts in explained.items():
        assert len(texts) == len(INDEXES[label]), label
        for text, (index, _) in zip(texts, INDEXES[label], strict=True):
            assert re.search(rf"\b({index})\b", text), f"{label}\n{text}"
            assert "Seq Scan" not in text, f"{label}\n{text}"
            assert label not in IN_ORDER or not re.search(SORT, text), f"{label}\n{text}"


async def test_a_plan_that_postgresql_keeps_for_all_owners_reads_no_table_of_keys_or_proofs_whole(
    filled_postgresql: tuple[URL, list[Captured]],
) -> None:
    url, captured = filled_postgresql
    for label, texts in (await plans.explain(url, captured, generic=True)).items():
        if label.startswith("housekeeping"):
            continue  # without a moment to look at, it expects a third of all rows to have ended
        for text, (index, _) in zip(texts, INDEXES[label], strict=True):
            assert re.search(rf"\b({index})\b", text), f"{label}\n{text}"
            assert "Seq Scan" not in text, f"{label}\n{text}"
            assert label not in IN_ORDER or not re.search(SORT, text), f"{label}\n{text}"


@pytest.mark.parametrize("generic", [False, True])
async def test_what_requests_look_up_together_is_found_by_an_index(
    filled_postgresql: tuple[URL, list[Captured]], generic: bool
) -> None:
    url, _ = filled_postgresql
    db, captured = Database(url), list[Captured]()
    wanted = [Wanted(user_id, service, now()) for user_id in (plans.HEAVY, plans.SPARSE) for service in ("GROQ", "X")]
    ids = [plans.ONE_KEY_OF_HEAVY, plans.ANOTHER]
    with groups_go_well(), plans.listening("together", url, captured):
        await asyncio.gather(
            *(db.together(Unchecked.OUTCOME, partial(finding.in_use, wanted=each)) for each in wanted),
            *(db.together(Unchecked.OUTCOME, partial(finding.by_id, key_id=key_id)) for key_id in ids),
        )
    await db.close()
    texts = (await plans.explain(url, captured, generic=generic))["together"]
    # The locks of the accounts, active keys, and others; the owners of keys, their locks, and the keys.
    found = [text for text in texts if "Index" in text]
    assert len(found) == 4
    assert not any("Seq Scan" in text for text in texts), texts


@pytest.mark.parametrize("generic", [False, True])
async def test_callers_who_come_together_are_found_one_by_one(
    filled_postgresql: tuple[URL, list[Captured]], generic: bool
) -> None:
    url, _ = filled_postgresql
    db, captured = Database(url), list[Captured]()
    async with db.read() as connection:
        tokens = [row.id for row in await connection.execute(select(api_tokens.c.id, api_tokens.c.user_id).limit(3))]
    with plans.listening("together", url, captured):
        await asyncio.gather(*(personal_tokens._BY_HASH.find(db, bytes([number]) * 32) for number in range(5)))
        async with db.write(Unchecked.OPERATOR) as connection:
            of_all = [Grounds(personal_tokens._STANDING, token_id, 1) for token_id in tokens]
            await personal_tokens._STANDING.confirm_all(connection, [*of_all, *of_all])
    await db.close()
    looked_up, *_, confirmed = (await plans.explain(url, captured, generic=generic))["together"]
    for plan in (looked_up, confirmed):
        assert "Function Scan on" in plan, plan
        assert re.search(r"Index Scan using \w+ on api_tokens", plan), plan
        assert not re.search("Seq Scan|Hash Join|Merge Join", plan), plan


async def test_uses_by_day_and_the_last_uses_of_a_key_are_found_by_an_index(
    filled_sqlite: tuple[URL, list[Captured]], filled_postgresql: tuple[URL, list[Captured]]
) -> None:
    for url, _ in (filled_sqlite, filled_postgresql):
        await _uses_are_found_by_an_index(url)


async def _uses_are_found_by_an_index(url: URL) -> None:
    db, captured, moment = Database(url), list[Captured](), now()
    async with db.read() as connection:
        of_engine = connection.engine.url
    with plans.listening("by day", of_engine, captured):
        await counting.by_day(db, plans.HEAVY, RELEASES, moment - timedelta(days=14))
    with plans.listening("newest", of_engine, captured):
        await uses.newest(db, plans.caller(plans.HEAVY), plans.ONE_KEY_OF_HEAVY)
    with plans.listening("left through", of_engine, captured):
        page = range(plans.ONE_KEY_OF_HEAVY, plans.ONE_KEY_OF_HEAVY + 50)
        await left_through(db, plans.caller(plans.HEAVY), map(KeyId, page))
    await db.close()
    explained = await plans.explain(url, captured)
    assert len(explained["by day"]) == len(RELEASES)
    assert len(explained["newest"]) > 2 * len(RELEASES)
    for text in explained["by day"]:
        assert re.search(f"{OF_ACTION}|{AT}", text), text  # the time, if it is rarer than the user's entries
    for text in explained["newest"]:
        assert re.search(f"ix_audit_log_uses|{OF_ACTION}", text), text  # the action, if the user has few entries of it
    (of_page,) = explained["left through"]
    assert re.search("ix_audit_log_value|ix_audit_log_uses", of_page), of_page  # the keys of the page, not the owner's
    for text in (*explained["by day"], *explained["newest"], of_page):
        assert not re.search(r"Seq Scan|SCAN audit_log", text), text


@pytest.mark.parametrize("generic", [False, True])
async def test_one_row_of_an_index_is_read_for_each_of_many_keys_with_the_same_value(
    filled_postgresql: tuple[URL, list[Captured]], generic: bool
) -> None:
    url, _ = filled_postgresql
    db, captured = Database(url), list[Captured]()
    stored = [Stored(OwnerId(plans.HEAVY), key_id, bytes(32)) for key_id in (KeyId(100), plans.ONE_KEY_OF_HEAVY)]
    async with db.read() as connection:
        with plans.listening("same", url, captured):
            assert await duplicates.find(connection, stored) == [200, 100]
    await db.close()
    (text,) = (await plans.explain(url, captured, generic=generic))["same"]
    rows = "" if generic else r" \(actual rows=1 loops=2\)"
    assert re.search(rf"ix_api_keys_fingerprint on api_keys others{rows}", text), text
    assert not re.search(SORT, text), text


async def test_a_statement_to_another_database_of_the_process_is_not_captured(
    filled_postgresql: tuple[URL, list[Captured]], db: Database
) -> None:
    """Planes that other tests share work in the background, on databases of their own and of both kinds."""
    url, _ = filled_postgresql
    own, captured = Database(url), list[Captured]()
    with plans.listening("another", url, captured):
        await users.find(db, EmailAddress.parse("u1@example.com"))
        assert captured == []
        await users.find(own, EmailAddress.parse("u1@example.com"))
        assert len(captured) == 1
    await own.close()


def test_the_page_of_plans_holds_every_statement() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "query-plans.md").read_text()
    for label in INDEXES:
        assert f"## {label[0].upper()}{label[1:]}\n" in page
    assert "keyman.db" not in page
    assert "Seq Scan" not in page
    assert "SCAN api_keys" not in page
