"""The queue of one writer: what was emitted and is not stored yet, who waits for room, and who until it is stored.

Owns the bounds of the queue and the numbers of its events (the first ever queued is 1). It sends nothing and decides
nothing. Guarantees that who waits for room gets it in order, and that a cancelled one leaves no place behind.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import deque
from copy import copy

from natsjobs.config import Limits
from natsjobs.errors import NatsJobsError
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

GROUP_BYTES = 262_144
"""Largest group, so that a page of replay stays small and an owner's memory too."""

_BURST = 256
"""So many events in a row, then the loop has its turn: what was queued goes out while more is encoded."""


class Place:
    """Somebody who waits for room, or for the loop's turn."""

    __slots__ = ("began", "crowded", "free", "size")

    def __init__(self, size: int, *, crowded: bool) -> None:
        """``free`` is done when it is its turn; whoever waited takes it himself. ``crowded``: there was no room."""
        self.size, self.crowded, self.began = size, crowded, time.monotonic()
        self.free: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Backlog:
    """Events of one generation, in order."""

    def __init__(self, limits: Limits) -> None:
        """Empty."""
        self._limits = limits
        self._many, self._much = max(1, limits.queue_events // 2), max(1, min(GROUP_BYTES, limits.queue_bytes // 2))
        self.events: deque[bytes] = deque()
        self.size = 0
        """Bytes of the events."""
        self.taken = 0
        """Events ever queued."""
        self.stored = 0
        """Events ever stored."""
        self._burst = 0
        """Events added since the loop had its turn."""
        self._line: deque[Place] = deque()
        self._flushers: list[tuple[int, asyncio.Future[int]]] = []
        self._drains: list[asyncio.Future[None]] = []

    # -- room -----------------------------------------------------------------------------------------------------

    def admits(self, size: int) -> bool:
        """Whether an event of ``size`` bytes may be added now: there is room, nobody is before it, no turn is due."""
        limits, events = self._limits, len(self.events)
        fits = not events or (events < limits.queue_events and self.size + size <= limits.queue_bytes)
        return fits and not self._line and self._burst < _BURST

    @property
    def is_half_full(self) -> bool:
        """Whether the largest group, or half of the room, is taken: waiting for more would make producers wait."""
        return self.size >= self._much or len(self.events) >= self._many

    @property
    def is_short(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._line)

    def add(self, raw: bytes) -> int:
        """One more event; its number."""
        self.events.append(raw)
        self.size += len(raw)
        self.taken += 1
        self._burst += 1
        return self.taken

    def line_up(self, size: int) -> Place:
        """Wait for room, or for one's turn; ``leave_line`` must follow."""
        place = Place(size, crowded=not self._has_room(size, len(self._line), 0))
        self._line.append(place)
        if self._burst >= _BURST:
            asyncio.get_running_loop().call_soon(self._turn)
        return place

    def _turn(self) -> None:
        self._burst = 0
        self._let_in()

    def leave_line(self, place: Place) -> None:
        """It has taken its room, or will not."""
        if place.crowded:
            hub.add(measures.BACKPRESSURE, time.monotonic() - place.began)
        if place in self._line:
            self._line.remove(place)
        self._let_in()

    def _has_room(self, size: int, ahead: int, ahead_bytes: int) -> bool:
        """Whether an event fits behind those in the queue and ``ahead`` others."""
        limits, events = self._limits, len(self.events) + ahead
        if not events:
            return True
        return events < limits.queue_events and self.size + ahead_bytes + size <= limits.queue_bytes

    def _let_in(self) -> None:
        """Wake, in order, those who fit. Each takes its place itself, so that who is cancelled meanwhile has none."""
        size = 0
        for ahead, place in enumerate(self._line):
            if not self._has_room(place.size, ahead, size):
                return
            size += place.size
            if not place.free.done():
                place.free.set_result(None)

    # -- stored ---------------------------------------------------------------------------------------------------

    def expect(self, number: int) -> asyncio.Future[int]:
        """The index of the event of this number, once it is stored."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        bisect.insort(self._flushers, (number, future), key=lambda waiting: waiting[0])
        return future

    def expect_drained(self) -> asyncio.Future[None]:
        """When the writer has made a step: whoever waits for an empty queue looks again then."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append(future)
        return future

    def drained(self) -> None:
        """The writer has made a step."""
        if not self._drains:
            return
        drains, self._drains = self._drains, []
        for future in drains:
            if not future.done():
                future.set_result(None)

    def leave(self, count: int, index: int) -> None:
        """The first ``count`` events are stored, from ``index`` on."""
        if count >= len(self.events):  # nearly always
            size = self.size
            self.clear()
        else:
            size = sum(len(self.events.popleft()) for _ in range(count))
            self.size -= size
        self._burst = 0  # whoever says so was called by the loop, which has its turn
        hub.add(measures.EVENTS, count)
        hub.add(measures.EVENT_BYTES, size)
        before, self.stored = self.stored, self.stored + count
        while self._flushers and self._flushers[0][0] <= self.stored:
            target, flushed = self._flushers.pop(0)
            if not flushed.done():
                flushed.set_result(index + target - before - 1)
        if self._line:
            self._let_in()

    # -- when it fails --------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """What is queued will not be stored."""
        self.events.clear()
        self.size = 0

    def fail(self, error: Exception) -> bool:
        """Tell everybody who waits, each anew; whether anybody did, but for those who try again until it is empty."""
        waiting: list[asyncio.Future[int] | asyncio.Future[None]] = [future for _, future in self._flushers]
        waiting += [place.free for place in self._line]
        self._flushers.clear()
        self._line.clear()
        heard = False
        for future in waiting:
            if not future.done():
                future.set_exception(anew(error))
                heard = True
        drains, self._drains = self._drains, []
        for drain in drains:
            if not drain.done():
                drain.set_exception(anew(error))
        return heard


def anew(error: Exception) -> Exception:
    """One for whoever raises it: a raised exception keeps its traceback, and that the frames of its caller.

    A defect of ours is told as it is: there may be no way to copy it.
    """
    return copy(error) if isinstance(error, NatsJobsError) else error
