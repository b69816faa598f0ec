"""``LogReader``: one viewer's way through a generation, and on to the next one if it follows.

Owns where to begin, what to do when the hand is empty and there is more to do than to wait, and the end. What was
read already is the business of its base (``hand``): it takes from the shared window when its next event is there, and
this reads pages of the log when it is not, so joining late, lagging and reconnecting are the same thing. Guarantees:
every event after the cursor exactly once, in index order, then exactly one terminal record; the cursor moves only
when an event is handed out, so a cancelled ``__anext__`` loses nothing; what cannot be read any more is an error,
never a gap (promises 1, 7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from copy import copy
from typing import NoReturn, TypeAlias

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.doubts import Doubts, catch_up, cleared_start, raise_lost
from natsjobs.engine.hand import BURST, Hand
from natsjobs.engine.jobs import JobRecord, read_record
from natsjobs.engine.pages import Ahead
from natsjobs.engine.patience import FINAL
from natsjobs.engine.replay import Verdict
from natsjobs.engine.tail import Tail
from natsjobs.engine.tails import Tails
from natsjobs.engine.terminals import end_event
from natsjobs.engine.turns import Turns
from natsjobs.errors import (
    GenerationReplacedError,
    HistoryLostError,
    JobNotFoundError,
    NotOpenError,
    UnavailableError,
)
from natsjobs.models import Job, StreamEvent
from natsjobs.tasks import together
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_OUTAGE_PAUSE = 0.5
_SETTLED = 5.0
"""Of a job that was created so many seconds ago there is more to read than its newest message."""
_Listen: TypeAlias = Callable[[], Awaitable[None]]


class LogReader(Hand):
    """Implements ``natsjobs.interfaces.EventReader``; made by ``EventTransport.read``."""

    def __init__(self, context: Context, tails: Tails, stream_id: str, *, follow: bool) -> None:
        """Nothing happens before one of the ``start_`` methods."""
        super().__init__()
        self._context, self._tails, self._stream_id, self._follow = context, tails, stream_id, follow
        self._turns: Turns | None = None
        self._record: JobRecord | None = None
        self._ended = False
        self._doubts = Doubts()
        self._span: object = None
        context.readers += 1

    # -- entering -----------------------------------------------------------------------------------------------

    async def start_at(
        self, after: str | None, generation: str | None, wait: float, listen: _Listen, likely: str | None
    ) -> None:
        """Attach at a cursor. Raises what ``JobManager.subscribe`` documents.

        ``listen`` is awaited before anything is asked for, and waits for no answer; it goes out with the questions.
        ``likely``: the generation that will probably be read; its tail is entered, and the page that a cursor points
        to is asked for, while the record is. What is there decides the record and the log, as always.
        """
        cursor = wire.Cursor.parse(after) if after is not None else None
        if self._follow:
            await self._watch_turns()
        self._position, self._seq = (cursor.position, cursor.hint) if cursor else (0, 0)
        likely = generation or (cursor.generation if cursor is not None else likely)
        asked = self._ask(listen)
        if likely is None:
            record = await asked
        else:  # in this order: a page that is foreseen leaves together with all the rest
            _, record = await together(self._enter_early(likely, self._foresee), asked)
        if record is None and wait > 0:
            record = await (await self._watch_turns()).wait(after=None, timeout=wait, attach=self._enter_early)
        if record is None:
            if cursor is not None:
                raise HistoryLostError(self._stream_id, "the job of this cursor has expired or was deleted")
            raise JobNotFoundError(self._stream_id)
        self._record = record
        wanted = generation or (cursor.generation if cursor else record.generation)
        other = wanted != record.generation or (cursor is not None and cursor.generation != wanted)
        if other and (not self._follow or (cursor is not None and cursor.generation != wanted)):
            raise GenerationReplacedError(self._stream_id, record.generation)
        self._fresh = cursor is None
        early, self._tail = self._tail, None
        if early is not None and early.generation != wanted:
            await self._tails.leave(early)
            early = None
        self._enter(early or await self._tails.enter(self._stream_id, wanted, self._foresee))
        await self._check_start(cursor)

    async def _watch_turns(self) -> Turns:
        if self._turns is None:
            self._turns = Turns(self._context, self._stream_id)
            await self._turns.open()
        return self._turns

    async def _ask(self, listen: _Listen) -> JobRecord | None:
        await listen()
        return await read_record(self._context, self._stream_id)

    def _foresee(self, tail: Tail) -> None:
        """Ask at once for the page that will probably be read: what the newest message holds is read with the tail."""
        record = self._record
        begun = record is not None and time.time() - record.job.created_at / 1000 > _SETTLED
        if self._position < tail.start if tail.opened else self._seq > 0 or (begun and not self._position):
            self._ahead = Ahead(tail.pages)
            self._ahead.foresee(self._position, self._seq)

    async def _enter_early(self, generation: str, foresee: Callable[[Tail], None] | None = None) -> None:
        """Enter a tail that may turn out to be another than the record names; then it is left again."""
        early, self._tail = self._tail, None
        if early is not None:
            await self._tails.leave(early)
        with contextlib.suppress(HistoryLostError):  # whether that matters says the record
            self._tail = await self._tails.enter(self._stream_id, generation, foresee)

    def _enter(self, tail: Tail) -> None:
        self._end_span()
        if self._tail is not None:
            self._tail.bells.remove(self._bell)
        tail.bells.add(self._bell)
        self._tail, self._generation = tail, tail.generation
        if hub.tracer is not None:
            with hub.tracing() as tracer:
                record = self._record
                data = record.data if record is not None and record.generation == tail.generation else {}
                self._span = tracer.start_read((self._stream_id, tail.generation), data.get("trace"))
        self._batch, self._until = None, 0
        if self._ahead is None or self._ahead.pages is not tail.pages:
            self._ahead = Ahead(tail.pages)
        self._paging = bool(self._ahead.held)
        self._doubts = Doubts()

    def _end_span(self) -> None:
        span, self._span = self._span, None
        if span is not None and hub.tracer is not None:
            with hub.tracing() as tracer:
                tracer.end_read(span, self._position)

    async def _check_start(self, cursor: wire.Cursor | None) -> None:
        """Find out on entering, not later, whether the next events are still there."""
        tail = self._open_tail
        if tail.terminal is not None and self._position == tail.terminal.index + 1:
            self._given = self._generation
            self._cursor = str(cursor)
            self._ended = not self._follow
            return
        await catch_up(self._context, self._stream_id, tail, self._position)
        while self._position < tail.start and not (self._ahead and self._ahead.batches):
            await self._read_page()
        if self._ahead is not None and self._position >= tail.start:
            self._ahead.drop(tail.next)  # the page that was foreseen: among thousands it would keep the server busy
            self._paging = bool(self._ahead.held)

    @property
    def _open_tail(self) -> Tail:
        assert self._tail is not None
        return self._tail

    async def start_live(self, *, after: str | None = None) -> None:
        """Attach at the newest position of the newest generation, or wait for the first one.

        ``after``: a generation of which there is nothing more to read; those that follow it are read from their start.
        """
        self._turns = Turns(self._context, self._stream_id)
        await self._turns.open()
        record = await read_record(self._context, self._stream_id)
        self._record = record
        if record is None:
            return
        if after is not None and record.generation != after:
            self._given = after
            return
        try:
            tail = await self._tails.enter(self._stream_id, record.generation)
        except HistoryLostError:
            self._given = record.generation  # nothing left of it: wait for the next turn
            return
        self._enter(tail)
        self._position, self._seq = tail.next, tail.seq
        if tail.terminal is not None or record.status.is_terminal:
            self._given = record.generation

    # -- what people use ----------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The job of the generation being read."""
        if self._record is None:
            raise NotOpenError("no job yet: this reader waits for the first generation")
        return self._record.job

    @property
    def generation(self) -> str | None:
        """The generation being read; ``None``: none yet."""
        return self._generation or None

    @property
    def stored(self) -> int:
        """How many events the generation has, as far as is known here."""
        return self._tail.next if self._tail is not None else 0

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> StreamEvent:
        return self.hand.pop() if self.hand else await self.more()

    async def more(self) -> StreamEvent:
        """The next event, when the ``hand`` is empty. Lets others run."""
        while not (self.hand or self.fill()):
            if self._closed or self._ended:
                self._refuse()
            if self._burst >= BURST:
                self._burst = 0
                await asyncio.sleep(0)  # who always has something to read must not keep the others from running
            elif (news := self.idle()) is not None:
                await news
            else:
                try:
                    if (end := await self._step()) is not None:
                        return end
                except FINAL:
                    raise
                except UnavailableError as error:
                    _log.warning("reading %s waits for NATS: %s", self._stream_id, error)  # no outage ends a reader
                    await asyncio.sleep(_OUTAGE_PAUSE)
        return self.hand.pop()

    def _refuse(self) -> NoReturn:
        if self._closed:
            raise NotOpenError("this reader was closed; subscribe again, after its cursor")
        raise StopAsyncIteration

    async def _step(self) -> StreamEvent | None:
        """Whatever has to be done; the end, if it is the turn of that."""
        if self._record is None or self._given is not None:
            await self._next_turn()
            return None
        tail = self._open_tail
        if tail.terminal is not None and self._position >= tail.terminal.index:
            return self._give_end(tail.terminal)
        if tail.lost is not None:
            await raise_lost(self._context, self._stream_id, self._generation, tail.lost)
        if self._position < tail.next:
            await self._read_page()
        elif tail.denied is not None:
            raise copy(tail.denied)
        return None

    def _give_end(self, terminal: wire.Terminal) -> StreamEvent:
        self._given = self._generation
        self._ended = not self._follow
        self._position = terminal.index + 1
        event = end_event(self._generation, terminal)
        self._cursor = event.cursor
        return event

    # -- reading the log ----------------------------------------------------------------------------------------

    async def _read_page(self) -> None:
        """Bring the batches that follow the position, from the log, into ``_ahead``."""
        assert self._ahead is not None
        page = await self._ahead.read(self._position, self._seq)
        if self._closed:
            return  # meanwhile, by somebody else
        self._paging = True
        if page.batches:
            self._doubts = Doubts()
        if page.verdict is Verdict.GONE:
            raise HistoryLostError(self._stream_id, "its log was removed")
        if page.empty:
            await self._doubt("the log ends before the events that come next")
        elif page.verdict is not None and not page.batches:  # hand out what is there first
            await self._doubt("the events that come next are not in the log any more")

    async def _doubt(self, detail: str) -> None:
        """The log does not have what comes next: it is read again without a hint, and in the end it is lost."""
        self._ahead, self._paging, self._seq = Ahead(self._open_tail.pages), False, 0
        context, run = self._context, (self._stream_id, self._generation)
        if self._fresh and (start := await cleared_start(context, *run, self._position)) is not None:
            self._position, self._seq = start
            return
        if self._doubts.last:
            raise HistoryLostError(self._stream_id, detail)
        await self._doubts.pause()

    # -- the next generation ------------------------------------------------------------------------------------

    async def _next_turn(self) -> None:
        """Wait for a generation after the one that was read to its end, and enter it at its start."""
        assert self._turns is not None
        record = await self._turns.wait(after=self._given)
        if record is None:
            return
        generation = await self._turns.oldest_after(self._given, record.generation)
        try:
            tail = await self._tails.enter(self._stream_id, generation)
        except HistoryLostError:
            self._given, self._record = generation, record
            return
        if self._closed:  # meanwhile, by somebody else, who knew nothing of this tail
            await self._tails.leave(tail)
            return
        previous, self._record = self._tail, record
        self._enter(tail)
        self._given, self._position, self._seq, self._fresh = None, 0, 0, True
        if previous is not None:
            await self._tails.leave(previous)

    def lacks(self, ended: Collection[str]) -> bool:
        """Whether one of these generations is being read, and its end was not given yet."""
        return self._generation in ended and self._given != self._generation and not self._closed

    async def close(self) -> None:
        """Release everything at once; a pending ``__anext__`` raises NotOpenError."""
        if self._closed:
            return
        self._closed = True
        self._empty()
        if self._ahead is not None:
            self._ahead.drop()
        self._context.readers -= 1
        self._end_span()
        try:
            if self._turns is not None:
                await self._turns.close()
        finally:
            tail, self._tail = self._tail, None
            if tail is not None:
                tail.bells.remove(self._bell)
                self._bell.ring()  # whoever waits; the others have no reason to wake
                await self._tails.leave(tail)
