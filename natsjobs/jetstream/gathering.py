"""Newest messages that many want at once: two questions for all of them, instead of one for each at the leader.

Owns who is asked for together with whom, and when an answer to many is as good as a leader read. The leader is asked
how far the stream is (the barrier), after everybody of the group has come; then any replica for the newest messages. It
is believed when it is as far as the barrier: it holds everything that was acknowledged before any of them asked. (What
an operator purges, or a stream that is made anew, has no sequence of its own: that a replica may know a moment later.)
One that lags is asked again some milliseconds later. What is too much for one answer comes in parts, and who has his
from the first part does not wait for the last one.

Nothing is concluded from what is missing in an answer, and there are no errors here: who gets no message asks the
leader himself, and so does the whole group when the barrier or a replica cannot be had, and everybody for some seconds
after that. Guarantees that nobody waits here longer than the time of a request, once his group has been asked, and
that whoever is cancelled takes nothing from the others. Who comes here is for the stream to say.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from natsjobs.engine.ports import MOST_NEWEST, Message, Newer
from natsjobs.errors import NatsJobsError
from natsjobs.jetstream.faults import RequestFailedError

_log = logging.getLogger(__name__)

_GROUPS = 2
"""Under way at a time: what a replica sends for hundreds is milliseconds of work, for which all else waits there."""
_TRIES, _LAG = 3, 0.02
"""A replica that is behind the leader is so for milliseconds; then others, or the same one, are asked again."""
_PARTS = 8
"""Of an answer at most: what is more than that is no less work for a leader who is asked for each."""
_APART = 10.0
"""After a group was asked for in vain everybody asks for himself for this long."""

Place: TypeAlias = "asyncio.Future[Message | None]"


def may_gather(subject_filter: str) -> bool:
    """Whether an answer to many says which of its messages match this one: a subject, or ``*`` in its last place."""
    name = subject_filter.removesuffix(".*")
    return "*" not in name and ">" not in name


class Gathering:
    """Of one stream, as one link asks it."""

    def __init__(
        self,
        limit: float,
        *,
        barrier: Callable[[], Awaitable[int | None]],
        newer: Callable[[Sequence[str], int], Awaitable[Newer | None]],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        """``limit``: the time of a request. ``newer``: as the port has it.

        ``barrier``: the newest sequence at the leader; ``None``: the connection broke, which says nothing about him.
        """
        self._limit = limit
        self._barrier, self._newer, self._spawn = barrier, newer, spawn
        self._waiting: deque[tuple[str, Place]] = deque()
        self._groups = 0
        self._answered = self._failed = -math.inf

    @property
    def apart(self) -> bool:
        """Whether everybody asks for himself at the moment."""
        return time.monotonic() - self._failed < _APART

    @property
    def waits(self) -> bool:
        """Whether somebody has come and was not asked for yet: who comes now is behind him."""
        return bool(self._waiting)

    async def last(self, subject_filter: str) -> tuple[Message | None, float]:
        """The newest message that matches, as a read at the leader would have it; ``None``: ask him.

        And for how long nobody was answered here, while this one waited.
        """
        since = time.monotonic()
        if self._groups < _GROUPS:
            try:
                self._spawn(self._work(), "natsjobs reads together").add_done_callback(self._ended)
            except RuntimeError:  # the link is being closed
                return None, 0.0
            self._groups += 1
        place: Place = asyncio.get_running_loop().create_future()
        self._waiting.append((subject_filter, place))
        found = await place
        return found, 0.0 if found is not None else time.monotonic() - max(since, self._answered)

    async def _work(self) -> None:
        """Ask for all who wait, a group at a time."""
        while self._waiting:
            await self._ask(self._group())

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._groups -= 1
        if not self._groups:
            self._send_away()  # nobody is left who would ask for them: the link is being closed

    def _group(self) -> dict[str, list[Place]]:
        group = defaultdict[str, list[Place]](list)
        while self._waiting and len(group) < MOST_NEWEST:
            subject_filter, place = self._waiting.popleft()
            if not place.done():
                group[subject_filter].append(place)
        return group

    async def _ask(self, group: dict[str, list[Place]]) -> None:
        try:
            async with asyncio.timeout(self._limit):
                if (barrier := await self._barrier()) is not None:
                    await self._find(group, barrier)
        except (NatsJobsError, RequestFailedError, TimeoutError) as error:
            _log.info("reading at the leader one by one for %.0f s: %s", _APART, error or "no answer in time")
            self._failed = time.monotonic()
            self._send_away()
        finally:
            for places in group.values():
                _give(places, None)

    async def _find(self, group: dict[str, list[Place]], barrier: int) -> None:
        found, at = dict[str, Message](), 1
        for _ in range(_PARTS):
            if (answer := await self._reach(list(group), at, barrier)) is None:
                return
            self._answered = time.monotonic()
            for message in answer.messages:  # oldest first
                _give(group.pop(message.subject, ()), message)
                found[f"{message.subject.rpartition('.')[0]}.*"] = message
            if answer.whole:
                for subject_filter, places in group.items():
                    _give(places, found.get(subject_filter))
            if answer.whole or not group:
                return
            at = answer.messages[-1].seq + 1

    async def _reach(self, filters: Sequence[str], at: int, barrier: int) -> Newer | None:
        """The answer of a replica that is as far as the barrier; ``None``: none says anything of these."""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_LAG)
            answer = await self._newer(filters, at)
            if answer is None or answer.upto >= barrier:
                return answer
        raise RequestFailedError("replicas are behind the leader", sent=True)

    def _send_away(self) -> None:
        while self._waiting:
            _give([self._waiting.popleft()[1]], None)


def _give(places: Sequence[Place], message: Message | None) -> None:
    for place in places:
        if not place.done():
            place.set_result(message)
