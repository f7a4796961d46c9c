"""Applications and their tokens: registering, replacing, listing, revoking, and the audit entries of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import time_machine
from sqlalchemy import select

from keyman.audit.entries import Actor
from keyman.audit.tables import audit_log
from keyman.clock import now
from keyman.errors import Conflict, NotFound, Unauthenticated
from keyman.identity import applications
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.applications import RESERVED_NAMES
from keyman.identity.principals import Application, Credentials, Principal
from keyman.identity.tables import application_tokens
from keyman.identity.tokens import Token
from keyman.keys.checks import KEYMAN, USE
from keyman.storage import notes
from keyman.storage.transactions import Database
from keyman.values import ApplicationName

pytestmark = pytest.mark.anyio

CHAT = ApplicationName("chat-backend")


async def verify(db: Database, token: str) -> Principal:
    credentials = Credentials(token, None, "a" * 32, "2001:db8::1")
    return await ApplicationProof().verify(db, token, credentials)


async def shown(db: Database, token: Token) -> Application:
    """The application that shows this token."""
    return (await verify(db, token.reveal())).require_application()


async def test_a_token_is_its_applications_with_its_services(db: Database) -> None:
    made = await applications.create(db, CHAT, ["OPENAI", "GROQ", "OPENAI"])
    assert made.services == ("OPENAI", "GROQ")
    application = await shown(db, made.token)
    assert (application.name, application.services) == ("chat-backend", frozenset({"OPENAI", "GROQ"}))
    origin = (await verify(db, made.token.reveal())).origin
    assert (origin.actor, origin.request_id, origin.address) == (Actor.APPLICATION, "a" * 32, "2001:db8::1")
    async with db.read() as connection:
        stored = (await connection.execute(select(application_tokens))).one()
    assert origin.actor_id == stored.id
    assert stored.token_hash == made.token.digest()
    assert made.token.reveal() not in repr(tuple(stored))


async def test_a_name_is_taken_for_ever(db: Database) -> None:
    await applications.create(db, CHAT, ["OPENAI"])
    for _ in range(2):
        with pytest.raises(Conflict):
            await applications.create(db, CHAT, ["GROQ"])
        await applications.revoke(db, CHAT)
    async with db.read() as connection:
        assert len((await connection.execute(select(application_tokens))).all()) == 1


@pytest.mark.parametrize("name", [KEYMAN, USE])
async def test_no_application_has_a_name_that_a_verdict_has(db: Database, name: str) -> None:
    with pytest.raises(Conflict, match="reserved"):
        await applications.create(db, ApplicationName(name), ["OPENAI"])
    assert name in RESERVED_NAMES
    assert await applications.list_all(db) == []


async def test_what_a_rotation_leaves_ends_with_the_overlap_and_is_not_prolonged(db: Database) -> None:
    with time_machine.travel(now(), tick=False) as clock:
        first = (await applications.create(db, CHAT, ["OPENAI"])).token
        second = (await applications.rotate(db, CHAT, timedelta(hours=1))).token
        third = (await applications.rotate(db, CHAT, timedelta(hours=24))).token
        for token in (first, second, third):
            await shown(db, token)
        clock.shift(timedelta(hours=1))
        with pytest.raises(Unauthenticated):
            await shown(db, first)
        await shown(db, second)
        fourth = (await applications.rotate(db, CHAT, timedelta())).token
        for token in (first, second, third):
            with pytest.raises(Unauthenticated):
                await shown(db, token)
        await shown(db, fourth)


async def test_rotations_at_once_leave_tokens_that_all_end_but_the_last(db: Database) -> None:
    await applications.create(db, CHAT, ["OPENAI"])
    made = await asyncio.gather(*(applications.rotate(db, CHAT, timedelta()) for _ in range(5)))
    good = 0
    for one in made:
        try:
            await shown(db, one.token)
        except Unauthenticated:
            continue
        good += 1
    assert good == 1


async def test_a_revoked_application_is_out_with_all_its_tokens_and_gets_no_new_one(db: Database) -> None:
    first = (await applications.create(db, CHAT, ["OPENAI"])).token
    second = (await applications.rotate(db, CHAT, timedelta(hours=24))).token
    other = (await applications.create(db, ApplicationName("other"), ["OPENAI"])).token
    await applications.revoke(db, CHAT)
    for token in (first, second):
        with pytest.raises(Unauthenticated):
            await shown(db, token)
    with pytest.raises(Conflict):
        await applications.rotate(db, CHAT, timedelta())
    assert (await shown(db, other)).name == "other"


async def test_what_does_not_exist_is_said(db: Database) -> None:
    with pytest.raises(NotFound):
        await applications.rotate(db, CHAT, timedelta())
    with pytest.raises(NotFound):
        await applications.revoke(db, CHAT)
    for text in ("", "km_x", Token.generate().reveal()):
        with pytest.raises(Unauthenticated):
            await verify(db, text)


async def test_the_list_says_what_is_usable_and_when_it_was_used(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "NOTE_PATIENCE", 5.0)  # on a busy machine a note is left out otherwise
    with time_machine.travel(now(), tick=False) as clock:
        first = (await applications.create(db, CHAT, ["OPENAI", "GROQ"])).token
        await applications.create(db, ApplicationName("a-second"), ["GROQ"])
        (second, chat) = await applications.list_all(db)
        assert (second.name, second.last_used_at, second.disabled_at) == ("a-second", None, None)
        assert (chat.services, chat.tokens, chat.last_used_at) == (["OPENAI", "GROQ"], [first.hint()], None)
        start = now()
        for seconds, noted in ((0, 0), (59, 0), (60, 60)):
            clock.move_to(start + timedelta(seconds=seconds))
            await shown(db, first)
            assert (await applications.list_all(db))[1].last_used_at == start + timedelta(seconds=noted)
        new = (await applications.rotate(db, CHAT, timedelta(hours=1))).token
        assert (await applications.list_all(db))[1].tokens == [first.hint(), new.hint()]
        clock.shift(timedelta(hours=1))
        chat = (await applications.list_all(db))[1]
        assert (chat.tokens, chat.last_used_at) == ([new.hint()], start + timedelta(seconds=60))
        await applications.revoke(db, CHAT)
        chat = (await applications.list_all(db))[1]
        assert (chat.tokens, chat.disabled_at) == ([], now())


async def test_the_audit_log_has_each_change_as_an_operators(db: Database) -> None:
    tokens = [
        (await applications.create(db, CHAT, ["OPENAI"])).token,
        (await applications.rotate(db, CHAT, timedelta())).token,
    ]
    await applications.revoke(db, CHAT)
    async with db.read() as connection:
        entries = (await connection.execute(select(audit_log).order_by(audit_log.c.id))).all()
        ids = (await connection.execute(select(application_tokens.c.id).order_by(application_tokens.c.id))).scalars()
    told = [(entry.action, entry.actor, entry.application, entry.token_id, entry.user_id) for entry in entries]
    first, second = ids
    assert told == [
        ("application.create", "operator", "chat-backend", first, None),
        ("application.rotate", "operator", "chat-backend", second, None),
        ("application.revoke", "operator", "chat-backend", None, None),
    ]
    for token in tokens:
        assert token.reveal() not in repr(entries)
        assert token.hint() not in repr(entries)
