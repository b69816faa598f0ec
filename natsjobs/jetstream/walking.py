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
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable
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
        log = self._logs.setdefault(query.next_by_subj, _Log())
        log.add(want)
        for one, page in log.full():
            _give(one, page)
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
        return [want for log in self._logs.values() for want in log.wants if not want.place.done()]

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
            log.see(message, size)
            if message.seq >= log.first:
                wanted += 1
                if len(log.messages) >= log.enough or log.size >= log.much:
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
            log.wants = [want for want, page in pages if not (page or with_nothing)]

    async def _give(self) -> None:
        """What is ready, some at a time."""
        while self._ready:
            for _ in range(min(_AT_ONCE, len(self._ready))):
                _give(*self._ready.popleft())
            await asyncio.sleep(0)


class _Log:
    """What has come of one log, and who wants it.

    Whoever begins earlier has his page not later, for all pages are as large as each other (one that is smaller waits).
    So a message is looked at for the first of those who wait, and not for each of a thousand at places of one log.
    """

    __slots__ = ("enough", "first", "messages", "much", "sizes", "wants")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.sizes: list[int] = []
        """Bytes up to the end of each."""
        self.wants: list[Want] = []
        """By where they begin."""
        self.first = self.enough = self.much = math.inf
        """Where the first page begins that is wanted; how many messages, or bytes, there are before it is full."""

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.sizes[-1] if self.sizes else 0

    def see(self, message: Message, size: int) -> None:
        """The next one."""
        self.messages.append(message)
        self.sizes.append(self.size + size)

    def add(self, want: Want) -> None:
        """One more who wants a page; ``full`` must follow."""
        insort(self.wants, want, key=_begin)

    def full(self) -> list[tuple[Want, list[Message]]]:
        """Pages that are full, for those who want nothing more here."""
        full = list[tuple[Want, list[Message]]]()
        self.first = self.enough = self.much = math.inf
        for want in self.wants:
            start, query = self._start(want), want.query
            enough, much = start + query.batch, self._before(start) + query.max_bytes
            if len(self.messages) < enough and self.size < much:
                self.first, self.enough, self.much = query.seq, enough, much
                break
            full.append((want, self._page(want)))
        del self.wants[: len(full)]
        return full

    def pages(self) -> list[tuple[Want, list[Message]]]:
        """What there is for each who waits."""
        return [(want, self._page(want)) for want in self.wants]

    def _start(self, want: Want) -> int:
        return bisect_left(self.messages, want.query.seq, key=_seq)

    def _before(self, place: int) -> int:
        return self.sizes[place - 1] if place else 0

    def _page(self, want: Want) -> list[Message]:
        """No more than a server would give."""
        query, start = want.query, self._start(want)
        much = bisect_left(self.sizes, self._before(start) + query.max_bytes, start) + 1
        return self.messages[start : min(start + query.batch, much)]


def _begin(want: Want) -> int:
    return want.query.seq


def _seq(message: Message) -> int:
    return message.seq


def _give(want: Want, page: list[Message]) -> None:
    if not want.place.done():
        want.place.set_result(page)
