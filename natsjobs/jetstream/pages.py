"""The line of those who want a page of a stream: a few are asked for at a time, and very many together.

A server takes what one connection asks for one after the other; what would wait there waits here, where it holds up
nothing else. When it is a crowd that waits, for pages that begin near each other, they are read together (``walking``);
whoever comes meanwhile and finds no place free joins that, or stands in line for the places, which others use all the
time. For whom it did not pay, and whom it did not reach, is back where he stood.

Guarantees that the line is fair, and that whoever is cancelled leaves no place in it taken. How a page is asked for,
and what it means, is not its business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from operator import itemgetter
from typing import Any

from natsjobs.engine.ports import Message
from natsjobs.jetstream.walking import REACH, Query, Walk, WalkOn, Want

_PLACES = 4
"""Pages under way at a time: enough to keep a server busy, and few for all else that waits behind them there."""
_CROWD = 16
"""More than so many in line are worth a walk."""


class PageLine:
    """Of one stream, as one link asks its replicas."""

    def __init__(self, walk_on: WalkOn, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]) -> None:
        """Nobody waits."""
        self._walk_on, self._spawn = walk_on, spawn
        self._free = _PLACES
        self._waiting: deque[Want] = deque()
        self._came = 0
        self._walk: Walk | None = None
        self._enough = self._look_at = _CROWD
        """More than so many near each other are a crowd; in a line of more than so many it is looked for."""

    async def enter(self, query: Query) -> list[Message] | None:
        """The page; or ``None``, a place: ask for it, and ``leave`` must follow."""
        if self._free:
            self._free -= 1
            return None
        self._came += 1
        want = Want(query, self._came)
        if self._walk is None or not self._walk.takes(want):
            self._waiting.append(want)
            self._set_out()
        try:
            return await want.place
        except BaseException:
            if want.place.done() and not want.place.cancelled() and want.place.result() is None:
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self._free += 1
        self._pass_on()

    def _pass_on(self) -> None:
        while self._free and self._waiting:
            place = self._waiting.popleft().place
            if not place.done():
                place.set_result(None)
                self._free -= 1
        if not self._waiting:
            self._enough = self._look_at = _CROWD

    def _set_out(self) -> None:
        """Begin a walk if it is a crowd that waits for pages that begin near each other."""
        if self._walk is not None or len(self._waiting) <= self._look_at:
            return
        start, many = _densest([want.query.seq for want in self._waiting if want.query.is_of_one_log])
        if many <= self._enough:
            self._look_at = 2 * len(self._waiting)
            return
        walk = Walk(self._walk_on, start)
        try:
            task = self._spawn(walk.go(), "natsjobs walk")
        except RuntimeError:  # the link is being closed
            return
        self._walk = walk
        self._waiting = deque([want for want in self._waiting if not walk.takes(want)])
        task.add_done_callback(partial(self._ended, walk))

    def _ended(self, walk: Walk, _: asyncio.Task[None]) -> None:
        """Also one that was cancelled."""
        self._walk, left = None, walk.left()
        self._waiting = deque(sorted((*left, *self._waiting), key=lambda want: want.number))
        self._enough = self._look_at = max(_CROWD, 2 * len(left))  # for these it did not pay, for twice as many it may
        self._pass_on()
        self._set_out()


def _densest(seqs: list[int]) -> tuple[int, int]:
    """Where the most of these are within reach of a walk, and how many."""
    seqs.sort()
    found, ahead = (0, 0), 0
    for place, seq in enumerate(seqs):
        while ahead < len(seqs) and seqs[ahead] <= seq + REACH:
            ahead += 1
        found = max(found, (seq, ahead - place), key=itemgetter(1))
    return found
