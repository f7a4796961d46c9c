"""Principals: one type for everyone who calls, found by the first proof that recognises a credential."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from keyman.audit.entries import Actor, Origin
from keyman.clock import now
from keyman.errors import Forbidden, Unauthenticated
from keyman.identity.application_tokens import ApplicationProof
from keyman.identity.personal_tokens import TokenProof
from keyman.identity.principals import Application, Credentials, Principal, Proof, User, identify
from keyman.identity.sessions import SessionProof, open_session
from keyman.identity.tokens import ALL_SCOPES, Scope, Token
from keyman.ids import ApplicationId, SessionId, UserId
from keyman.storage.transactions import Database, Unchecked
from tests.support.rows import add

pytestmark = pytest.mark.anyio

USER = User(UserId(7), "ada@example.com", now())
ORIGIN = Origin(Actor.SESSION)


@dataclass
class Recorded:
    """A proof that recognises one field of the credentials, and notes what it was asked to verify."""

    name: str
    verified: list[str] = field(default_factory=list)

    def find(self, credentials: Credentials) -> str | None:
        value: str | None = getattr(credentials, self.name)
        return value

    async def verify(self, _db: Database, credential: str, _credentials: Credentials) -> Principal:
        self.verified.append(credential)
        raise Unauthenticated(f"not by {self.name}")


async def test_the_first_proof_that_recognises_a_credential_decides(db: Database) -> None:
    bearer, cookie = Recorded("bearer"), Recorded("cookie")
    proofs: list[Proof] = [bearer, cookie]
    for shown in (Credentials("t", "c", "r", None), Credentials("t", None, "r", None)):
        with pytest.raises(Unauthenticated) as caught:
            await identify(db, proofs, shown, "advice")
        assert str(caught.value) == "not by bearer"
    assert (bearer.verified, cookie.verified) == (["t", "t"], [])
    with pytest.raises(Unauthenticated) as caught:
        await identify(db, proofs, Credentials(None, "c", "r", None), "advice")
    assert str(caught.value) == "not by cookie"


async def test_a_request_without_a_credential_gets_advice(db: Database) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await identify(db, [TokenProof(), SessionProof()], Credentials(None, None, "r", None), "Send a token.")
    assert str(caught.value) == "Send a token."


async def test_each_proof_refuses_the_credentials_of_the_others(db: Database) -> None:
    async with db.write(Unchecked.OPERATOR) as connection:
        user_id = UserId(int(await add(connection, "users") or 0))
        cookie = (await open_session(connection, user_id)).reveal()
    assert (await SessionProof().verify(db, cookie, Credentials(None, cookie, "r", None))).user_id == user_id
    token = Token.generate().reveal()
    for proof in (TokenProof(), ApplicationProof()):
        for credential in (cookie, token, ""):
            with pytest.raises(Unauthenticated):
                await proof.verify(db, credential, Credentials(credential, None, "r", None))
    with pytest.raises(Unauthenticated):
        await SessionProof().verify(db, token, Credentials(None, token, "r", None))


async def test_a_person_acts_for_the_owner_that_they_are_and_an_application_for_none() -> None:
    person = Principal(ORIGIN, ALL_SCOPES, USER, session_id=SessionId(1))
    application = Principal(
        Origin(Actor.APPLICATION, 3), application=Application(ApplicationId(2), "chat", frozenset({"OPENAI"}), None)
    )
    assert (person.kind, person.owner_id, person.user_id) == (Actor.SESSION, 7, 7)
    assert person.require_session() == 1
    assert application.require_application().name == "chat"
    assert application.kind is Actor.APPLICATION
    for ask in (
        application.require_user,
        application.require_session,
        lambda: application.owner_id,
        lambda: application.require(Scope.KEYS_READ),
        person.require_application,
    ):
        with pytest.raises(Forbidden):
            ask()


async def test_credentials_do_not_show_what_they_hold() -> None:
    shown = Credentials("km_secret", "cookie-secret", "r", None)
    assert "secret" not in f"{shown!r} {shown}"
