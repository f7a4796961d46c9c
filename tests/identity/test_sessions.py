"""Users see and end only their own sessions; a device gets a name from its User-Agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.errors import Forbidden, NotFound
from keyman.identity import sessions
from keyman.identity.principals import Credentials, Principal, User
from keyman.identity.selection import find_chosen
from keyman.identity.sessions import SESSION_IDLE, SessionProof, device_name
from keyman.identity.tables import sessions as table
from keyman.identity.tokens import ALL_SCOPES
from keyman.ids import SessionId, UserId
from keyman.storage.transactions import Database, Unchecked
from keyman.values import EmailAddress
from tests.support.planes import Plane

DEVICES = {
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0": "Firefox · Linux",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/150.0.0.0 Safari/537.36": (
        "Chrome · Windows"
    ),
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 "
    "Mobile/15E148 Safari/604.1": "Mobile Safari · iOS",
    "curl/8.5.0": "curl",
    "": None,
    "something of its own": None,
}


@pytest.mark.parametrize(("user_agent", "name"), DEVICES.items())
def test_a_device_is_called_by_its_browser_and_system(user_agent: str, name: str | None) -> None:
    assert device_name(user_agent) == name


@given(st.text() | st.text(max_size=20).map(lambda text: f"Mozilla/5.0 ({text}) {text}/1.0 Firefox/{text}" * 200))
def test_a_name_is_short_and_printable_whatever_a_client_says(user_agent: str) -> None:
    name = device_name(user_agent)
    assert name is None or (0 < len(name) <= 100 and name.isprintable())


async def caller_of(db: Database, email: str) -> Principal:
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = await find_chosen(connection, EmailAddress(email))
        cookie = await sessions.open_session(connection, user_id, "Firefox · Linux")
    return await SessionProof().verify(db, cookie.reveal(), Credentials(None, cookie.reveal(), "r", None))


@pytest.mark.anyio
async def test_somebody_sees_and_ends_their_own_living_sessions_and_no_others(plane: Plane, db: Database) -> None:
    for email in ("ada@example.com", "eve@example.com"):
        await plane.user(email)
    ada, eve = await caller_of(db, "ada@example.com"), await caller_of(db, "eve@example.com")
    idle = await caller_of(db, "ada@example.com")
    async with db.write(Unchecked.OPERATOR) as connection:
        await connection.execute(
            table.update().where(table.c.id == idle.session_id).values(last_seen_at=now() - SESSION_IDLE)
        )
    listed = await sessions.list_own(db, ada)
    assert [(session.device, session.is_current) for session in listed][:1] == [("Firefox · Linux", True)]
    assert len(listed) == 2  # the one that sign-up opened as well
    assert eve.session_id is not None
    for foreign in (eve.session_id, 10**9, 0, -1, 2**63):
        with pytest.raises(NotFound):
            await sessions.end(db, ada, SessionId(foreign))
    await sessions.end_others(db, ada)
    assert [session.id for session in await sessions.list_own(db, ada)] == [ada.session_id]
    assert len(await sessions.list_own(db, eve)) == 2


@pytest.mark.anyio
async def test_a_token_sees_and_ends_no_session(db: Database) -> None:
    script = Principal(Origin(Actor.TOKEN, 1), ALL_SCOPES, User(UserId(1), "ada@example.com", now()))
    for ask in (sessions.list_own(db, script), sessions.end(db, script, SessionId(1)), sessions.end_others(db, script)):
        with pytest.raises(Forbidden):
            await ask
