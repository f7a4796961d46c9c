"""Identities: one user for each pair of issuer and subject, also when many call first."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import IntegrityError

from keyman.identity.identities import Identity, add, find, find_or_create
from keyman.identity.tables import application_identities, identities
from keyman.ids import UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import Subject
from tests.support.rows import count

pytestmark = pytest.mark.anyio

OUTSIDE = "https://id.example.com"
OF_APP = "keyman:app:shop"


async def known(db: Database, issuer: str, subject: str) -> UserId:
    table = application_identities if issuer == OF_APP else identities
    async with db.write(Unchecked.SIGN_IN) as connection:
        return (await find_or_create(connection, Identity(issuer, Subject(subject)), table)).user_id


async def test_a_hundred_first_calls_at_once_create_one_user(db: Database) -> None:
    found = await asyncio.gather(*(known(db, OUTSIDE, "ada") for _ in range(100)))
    assert len(set(found)) == 1
    assert (await count(db, "users"), await count(db, "owners"), await count(db, "identities")) == (1, 1, 1)


async def test_subjects_and_issuers_that_differ_in_one_byte_are_different_users(db: Database) -> None:
    pairs = [(OUTSIDE, "ada"), (OUTSIDE, "Ada"), (OUTSIDE + "/", "ada"), (OUTSIDE, "\u00e5da"), (OUTSIDE, "a\u030ada")]
    users = [await known(db, *pair) for pair in pairs]
    assert len(set(users)) == len(pairs)
    assert [await known(db, *pair) for pair in pairs] == users


async def test_the_identity_of_an_application_counts_before_one_that_management_stored(db: Database) -> None:
    ada, eve = await known(db, OUTSIDE, "ada"), await known(db, OUTSIDE, "eve")
    async with db.write(Unchecked.SIGN_IN) as connection:
        await add(connection, Identity(OUTSIDE, Subject("ada")), eve, application_identities)
        assert await find(connection, Identity(OUTSIDE, Subject("ada"))) == eve != ada


async def test_management_cannot_store_an_identity_of_an_application(db: Database) -> None:
    ada = await known(db, OUTSIDE, "ada")
    with pytest.raises(IntegrityError):
        async with db.write(Unchecked.SIGN_IN) as connection:
            await add(connection, Identity(OF_APP, Subject("ada")), ada, identities)


async def test_an_identity_has_one_user(db: Database) -> None:
    ada = await known(db, OUTSIDE, "ada")
    with pytest.raises(IntegrityError):
        async with db.write(Unchecked.SIGN_IN) as connection:
            await add(connection, Identity(OUTSIDE, Subject("ada")), ada, identities)
