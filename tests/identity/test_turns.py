"""`keyman.identity.turns`: who is next, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.errors import RateLimited
from keyman.identity.networks import network_of, site_of
from keyman.identity.turns import MAX_PER_ACCOUNT, NEWCOMERS, FairQueue, Place, groups_of

pytestmark = pytest.mark.anyio

HOME = "192.0.2.1"
ELSEWHERE = "198.51.100.1"


class Room:
    """A queue whose turns the test ends, one by one. `served` has the names of requests in the order of their turns."""

    def __init__(self, at_once: int = 1, most: int = 64) -> None:
        self.queue = FairQueue(at_once, most)
        self.served: list[str] = []
        self.refused: list[str] = []
        self._running: list[Place] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, name: str, account: str, address: str | None = HOME) -> None:
        """Let a request come in; it waits in a task."""
        task = asyncio.create_task(self._request(name, account, address))
        self._tasks.append(task)
        for _ in range(3):
            await asyncio.sleep(0)

    async def _request(self, name: str, account: str, address: str | None) -> None:
        try:
            with self.queue.place(groups_of(account, address)) as place:
                await self.queue.turn(place)
                self.served.append(name)
                self._running.append(place)
                while place in self._running:
                    await asyncio.sleep(0)
                self.queue.end_turn(place, 0.1)
        except RateLimited:
            self.refused.append(name)

    async def step(self) -> None:
        """End the turn that began first."""
        self._running.pop(0)
        for _ in range(3):
            await asyncio.sleep(0)

    async def finish(self) -> list[str]:
        while self._running:
            await self.step()
        await asyncio.gather(*self._tasks)
        return self.served


@given(
    at_once=st.integers(1, 3),
    own_account=st.lists(st.sampled_from([HOME, "192.0.2.2", "203.0.113.9", "2001:db8::1"]), max_size=20),
    own_network=st.integers(0, 40),
    done_before=st.integers(0, 10),
)
def test_a_request_of_another_account_and_another_network_is_next(
    at_once: int, own_account: list[str], own_network: int, done_before: int
) -> None:
    """However many one account keeps open from many networks, and one network for many accounts."""

    async def play() -> None:
        room = Room(at_once)
        for number, address in enumerate(own_account):
            await room.ask(f"account {number}", "eve@example.com", address)
        for number in range(own_network):
            await room.ask(f"network {number}", f"eve{number}@example.com", "203.0.113.77")
        for _ in range(done_before):
            if room._running:
                await room.step()
        before = len(room.served)
        sizes = {"account": len(own_account), "network": own_network}
        # Only the first request of each attack can be before it, if that has not had its turn.
        first = sum(size > 0 and not any(name.startswith(kind) for name in room.served) for kind, size in sizes.items())
        await room.ask("owner", "ada@example.com", ELSEWHERE)
        order = await room.finish()
        assert order.index("owner") - before <= first

    asyncio.run(play())


async def test_one_account_that_fills_the_queue_is_overtaken_by_the_first_other_one() -> None:
    room = Room()
    for number in range(40):
        await room.ask(f"eve {number}", "eve@example.com", f"203.0.{number}.1")
    assert len(room.refused) == 40 - MAX_PER_ACCOUNT
    await room.ask("ada", "ada@example.com", ELSEWHERE)
    assert (await room.finish())[:3] == ["eve 0", "ada", "eve 1"]


async def test_one_network_that_fills_the_queue_is_overtaken_by_the_first_other_one() -> None:
    room = Room()
    for number in range(40):
        await room.ask(f"eve {number}", f"eve{number}@example.com")
    assert len(room.refused) == 40 - 16
    await room.ask("ada", "ada@example.com", ELSEWHERE)
    assert (await room.finish())[:3] == ["eve 0", "ada", "eve 1"]


async def test_on_the_same_network_each_account_has_its_turn() -> None:
    room = Room()
    for number in range(4):
        await room.ask(f"eve {number}", "eve@example.com")
    for number in range(3):
        await room.ask(f"mallory {number}", "mallory@example.com")
    await room.ask("ada", "ada@example.com")
    served = await room.finish()
    assert served[:4] == ["eve 0", "mallory 0", "ada", "eve 1"]


async def test_a_network_that_is_full_of_one_account_has_room_for_another() -> None:
    room = Room(most=16)  # four for a network
    for number in range(4):
        await room.ask(f"eve {number}", "eve@example.com")
    await room.ask("ada", "ada@example.com")
    assert room.refused == ["eve 3"]
    assert "ada" in await room.finish()


async def test_a_queue_that_one_site_has_filled_has_room_for_others() -> None:
    """Somebody with an IPv6 /48 has 65,536 networks, and can name as many accounts."""
    room = Room()
    for number in range(100):
        await room.ask(f"eve {number}", f"eve{number}@example.com", f"2001:db8:77:{number:x}::1")
    assert len(room.refused) == 100 - 64
    for number in range(5):
        await room.ask(f"owner {number}", f"owner{number}@example.com", f"198.51.{number}.1")
    assert not any(name.startswith("owner") for name in room.refused)
    assert (await room.finish())[1:6] == [f"owner {number}" for number in range(5)]


async def test_within_a_site_each_network_has_its_turn() -> None:
    room = Room()
    for number in range(8):
        await room.ask(f"eve {number}", f"eve{number}@example.com", "192.0.2.1")
    await room.ask("ada", "ada@example.com", "192.0.2.2")
    assert (await room.finish())[:2] == ["eve 0", "ada"]


async def test_a_stream_of_newcomers_does_not_hold_up_a_network_for_long() -> None:
    room = Room()
    for number in range(3):
        await room.ask(f"office {number}", f"colleague{number}@example.com")
    for number in range(3 * NEWCOMERS):
        await room.ask(f"new {number}", f"new{number}@example.com", f"10.{number}.0.1")
        await room.step()
    served = await room.finish()
    positions = [served.index(f"office {number}") for number in range(3)]
    assert all(later - earlier <= NEWCOMERS + 1 for earlier, later in itertools.pairwise(positions))


async def test_every_place_is_given_back(anyio_backend: str) -> None:
    room = Room(at_once=2)
    for number in range(30):
        await room.ask(f"{number}", f"{number % 5}@example.com", f"10.0.{number % 3}.1")
    waiting = [task for task in room._tasks if not task.done()]
    for task in waiting[2:]:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await room.finish()
    await asyncio.gather(*room._tasks, return_exceptions=True)
    assert not room.queue._places
    assert not room.queue._taken
    assert room.queue._free == 2


async def test_a_wait_that_is_named_is_long_enough_for_all_before() -> None:
    room = Room()
    with contextlib.ExitStack() as places:
        for number in range(MAX_PER_ACCOUNT):
            places.enter_context(room.queue.place(groups_of("ada@example.com", f"10.0.{number}.1")))
        for number in range(26):
            places.enter_context(room.queue.place(groups_of(f"{number}@example.com", f"10.1.{number}.1")))
        with pytest.raises(RateLimited) as refused, room.queue.place(groups_of("ada@example.com", ELSEWHERE)):
            pass
    assert refused.value.retry_after == 3, "thirty requests of a tenth of a second"


@given(first=st.integers(0, 2**128 - 1), bit=st.integers(0, 127))
def test_an_ipv6_site_is_a_48(first: int, bit: int) -> None:
    one, other = ipaddress.IPv6Address(first), ipaddress.IPv6Address(first ^ (1 << bit))
    assume(not one.ipv4_mapped and not other.ipv4_mapped)
    assert (site_of(str(one)) == site_of(str(other))) is (bit < 80)
    assert (network_of(str(one)) == network_of(str(other))) is (bit < 64)


@given(first=st.integers(0, 2**32 - 1), bit=st.integers(0, 31))
def test_an_ipv4_site_is_a_24(first: int, bit: int) -> None:
    one, other = ipaddress.IPv4Address(first), ipaddress.IPv4Address(first ^ (1 << bit))
    assert (site_of(str(one)) == site_of(str(other))) is (bit < 8)
    assert network_of(str(one)) != network_of(str(other))
    assert site_of(f"::ffff:{one}") == site_of(str(one))
