"""One walk over a stream for very many who each want a page there, of one log or another.

For a page of one log a server passes over the messages of all the others: among five hundred logs that lie between each
other it takes milliseconds, for each of five hundred. So the stream is read once, in steps, and each message goes to
whoever wants it. Who comes while that goes on can join it: what has come of logs that nobody wanted is kept as well.

Owns what was read, and who waits for it. What a page from a walk holds is what the same question alone would have
brought, as far as it goes: every message of its log from where it begins, in order and without a hole, for a walk
leaves nothing out from where it starts. It is given when it is full, or as it is when the walk is over. That a log has
nothing there is said only at the end of the stream; else whoever has nothing is ``left``. Nobody is told of an error.

A walk is over when nobody wants anything any more, when it has read as much as may be kept, when a replica does not
give the next step, or when it does not pay: what it brings and nobody wants costs server and client more than to pass
over it once for each who waits. Who is taken along, and what becomes of those who are left, is the line's business.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from itertools import accumulate
from typing import TypeAlias

import msgspec

from natsjobs.engine.ports import PAGE_BYTES, Message

REACH = 4096
"""Whoever begins so far ahead of a walk does not wait for it."""
_STEP = 256
"""Messages in a step: they keep the server as long as a page among hundreds of logs does."""
_HELD, _OBJECT = 16 * 1024 * 1024, 256
"""Bytes that are kept; and what a message takes beside its own."""
_UNWANTED, _PASSED = 0.75, 128
"""What nobody wants is no more than this part of a step, and a message of it costs as much as so many passed over."""
_AT_ONCE = 8
"""Pages that are given before all else has its turn: whoever gets one works on it for a millisecond."""


class Query(msgspec.Struct, frozen=True):
    """A page, as the server is asked for it."""

    seq: int
    batch: int
    max_bytes: int
    next_by_subj: str

    @property
    def is_of_one_log(self) -> bool:
        """Whether its filter is a subject."""
        return "*" not in self.next_by_subj and ">" not in self.next_by_subj


class Step(msgspec.Struct, frozen=True):
    """What a replica says of a stretch of the stream."""

    messages: list[Message]
    """All there are from where it begins, in order."""
    whole: bool
    """It has nothing behind them."""


WalkOn: TypeAlias = Callable[[Query], Awaitable[Step | None]]
"""Asks for a step; ``None``: there is none to be had. Raises nothing."""


class Want:
    """A page that somebody waits for."""

    __slots__ = ("number", "place", "query")

    def __init__(self, query: Query, number: int) -> None:
        """``number``: whoever came before has a smaller one."""
        self.query, self.number = query, number
        self.place: asyncio.Future[list[Message] | None] = asyncio.get_running_loop().create_future()
        """Done when there is the page; or, with ``None``, a place to ask for it."""


class Walk:
    """One of them, until it is over."""

    def __init__(self, walk_on: WalkOn, start: int) -> None:
        """From message ``start`` on; nothing is read before ``go``."""
        self._walk_on = walk_on
        self._start = self._at = start  # nothing is missing of what comes from the one on and before the other
        self._size = 0
        self._over = False
        self._logs: dict[str, _Log] = {}
        self._ready: deque[tuple[Want, list[Message]]] = deque()  # to be given

    def takes(self, want: Want) -> bool:
        """Whether this page is read here; if not, nothing is done."""
        query = want.query
        if self._over or not (self._start <= query.seq <= self._at + REACH and query.is_of_one_log):
            return False
        page = self._logs.setdefault(query.next_by_subj, _Log()).add(want)
        if page is not None:
            _give(want, page)
        return True

    async def go(self) -> None:
        """To its end. ``left`` must follow, also when this was cancelled."""
        while wants := self._wants():
            step = await self._walk_on(Query(self._at, _STEP, PAGE_BYTES, ">"))
            if step is None or not (step.messages or step.whole):
                break
            unwanted = len(step.messages) - self._see(step.messages)
            passing = sum([want.query.seq < self._at for want in wants])
            if step.whole:
                self._end(with_nothing=True)
            elif self._size > _HELD or unwanted > len(step.messages) * min(_UNWANTED, passing / _PASSED):
                break
            await self._give()
        self._end()
        await self._give()

    def left(self) -> list[Want]:
        """Those who have nothing; what the others have is given."""
        self._end()
        while self._ready:
            _give(*self._ready.popleft())
        return self._wants()

    def _wants(self) -> list[Want]:
        return [want for log in self._logs.values() for want in log.wants.values() if not want.place.done()]

    def _see(self, messages: list[Message]) -> int:
        """How many of these are wanted."""
        logs, wanted = self._logs, 0
        for message in messages:
            subject = message.subject
            size = len(subject) + len(message.body)
            self._size += size + _OBJECT
            log = logs.get(subject)
            if log is None:
                log = logs[subject] = _Log()
            log.messages.append(message)
            log.size += size
            if message.seq >= log.first:
                wanted += 1
                self._ready += log.full()
        if messages:
            self._at = messages[-1].seq + 1
        return wanted

    def _end(self, *, with_nothing: bool = False) -> None:
        """Nobody is taken any more; all have what there is. ``with_nothing``: also who has nothing."""
        self._over = True
        for log in self._logs.values():
            pages = log.pages()
            self._ready += [(want, page) for want, page in pages if page or with_nothing]
            log.wants = {want.number: want for want, page in pages if not (page or with_nothing)}

    async def _give(self) -> None:
        """What is ready, some at a time."""
        while self._ready:
            for _ in range(min(_AT_ONCE, len(self._ready))):
                _give(*self._ready.popleft())
            await asyncio.sleep(0)


class _Log:
    """What has come of one log, and who wants it: perhaps hundreds, each from another place."""

    __slots__ = ("_counts", "_sizes", "first", "messages", "size", "wants")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.size = 0
        """Bytes of them."""
        self.wants: dict[int, Want] = {}
        """By number."""
        self.first = math.inf
        """Where the first page begins that is wanted."""
        # Heaps: how many messages, or bytes, there are before a page can be full, and the number of who wants it. So a
        # message is no work for each who waits for more.
        self._counts: list[tuple[int, int]] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, want: Want) -> list[Message] | None:
        """One more who wants a page; if that is here, and full, it, and he wants nothing more."""
        page = self._page(want)
        if _is_full(want.query, page):
            return page
        self.wants[want.number] = want
        self.first = min(self.first, want.query.seq)
        self._expect_count(want, page)
        self._expect_size(want, page)
        return None

    def full(self) -> list[tuple[Want, list[Message]]]:
        """Pages that are full by now, for those who want nothing more here."""
        full = list[tuple[Want, list[Message]]]()
        for due, now, expect in (
            (self._counts, len(self.messages), self._expect_count),
            (self._sizes, self.size, self._expect_size),
        ):
            while due and due[0][0] <= now:
                if (want := self.wants.get(heappop(due)[1])) is None:
                    continue
                page = self._page(want)
                if _is_full(want.query, page):
                    del self.wants[want.number]
                    full.append((want, page))
                else:
                    expect(want, page)  # of what has come some lies before it
        if full:
            self.first = min((want.query.seq for want in self.wants.values()), default=math.inf)
        return full

    def pages(self) -> list[tuple[Want, list[Message]]]:
        """What there is for each who waits."""
        return [(want, self._page(want)) for want in self.wants.values()]

    def _page(self, want: Want) -> list[Message]:
        """No more than a server would give."""
        query = want.query
        start = bisect_left(self.messages, query.seq, key=lambda message: message.seq)
        page = self.messages[start : start + query.batch]
        if self.size >= query.max_bytes:
            sizes = list(accumulate(_size([message]) for message in page))
            page = page[: bisect_left(sizes, query.max_bytes) + 1]
        return page

    def _expect_count(self, want: Want, page: list[Message]) -> None:
        heappush(self._counts, (len(self.messages) - len(page) + want.query.batch, want.number))

    def _expect_size(self, want: Want, page: list[Message]) -> None:
        heappush(self._sizes, (self.size - _size(page) + want.query.max_bytes, want.number))


def _is_full(query: Query, page: list[Message]) -> bool:
    return len(page) >= query.batch or _size(page) >= query.max_bytes


def _give(want: Want, page: list[Message]) -> None:
    if not want.place.done():
        want.place.set_result(page)


def _size(messages: list[Message]) -> int:
    return sum([len(message.subject) + len(message.body) for message in messages])
