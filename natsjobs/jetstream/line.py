"""The line of those who want to ask a leader: so many questions are under way at a time, in the order they came.

A server takes what one connection asks for one after the other. Ten thousand readers that attach, or look after a
reconnect, ask more in a moment than it answers in a request's time, and everything else would stand behind them there:
appends, leases, answers to others. So they wait here, where they hold up nothing, and their time begins when they are
sent. Whoever stands here while nobody is answered at all waits no longer than a request does; who gets a place at the
end of that waits for the time of a request once more, for his own answer: twice that is the longest. Who only wants a
newest message does not come here while it is ``long``, but is asked for together with others (``gathering``).

Guarantees that the line is fair, and that whoever is cancelled leaves no place in it taken. Who may stand in it, and
what becomes of a question, is the stream's business.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from natsjobs.jetstream.faults import RequestFailedError

_PLACES = 32
"""Enough to keep a server busy over a slow wire."""


class Line:
    """Of one stream, as one link asks it."""

    def __init__(self, limit: float) -> None:
        """``limit``: how long to stand here while nobody is answered, seconds."""
        self._limit = limit
        self._free = _PLACES
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._heard = -math.inf

    @property
    def long(self) -> bool:
        """Whether more stand here than have places."""
        return len(self._waiting) > _PLACES

    async def enter(self, waited: float = 0.0) -> None:
        """Take a place; ``leave`` must follow. ``waited``: so long already, seconds, and nobody was answered.

        Raises:
            RequestFailedError: Nobody was answered for too long.
        """
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await self._wait_for(place, time.monotonic() - waited)
        except BaseException:
            if not place.cancel():
                self._pass_on()
            raise

    async def _wait_for(self, place: asyncio.Future[None], since: float) -> None:
        while not place.done():
            left = max(since, self._heard) + self._limit - time.monotonic()
            if left <= 0:
                raise RequestFailedError("no answer in time, nor to those who asked before", sent=False)
            await asyncio.wait({place}, timeout=left)

    def leave(self, *, heard: bool) -> None:
        """Give the place back. ``heard``: the question was answered."""
        if heard:
            self._heard = time.monotonic()
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
