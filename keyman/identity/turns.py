"""Shares the few threads that hash passwords fairly between networks and accounts.

Each request belongs to three groups: its site (a part of the internet that one customer of a provider can have), its
network and its account. A thread that becomes free takes the request whose groups had their last turn the longest ago.
So the requests of one group go one after the other, however many there are, and a request of other groups overtakes
them: it is the next one.

The number of requests under way is limited, for an account, for a network and in all. If there are too many, the one
that is refused is of the group that has the most, and not simply the newest. So a group that fills the queue refuses
itself, and the place that it loses goes to others: on the same network, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from keyman.errors import RateLimited
from keyman.identity.networks import network_of, site_of

MAX_PER_ACCOUNT = 4
"""The maximum number of unfinished requests of one account. Its owner has one, or two after a double click."""

NEWCOMERS = 32
"""The maximum number of requests of other groups that may overtake a waiting request. Without a maximum, a stream of
requests that each come from another network would hold up everybody who has just had a turn.
"""

LONGEST_WAIT = 60
"""Seconds: the highest `Retry-After`, whatever was measured."""

TOO_MANY = "Too many people are signing in at this moment. Wait a little, then try again."
TOO_MANY_OF_ACCOUNT = "Too many attempts for this account are under way. Wait for them to end."


@dataclass(eq=False)
class Place:
    """A place in the queue, for one request.

    `groups` go from the widest to the narrowest. `number` counts the places, and `since` is the round in which this one
    was taken. `turn` is set while the place waits. `refusal` is set once the place was given to another request.
    """

    groups: tuple[str, ...]
    number: int
    since: int
    turn: asyncio.Future[None] | None = None
    is_running: bool = False
    refusal: RateLimited | None = None

    @property
    def is_waiting(self) -> bool:
        return self.turn is not None and not self.turn.done()


def groups_of(account: str, address: str | None) -> tuple[str, str, str]:
    """Return the groups of a request: `account` is the e-mail address that it is about, known or not."""
    where = "unknown" if address is None else address
    return f"site|{site_of(where)}", f"network|{network_of(where)}", f"account|{account}"


class FairQueue:
    """Gives turns to `at_once` requests at a time.

    At most `most` requests are unfinished, and at most a quarter of that from one network.
    """

    def __init__(self, at_once: int, most: int) -> None:
        self._at_once = self._free = at_once
        self._most = most
        self._most_per_network = max(MAX_PER_ACCOUNT, most // 4)
        self._places: dict[Place, None] = {}  # in the order in which they were taken
        self._taken: Counter[str] = Counter()  # by group
        self._round = 0
        self._next_turn: dict[str, int] = {}  # by group: the earliest round of its next turn
        self._numbers = 0
        self._seconds = 0.1  # of a turn: a moving average

    @contextmanager
    def place(self, groups: tuple[str, ...] = ()) -> Iterator[Place]:
        """Take a place for the length of the block. Raises RateLimited if there is none for this request.

        A request without groups is an operator's, and only the total limits it.
        """
        self._numbers += 1
        place = Place(groups, self._numbers, self._round)
        self._make_room(place)
        self._places[place] = None
        self._taken.update(groups)
        try:
            yield place
        finally:
            self._remove(place)

    async def turn(self, place: Place) -> None:
        """Wait for the turn of this place. The caller calls `end_turn` when the work is done.

        Raises RateLimited if another request has got the place.
        """
        if place.refusal is not None:
            raise place.refusal
        turn = place.turn = asyncio.get_running_loop().create_future()
        self._start()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given the turn in the same moment
                self.end_turn(place)
            raise
        finally:
            place.turn = None

    def end_turn(self, place: Place, seconds: float | None = None) -> None:
        """End a turn, which took `seconds` if it did any work."""
        if seconds is not None:
            self._seconds += (seconds - self._seconds) / 8
        place.is_running = False
        self._free += 1
        self._start()

    def retry_after(self) -> int:
        """Return the seconds until all requests that are now under way have had their turn."""
        return min(LONGEST_WAIT, max(1, ceil(len(self._places) * self._seconds / self._at_once)))

    def _start(self) -> None:
        while self._free and (waiting := [place for place in self._places if place.is_waiting]):
            place = min(waiting, key=self._order)
            at = self._earliest(place)
            self._round = max(self._round + 1, at)
            self._next_turn.update(dict.fromkeys(place.groups, at + NEWCOMERS))
            self._free -= 1
            place.is_running = True
            assert place.turn is not None
            place.turn.set_result(None)
        if len(self._next_turn) > 4 * self._most:
            self._forget()

    def _order(self, place: Place) -> tuple[int, list[int], int]:
        # In the same round, the widest group that has not had a turn for longer decides, then the narrower ones.
        return self._earliest(place), [self._next_turn.get(group, 0) for group in place.groups], place.number

    def _earliest(self, place: Place) -> int:
        """Return the round in which this place may have its turn."""
        return max([place.since, *(self._next_turn.get(group, 0) for group in place.groups)])

    def _forget(self) -> None:
        """Forget the turns of groups that no longer make a difference."""
        self._next_turn = {
            group: at for group, at in self._next_turn.items() if at > self._round or self._taken[group] > 0
        }

    def _make_room(self, newcomer: Place) -> None:
        """Refuse requests until the newcomer has a place within every limit. Raises RateLimited if it has none."""
        limits = [("", self._most, TOO_MANY)]
        if newcomer.groups:
            _, network, account = newcomer.groups
            limits.insert(0, (account, MAX_PER_ACCOUNT, TOO_MANY_OF_ACCOUNT))
            limits.insert(1, (network, self._most_per_network, TOO_MANY))
        for group, most, text in limits:
            if (self._taken[group] if group else len(self._places)) >= most:
                self._refuse_one(newcomer, group, RateLimited(text, retry_after=self.retry_after()))

    def _refuse_one(self, newcomer: Place, group: str, refusal: RateLimited) -> None:
        """Refuse the newest place of the groups that have the most places, or raise `refusal` if it is the newcomer."""
        rivals = [place for place in self._places if not place.is_running and (not group or group in place.groups)]
        taken = self._taken + Counter(newcomer.groups)
        heaviest = max([*rivals, newcomer], key=lambda place: ([taken[one] for one in place.groups], place.number))
        if heaviest is newcomer:
            raise refusal
        heaviest.refusal = refusal
        if heaviest.is_waiting:
            assert heaviest.turn is not None
            heaviest.turn.set_exception(refusal)
        self._remove(heaviest)

    def _remove(self, place: Place) -> None:
        if place in self._places:
            del self._places[place]
            self._taken.subtract(place.groups)
            for group in place.groups:
                if not self._taken[group]:
                    del self._taken[group]
