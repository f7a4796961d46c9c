"""`keyman.identity.audiences`: no token is for users and for applications, whatever each plane has in its settings."""

from __future__ import annotations

import pytest

from keyman.config.identity import JwtSettings
from keyman.errors import InvalidToken
from keyman.identity import applications, audiences
from keyman.identity.applications import ALL_USERS, Workload
from keyman.identity.fetching import Fetcher
from keyman.identity.jwt import JwtProof
from keyman.identity.key_sets import FixedKeys
from keyman.identity.principals import Credentials, Principal
from keyman.identity.tables import user_audiences
from keyman.identity.workloads import WorkloadProof
from keyman.storage.transactions import Database, Unchecked
from keyman.values import ApplicationName, Subject
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.rows import count

pytestmark = pytest.mark.anyio

ISSUER = Issuer()
OWN = "keyman-resolver"
SHARED = "aud contains the audience of users and that of applications"


async def registered(db: Database, audience: str = OWN) -> WorkloadProof:
    """An application of the issuer of users, and the proof of a plane that does not know the users' audience."""
    workload = Workload(ISSUER.url, Subject("ada"), audience, jwks=ISSUER.jwks().decode())
    await applications.create_workload(db, ApplicationName("chat"), ["OPENAI"], ALL_USERS, workload)
    return WorkloadProof(Fetcher(), None)


def of_users(*, reads_only: bool = False) -> JwtProof:
    return JwtProof(JwtSettings(ISSUER.url, AUDIENCE), FixedKeys(ISSUER.key_set()), reads_only=reads_only)


async def shown(db: Database, proof: JwtProof | WorkloadProof, *audience: object) -> Principal:
    token = ISSUER.token(aud=list(audience))
    return await proof.verify(db, token, Credentials(None, None, "-", None, token))


async def test_a_plane_without_the_setting_refuses_a_token_for_both_once_management_accepts_users(db: Database) -> None:
    """Management is shown the token first, and an attacker who has taken it over then shows it to the resolver."""
    chat = await registered(db)
    assert (await shown(db, chat, OWN, AUDIENCE)).application is not None  # there are no users with JWTs
    with pytest.raises(InvalidToken, match=SHARED):
        await shown(db, of_users(), OWN, AUDIENCE)
    with pytest.raises(InvalidToken, match=SHARED):
        await shown(db, chat, OWN, AUDIENCE)
    for others in ((), ("another",), ("another", 7), ("a\0b",), (AUDIENCE.upper(),)):
        if 7 in others:
            with pytest.raises(InvalidToken, match="aud is not a string or an array of strings"):
                await shown(db, chat, OWN, *others)
        else:
            assert (await shown(db, chat, OWN, *others)).application is not None


async def test_an_application_that_was_registered_with_the_audience_of_users_is_refused(db: Database) -> None:
    chat = await registered(db, AUDIENCE)
    assert (await shown(db, of_users(), AUDIENCE)).user is not None
    with pytest.raises(InvalidToken, match=SHARED):
        await shown(db, chat, AUDIENCE)


async def test_an_audience_is_stored_once_and_by_no_plane_that_only_reads(db: Database) -> None:
    with pytest.raises(InvalidToken, match="sub is not a user"):
        await shown(db, of_users(reads_only=True), AUDIENCE)  # the gateway, which may not write it
    assert await count(db, user_audiences.name) == 0
    for proof in (of_users(), of_users()):
        for _ in range(2):
            assert (await shown(db, proof, AUDIENCE)).user is not None
    assert await count(db, user_audiences.name) == 1
    assert await audiences.is_of_users(db, AUDIENCE)
    assert not await audiences.is_of_users(db, AUDIENCE.upper())


async def test_processes_that_start_at_the_same_moment_store_it_once(db: Database) -> None:
    for _ in range(2):  # the second one finds it only when it stores it
        async with db.write(Unchecked.KEYMAN) as connection:
            await audiences._STORE[connection.dialect.name].execute(connection, audience=AUDIENCE)
    assert await count(db, user_audiences.name) == 1


async def test_no_token_of_a_user_is_accepted_before_its_audience_is_stored(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    async def stopped(_db: Database, _audience: str) -> None:
        raise StoppedError

    proof = of_users()
    with monkeypatch.context() as changed:
        changed.setattr(audiences, "publish", stopped)
        for _ in range(2):
            with pytest.raises(StoppedError):
                await shown(db, proof, AUDIENCE)
    assert (await shown(db, proof, AUDIENCE)).user is not None
    assert await audiences.is_of_users(db, AUDIENCE)
