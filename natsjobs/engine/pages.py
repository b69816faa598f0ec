"""Pages of one generation's log: read and decoded once for all readers on this replica that want the same one.

Owns the requests under way. It keeps no page: one lives as long as somebody reads in it, whoever comes meanwhile to
the same place of the log gets the same one, and one that nobody wants any more is not read. Guarantees that a reader
that is cancelled takes nothing from the others, that an error is told to everybody who waits and remembered for
nobody, and that what says nothing about the log (no message, a gap) is asked again. What a page means is decided by
the reader.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from copy import copy
from functools import partial
from typing import TypeAlias
from weakref import ReferenceType, WeakValueDictionary, ref

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.patience import patiently
from natsjobs.engine.ports import Message, StreamMissingError
from natsjobs.engine.replay import Batch, Replay, Verdict, joined
from natsjobs.errors import NatsJobsError, NotOpenError
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_STEP = 256
"""Events of a page that a reader takes at once."""
_STOPS = {Verdict.GAP, Verdict.CLEARED, Verdict.GONE}
_CLOSED = "this reader was closed; subscribe again, after its cursor"


class Page(msgspec.Struct, frozen=True, weakref=True):
    """What one request brought. Shared: nobody may change it, or feed its ``replay``."""

    batches: list[Batch]
    replay: Replay
    """The state after it: where the next page begins."""
    verdict: Verdict | None
    """Why it ends before the messages did: a gap, events that were cleared, or a log that is gone."""
    empty: bool
    """The log has nothing there, as the leader says."""


_Wanted: TypeAlias = ReferenceType[asyncio.Future[Page]]
"""A page as its reading knows it: ``None`` when nobody holds it any more."""


class Pages:
    """All that is being read of one generation."""

    def __init__(self, context: Context, stream_id: str, generation: str) -> None:
        """Nothing is read yet."""
        self._context, self._generation = context, generation
        # Events are on one subject, and a server finds that in half the time that a filter with a wildcard takes. What
        # is on the other one is the tail's business.
        self._log = context.subjects.log(stream_id, generation)
        self._scope = context.subjects.scope(stream_id, generation)
        self._pages: WeakValueDictionary[tuple[object, ...], asyncio.Future[Page]] = WeakValueDictionary()
        self._tasks: dict[asyncio.Task[None], _Wanted] = {}

    def ask(self, replay: Replay) -> asyncio.Future[Page]:
        """The page that goes on after ``replay``, which stays as it is; for ``page_of``, and to be held meanwhile.

        Raises:
            NotOpenError: The replica is closed.
        """
        key = replay.state
        page = self._pages.get(key)
        if page is None:
            loop = asyncio.get_running_loop()
            page = loop.create_future()
            reading = self._fetch(key, copy(replay), ref(page))
            try:
                task = self._context.tasks.spawn(reading, f"natsjobs page {self._log}")
            except RuntimeError:
                raise NotOpenError(_CLOSED) from None
            self._pages[key] = page
            # A collector runs in any thread.
            self._tasks[task] = ref(page, lambda _: loop.call_soon_threadsafe(task.cancel))
            task.add_done_callback(partial(self._ended, key, ref(page)))
        return page

    def close(self) -> None:
        """Stop reading; who waits is told."""
        for task in self._tasks:
            task.cancel()

    async def _fetch(self, key: tuple[object, ...], replay: Replay, wanted: _Wanted) -> None:
        try:
            read = self._decoded(await self._messages(replay.seq + 1), replay)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            self._fail(key, wanted, error)
        else:
            if (page := wanted()) is not None:
                if not read.batches or read.verdict is not None:
                    self._pages.pop(key, None)
                page.set_result(read)

    def _ended(self, key: tuple[object, ...], wanted: _Wanted, task: asyncio.Task[None]) -> None:
        """Also one that was cancelled before it began."""
        del self._tasks[task]
        self._fail(key, wanted, NotOpenError(_CLOSED))

    def _fail(self, key: tuple[object, ...], wanted: _Wanted, error: Exception) -> None:
        if (page := wanted()) is not None and not page.done():
            self._pages.pop(key, None)
            page.set_exception(error)
            page.exception()  # seen, also when nobody waits any more

    async def _messages(self, seq: int) -> list[Message]:
        events, limit = self._context.link.events, self._context.patience
        try:
            page = await patiently(lambda: events.page(self._log, seq), limit=limit)
            hub.add(measures.PAGES)
            if not page:  # a replica that lags, or an end: the leader decides
                first = await patiently(lambda: events.next(self._scope, seq), limit=limit)
                page = [first] if first is not None else []
        except StreamMissingError:
            return []
        return page

    def _decoded(self, messages: list[Message], replay: Replay) -> Page:
        batches: list[Batch] = []
        why: Verdict | None = None
        for message in messages:
            verdict = replay.feed(message.seq, wire.decode(message.body), end=message.subject.endswith(".end"))
            if isinstance(verdict, Batch):
                batches.append(verdict)
            elif verdict in _STOPS:
                why = verdict
                break
        return Page(joined(batches, self._generation, _STEP), replay, why, empty=not messages)


async def page_of(asked: asyncio.Future[Page]) -> Page:
    """What ``Pages.ask`` gave, when it is there.

    Raises:
        UnavailableError: NATS does not answer.
        NotOpenError: Closed meanwhile.
    """
    try:
        return asked.result() if asked.done() else await asyncio.shield(asked)
    except NatsJobsError as error:
        raise copy(error) from None  # each who waits raises one of its own


class Ahead:
    """What one reader has read of the log and not given yet: the rest of a page, and the next one under way."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.batches: deque[Batch] = deque()
        """For ``take``; nobody else changes it."""
        self._replay: Replay | None = None
        self._half = 0
        self.held: tuple[asyncio.Future[Page], ...] = ()
        """What there is to ``drop``: others who want the same get these."""

    def foresee(self, position: int, seq: int) -> None:
        """The page that is probably ``read`` first, of the same place: it is under way then."""
        self.held = (self.pages.ask(_place(position, seq)),)

    async def read(self, position: int, seq: int) -> Page:
        """The page that begins with event ``position``. ``seq``: in what message, unless the page before says it.

        Raises as ``page_of`` does, and leaves everything as it was.
        """
        replay = self._replay
        if replay is None or replay.next != position:
            replay = _place(position, seq)
        asked = self.pages.ask(replay)
        self.held = (asked,)
        page = await page_of(asked)
        self._replay, self._half = page.replay, len(page.batches) // 2
        self.batches.extend(page.batches)
        return page

    def take(self, position: int, known: int) -> Batch | None:
        """The batch that holds event ``position``; ``None``: read on. ``known``: events that the generation has."""
        batches = self.batches
        while batches:
            batch = batches.popleft()
            if len(batches) == self._half and self._replay is not None and self._replay.next < known:
                self.held += (self.pages.ask(self._replay),)  # the next page comes while this one is given out
            if batch.index <= position < batch.next:
                return batch
        return None

    def drop(self, known: float = math.inf) -> None:
        """Let go of everything, unless a page went beyond event ``known``: the reader goes on elsewhere."""
        if self.held and (self._replay is None or self._replay.next <= known):
            self.batches.clear()
            self._replay, self.held = None, ()


def _place(position: int, seq: int) -> Replay:
    """Where the page begins that has event ``position``, in message ``seq`` perhaps; 0: nobody knows."""
    return Replay(position, max(seq - 1, 0))
