"""`keyman.identity.passwords`: Argon2id, outside the event loop, with a bound on concurrent hashes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from argon2.profiles import RFC_9106_LOW_MEMORY

from keyman.errors import RateLimited
from keyman.identity.passwords import MAX_WAITING, THREADS, Passwords, WrongPassword
from keyman.secret import Secret

pytestmark = pytest.mark.anyio

RIGHT = Secret("correct horse battery staple")
WRONG = Secret("incorrect horse battery staple")


class Watching(PasswordHasher):
    """The real hasher, which notes in which thread it was asked, how often, and how many at a time."""

    def __init__(self, time_cost: int = 1) -> None:
        super().__init__(time_cost=time_cost, memory_cost=64, parallelism=1)
        self.threads: set[str] = set()
        self.verified: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # the library's own signature and name
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.threads.add(threading.current_thread().name)
            self.verified.append(str(hash))
        try:
            return super().verify(hash, password)
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def hasher() -> Watching:
    return Watching()


@pytest.fixture
def passwords(hasher: Watching) -> Iterator[Passwords]:
    made = Passwords(hasher)
    yield made
    made.close()


async def test_production_hashes_as_rfc_9106_recommends() -> None:
    passwords = Passwords()
    stored = await passwords.hash(RIGHT)
    passwords.close()
    parameters = RFC_9106_LOW_MEMORY
    cost = f"m={parameters.memory_cost},t={parameters.time_cost},p={parameters.parallelism}"
    assert stored.startswith(f"$argon2id$v=19${cost}$")
    assert parameters.memory_cost >= 64 * 1024
    assert len(stored) <= 255


async def test_the_right_password_passes_and_any_other_raises(passwords: Passwords) -> None:
    stored = await passwords.hash(RIGHT)
    assert await passwords.verify(stored, RIGHT) is None
    for wrong in (WRONG, Secret(""), Secret(RIGHT.reveal() + " "), Secret(RIGHT.reveal().upper())):
        with pytest.raises(WrongPassword):
            await passwords.verify(stored, wrong)


async def test_a_password_has_another_hash_each_time(passwords: Passwords) -> None:
    assert await passwords.hash(RIGHT) != await passwords.hash(RIGHT)


async def test_no_account_costs_one_verification_with_the_same_parameters(
    passwords: Passwords, hasher: Watching
) -> None:
    stored = await passwords.hash(RIGHT)
    for account, password in (
        (stored, WRONG),
        (None, WRONG),
        (None, RIGHT),
        (None, Secret("no account has this password")),
    ):
        with pytest.raises(WrongPassword):
            await passwords.verify(account, password)
    assert len(hasher.verified) == 4
    assert len({used.rsplit("$", 2)[0] for used in hasher.verified}) == 1


@pytest.mark.parametrize(
    "stored", ["", "x", "$argon2id$", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$v=19$m=8,t=1,p=1$x$y"]
)
async def test_a_stored_hash_that_is_none_lets_nobody_in(passwords: Passwords, stored: str) -> None:
    with pytest.raises(WrongPassword):
        await passwords.verify(stored, RIGHT)


async def test_risen_parameters_give_a_new_hash_only_at_the_next_right_password(passwords: Passwords) -> None:
    stored = await passwords.hash(RIGHT)
    risen = Passwords(Watching(2))
    with pytest.raises(WrongPassword):
        await risen.verify(stored, WRONG)
    new = await risen.verify(stored, RIGHT)
    assert new is not None
    assert "t=2" in new
    assert await risen.verify(new, RIGHT) is None
    risen.close()


async def test_the_event_loop_does_not_hash(passwords: Passwords, hasher: Watching) -> None:
    await passwords.verify(await passwords.hash(RIGHT), RIGHT)
    assert all(name.startswith("argon2") for name in hasher.threads)


async def test_no_more_than_so_many_are_hashed_at_once_and_the_rest_wait_or_are_turned_away(
    passwords: Passwords, hasher: Watching
) -> None:
    stored = await passwords.hash(RIGHT)
    asked = 3 * MAX_WAITING
    answers = await asyncio.gather(*(passwords.verify(stored, RIGHT) for _ in range(asked)), return_exceptions=True)
    turned_away = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert len(turned_away) == asked - MAX_WAITING
    assert all(answer.retry_after for answer in turned_away)
    assert answers.count(None) == MAX_WAITING
    assert hasher.most_at_once <= THREADS
    # The next one finds an empty queue, also after failures and those that were turned away.
    with pytest.raises(WrongPassword):
        await passwords.verify(stored, WRONG)
    assert await passwords.verify(stored, RIGHT) is None


async def test_who_gives_up_leaves_the_queue(passwords: Passwords) -> None:
    stored = await passwords.hash(RIGHT)
    waiting = [asyncio.ensure_future(passwords.verify(stored, RIGHT)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await passwords.verify(stored, RIGHT) is None
