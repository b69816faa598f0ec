"""The looks of all who follow logs here: when each is due, and one question for many that are due at once (A7).

Owns the calendar of looks, and whether there is anything new in a log at all; reading it is the follower's business,
and so is what only one asks. A server that is asked what comes next in one log walks over what others have stored
behind it, milliseconds among thousands of logs; the newest sequences of many it has in an index.

What counts is what the leader would say. So the leader is asked for the newest message of the whole stream, and then
any replica for the newest messages of the logs; it is believed when it is as far as the leader was. Who has news, whose
newest message is not found, or of whom no replica says anything, looks at the leader himself. Of what was found to hold
nothing new only what is newer is asked for next time: newest messages may be large. That is right as long as the stream
goes on from where it was, which is asked along with the rest: a server may have lost its end, or been restored (B11).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Iterable
from typing import Final, Protocol

from natsjobs.engine.context import Context
from natsjobs.engine.ports import MOST_NEWEST, Message, Newer
from natsjobs.errors import NatsJobsError, PermissionDeniedError
from natsjobs.tasks import together
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

NEVER: Final = math.inf
UNCHECKED: Final[tuple[object, int]] = (None, 0)

_ALL = ">"
_FEW = 2
"""Fewer look at the leader themselves."""
_PLACES = 4
"""Questions under way at a time."""
_TRIES, _LAG = 3, 0.02
"""A replica that is behind the leader is so for milliseconds; then others, or the same one, are asked again."""


class Follower(Protocol):
    """Who looks: a tail."""

    scope: str
    """Of its log."""
    due: float
    """For the lookout: when it looks."""
    checked: tuple[object, int]
    """For the lookout: up to where nothing new was found, and as long as what holds."""

    @property
    def seq(self) -> int:
        """The newest message known."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it waits for its next look, and nothing else is under way or has ended it."""
        ...

    @property
    def unproven(self) -> bool:
        """Whether it has to know that its newest message is still there."""
        ...

    def look(self) -> None:
        """Look at the leader, now or behind the look that is under way."""
        ...

    def nothing_new(self, *, proven: bool) -> None:
        """It was looked for; ``proven``: what was unproven then is there."""
        ...

    def failed(self, error: NatsJobsError) -> None:
        """It could not be looked."""
        ...

    def settle(self) -> None:
        """Its look is over: it expects the next one."""
        ...


class Lookout:
    """All followers of one transport."""

    def __init__(self, context: Context) -> None:
        """Nobody follows anything yet."""
        self._context = context
        self._events = context.link.events
        self._due: dict[float, set[Follower]] = {}
        self._ticks: list[float] = []  # a heap of its keys
        self._phase = random.random()  # noqa: S311 - spreads the looks of many processes, no secret
        self._timer: asyncio.TimerHandle | None = None
        self._places = asyncio.Semaphore(_PLACES)
        self._newest: Message | None = None
        self._era: object = object()
        """Another one as soon as the stream does not go on from ``_newest``."""

    # -- when -----------------------------------------------------------------------------------------------------

    def expect(self, follower: Follower, pause: float) -> None:
        """It looks in ``pause`` seconds, or up to an eighth of that sooner: together with others."""
        grid = 2.0 ** (math.frexp(pause)[1] - 4)
        tick = math.floor((asyncio.get_running_loop().time() + pause - self._phase) / grid) * grid + self._phase
        if tick != follower.due:
            self._put(follower, tick)

    def at_once(self, follower: Follower) -> None:
        """It looks now, with all others of whom that is said in this turn of the loop."""
        self._put(follower, 0.0)

    def forget(self, follower: Follower) -> None:
        """It looks no more, until it is expected again."""
        if follower.due != NEVER:
            if (others := self._due.get(follower.due)) is not None:
                others.discard(follower)
            follower.due = NEVER

    def close(self) -> None:
        """Nobody looks any more."""
        self._due.clear()
        self._ticks.clear()
        self._set_timer()

    def _put(self, follower: Follower, tick: float) -> None:
        self.forget(follower)
        follower.due = tick
        others = self._due.get(tick)
        if others is not None:
            others.add(follower)
            return
        self._due[tick] = {follower}
        heapq.heappush(self._ticks, tick)
        if self._ticks[0] == tick:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._ticks[0], self._on_tick) if self._ticks else None

    def _on_tick(self) -> None:
        until, due = asyncio.get_running_loop().time(), list[Follower]()
        while self._ticks and self._ticks[0] <= until:
            due += self._due.pop(heapq.heappop(self._ticks))
        for follower in due:
            follower.due = NEVER
        self._set_timer()
        if due:
            self._context.spawn(self._look(due), "natsjobs looks")

    # -- what -----------------------------------------------------------------------------------------------------

    async def _look(self, followers: list[Follower]) -> None:
        try:
            waiting = [follower for follower in followers if follower.waits]
            if len(waiting) < _FEW:
                waiting = []
            for follower in followers:
                if not (waiting and follower.waits):
                    follower.look()
            if waiting:
                hub.add(measures.LOOKS, len(waiting))
                await self._look_together(waiting)
        finally:
            _settle(followers)

    async def _look_together(self, followers: list[Follower]) -> None:
        try:
            newest, era = await self._mark()
        except NatsJobsError as error:
            for follower in followers:
                follower.failed(error)
            return
        asked = sorted((_Asked(follower, era) for follower in followers), key=lambda one: one.start)
        parts = [asked[first : first + MOST_NEWEST] for first in range(0, len(asked), MOST_NEWEST)]
        await asyncio.gather(*(self._look_at(part, newest, era) for part in parts))

    async def _mark(self) -> tuple[int, object]:
        """The newest sequence of the stream at the leader, and the era."""
        before, goes_on = self._newest, True
        if before is None:
            newest = await self._events.last(_ALL)
        else:
            newest, same = await together(self._events.last(_ALL), self._events.next(_ALL, before.seq))
            goes_on = same is not None and (same.seq, same.time) == (before.seq, before.time)
        seq = 0 if newest is None else newest.seq
        if self._newest is not before:
            return seq, object()  # another look was quicker: whether the stream goes on from there is not known
        if not goes_on:
            self._era = object()
        self._newest = newest
        return seq, self._era

    async def _look_at(self, part: list[_Asked], newest: int, era: object) -> None:
        followers = [one.follower for one in part]
        try:
            async with self._places:
                found = await self._find([follower.scope for follower in followers], part[0].start, newest)
            for one in part:
                one.judge(found, newest, era)
        except NatsJobsError as error:
            for follower in followers:
                follower.failed(error)
        finally:
            _settle(followers)

    async def _find(self, scopes: list[str], start: int, newest: int) -> dict[str, int] | None:
        """The newest sequences of those that have one at or after ``start``; ``None``: nobody knows."""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_LAG)
            found, at = dict[str, int](), start
            while (answer := await self._newer(scopes, at)) is not None and answer.upto >= newest:
                for message in answer.messages:
                    found[f"{message.subject.rpartition('.')[0]}.*"] = message.seq
                if answer.whole:
                    return found
                at = answer.messages[-1].seq + 1
            if answer is None:
                return None
        return None

    async def _newer(self, scopes: list[str], at: int) -> Newer | None:
        try:
            return await self._events.newer(scopes, at)
        except PermissionDeniedError:
            return None  # who may not ask this may perhaps ask the leader


class _Asked:
    """A follower, as it was when it was asked about."""

    __slots__ = ("_proof", "_seq", "follower", "start")

    def __init__(self, follower: Follower, era: object) -> None:
        self.follower = follower
        self._seq, self._proof = follower.seq, follower.unproven
        known_in, checked = follower.checked
        self.start = self._seq if self._proof else 1 + max(self._seq, checked if known_in is era else 0)
        """What is older says nothing."""

    def judge(self, found: dict[str, int] | None, newest: int, era: object) -> None:
        """``found``: the newest sequences at or after ``start``."""
        follower = self.follower
        seq = found.get(follower.scope, 0) if found is not None else 0
        there = newest >= self._seq and not (self._proof and seq < self._seq)
        if found is None or seq > follower.seq or not there:
            follower.look()
        else:
            follower.checked = (era, newest)
            follower.nothing_new(proven=self._proof)


def _settle(followers: Iterable[Follower]) -> None:
    for follower in followers:
        if follower.waits and follower.due == NEVER:  # else something has come meanwhile
            follower.settle()
