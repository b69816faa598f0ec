"""Group commit: the one writer of a generation on this replica.

Owns the queue between ``emit`` and the log. Guarantees: order of calls is order in the log; at most one append is in
flight, so the chain has no holes; an event leaves the queue only when it is known to be stored, and a group is never
regrouped before it is decided; a writer that lost the generation is told so, at once if somebody waits, else by its
next call.

The linger: an event after a pause goes at once; while more keep coming they are collected and leave together when
``timing.linger`` has passed since the last message.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any

from natsjobs.engine import wire
from natsjobs.engine.chain import OVERHEAD, Chain, FencedError
from natsjobs.engine.context import Context
from natsjobs.engine.headroom import fitting
from natsjobs.engine.terminals import End, Position
from natsjobs.errors import EventTooLargeError, JobClosedError, PermissionDeniedError, StreamFullError, UnavailableError
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

GROUP_BYTES = 262_144
"""Largest group, so that a page of replay stays small and an owner's memory too."""

INLINE_BYTES = 65_536
"""A larger final event is stored in pieces before its terminal record (B7)."""

OnClosed = Callable[[wire.Terminal | None], None]


class Appender:
    """Writes events, and at most one terminal record, of one generation."""

    def __init__(
        self, context: Context, *, stream_id: str, generation: str, position: Position, on_closed: OnClosed
    ) -> None:
        """``on_closed`` hears once of the terminal record (``None``: the log is gone) that closed this appender."""
        self.stream_id, self.generation = stream_id, generation
        self.terminal: wire.Terminal | None = None
        self.closed: JobClosedError | None = None
        self.last_stored = time.monotonic()
        self.refused: StreamFullError | PermissionDeniedError | None = None
        """Why the last events of this generation are missing, if they are."""
        self._link, self._config, self._tasks, self._on_closed = context.link, context.config, context.tasks, on_closed
        self._headroom = context.headroom
        self._chain = Chain(context, stream_id, generation, position)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._taken = 0  # events ever queued
        self._stored = 0  # events ever stored
        self._room: deque[tuple[asyncio.Future[None], bytes]] = deque()
        self._flushers: list[tuple[int, asyncio.Future[int]]] = []
        self._drains: list[asyncio.Future[None]] = []
        self._error: Exception | None = None
        self._pending: tuple[bytes, int] | None = None  # undecided group: body, events
        self._sealed = False
        self._alone = asyncio.Lock()  # two ends at once would move each other's numbers, and both be stored
        self._busy = self._held = False
        self._urgent = False
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- the producer's side ------------------------------------------------------------------------------------

    async def put(self, raw: bytes) -> int:
        """Queue one encoded event; waits only for room. Cancelled while waiting: not queued. Its number for ``store``.

        Raises:
            JobClosedError: The generation has ended.
            UnavailableError: What was queued before could not be stored; it is kept, and so is not this event.
        """
        self._check()
        if not self._room and self._has_room(len(raw)):
            return self._take(raw)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting, began = (future, raw), time.monotonic()
        self._room.append(waiting)
        self._kick()
        try:
            await future
            if self.closed is not None:
                raise copy(self.closed)
            return self._take(raw)
        finally:
            if waiting in self._room:
                self._room.remove(waiting)
            hub.add(measures.BACKPRESSURE, time.monotonic() - began)
            self._let_in()
            if self.idle:
                self._drained()

    async def flush(self) -> int:
        """Wait until everything queued so far is stored; the index of the newest of these. Raises as ``put`` does."""
        self._check(flushing=True)
        if self.refused is not None and not self.closed:
            await asyncio.sleep(0)  # whoever tries again at once must not hold up the end that is on its way
            raise copy(self.refused)
        return await self._until_stored(self._taken)

    async def _until_stored(self, number: int) -> int:
        if self._stored >= number:
            return self._chain.position.index - 1 - (self._stored - number)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        bisect.insort(self._flushers, (number, future), key=lambda waiting: waiting[0])
        self._urgent = True
        self._kick()
        return await future

    async def store(self, raw: bytes) -> int:
        """Queue one event and wait until it is stored; its index. Raises as ``put`` does."""
        return await self._until_stored(await self.put(raw))

    def _check(self, *, flushing: bool = False) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._kick()  # the next try starts with the call that heard of the failure
            raise error
        if self.closed is not None:
            if flushing and not self.owes:
                return
            raise copy(self.closed)  # anew each time: a raised exception keeps its traceback, and that its frames
        if self._sealed and not flushing:
            raise JobClosedError(self.stream_id, self.generation)

    def _has_room(self, size: int, ahead: int = 0, ahead_bytes: int = 0) -> bool:
        """Whether an event fits behind those in the queue and ``ahead`` others."""
        limits, events = self._config.limits, len(self._queue) + ahead
        if not events:
            return True
        return events < limits.queue_events and self._queued_bytes + ahead_bytes + size <= limits.queue_bytes

    def _let_in(self) -> None:
        """Wake, in order, those who fit. Each takes its place itself, so that who is cancelled meanwhile has none."""
        size = 0
        for ahead, (future, raw) in enumerate(self._room):
            if not self._has_room(len(raw), ahead, size):
                return
            size += len(raw)
            if not future.done():
                future.set_result(None)

    def _take(self, raw: bytes) -> int:
        self._queue.append(raw)
        self._queued_bytes += len(raw)
        self._taken += 1
        if not self._busy:
            self._kick()
        return self._taken

    # -- sending ------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """Start a send now, or when the linger is over. The first event of a pause is never held back."""
        if self._busy or self._held or not self._queue or self.closed is not None:
            return
        wait = self._config.timing.linger - (time.monotonic() - self._sent_at)
        if wait > 0 and not self._urgent and not self._room and self._queued_bytes < GROUP_BYTES:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)
            return
        self._stop_timer()
        self._busy = True
        self._sent_at = time.monotonic()
        self._tasks.spawn(self._send(), name=f"natsjobs append {self.stream_id}")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self._sent_at = 0.0
        self._kick()

    def release(self, why: Exception) -> None:
        """This replica closes: nothing is sent any more, and no timer is left; whoever waits here is told ``why``."""
        self._stop_timer()
        self._fail(why)

    async def _send(self) -> None:
        try:
            await self._store_group()
        except FencedError as fenced:
            self.fence(fenced.terminal)
        except UnavailableError as error:
            self._fail(error)
        except Exception as error:
            self._fail(error)  # a defect of ours must not leave anybody waiting for ever
            raise
        finally:
            self._busy = False
        self._urgent = self._urgent and bool(self._queue)
        self._drained()
        if self._error is None:
            self._kick()

    def _drained(self) -> None:
        drains, self._drains = self._drains, []
        for future in drains:
            if not future.done():
                future.set_result(None)

    async def _store_group(self) -> None:
        """Store the head of the queue: one group, or one event in parts."""
        chain = self._chain
        while True:
            if not self._queue:
                return  # closed before this task ran
            if self._pending is None:
                events = wire.group(self._queue, GROUP_BYTES, self._link.max_payload - OVERHEAD)
                if not events:
                    await chain.append_parts(chain.log, "part", self._queue[0])
                    self._leave(1, chain.position.index - 1)
                    return
                await self._headroom.admit(sum(map(len, events)))
                body = wire.events_body(chain.position.index, chain.writer, events)
                self._pending = (body, len(events))
            body, count = self._pending
            index = chain.position.index
            try:
                stored = await chain.append(chain.log, body, after=index + count)
            except EventTooLargeError:
                stored = False  # the server takes less than it did when the group was built
            self._pending = None  # decided: only now may the group be built anew
            if stored:
                self._leave(count, index)
                return

    def _leave(self, count: int, index: int) -> None:
        size = sum(len(self._queue.popleft()) for _ in range(min(count, len(self._queue))))
        self._queued_bytes -= size
        hub.add(measures.EVENTS, count)
        hub.add(measures.EVENT_BYTES, size)
        before, self._stored = self._stored, self._stored + count
        self.last_stored = time.monotonic()
        while self._flushers and self._flushers[0][0] <= self._stored:
            target, flushed = self._flushers.pop(0)
            if not flushed.done():
                flushed.set_result(index + target - before - 1)
        self._let_in()

    def _fail(self, error: Exception) -> None:
        """Tell everybody who waits; with nobody waiting the next call hears of it."""
        producers: list[asyncio.Future[Any]] = [future for _, future in self._flushers]
        producers += [future for future, _ in self._room]
        heard = any(not future.done() for future in producers)
        for future in [*producers, *self._drains]:
            if not future.done():
                future.set_exception(error)
        self._flushers.clear()
        self._room.clear()
        self._drains.clear()
        if not heard and not isinstance(error, JobClosedError):
            self._error = error

    # -- the end ------------------------------------------------------------------------------------------------

    async def finish(self, end: End) -> wire.Terminal:
        """Store what is queued, then the terminal record; the one that stands afterwards, ours or an earlier one.

        Raises:
            JobClosedError: The log is gone.
            UnavailableError: Not stored in ``timing.give_up``. Calling again goes on where this stopped.
        """
        self._sealed = True
        async with self._alone:
            await self._drain()
            if self.closed is None:
                try:
                    self.fence(await self._store_end(end))
                except FencedError as fenced:
                    self.fence(fenced.terminal)
        if self.terminal is None:
            raise self.closed or JobClosedError(self.stream_id, self.generation)
        return self.terminal

    async def clear(self) -> None:
        """Store what is queued, then replace all by a tombstone that the log goes on behind. Raises as ``put``."""
        chain, stored = self._chain, False
        async with self._alone:
            while not stored:
                await self._drain()
                if self.refused is not None:
                    self._error = None  # what was refused would be cleared now
                self._check(flushing=True)
                self._busy = True  # no group may start between: the numbers are ours until this is decided
                try:
                    index = chain.position.index
                    body = wire.tombstone_body("cleared", index, chain.writer)
                    stored = await chain.append(chain.log, body, after=index, rollup=True)
                except FencedError as fenced:
                    raise self.fence(fenced.terminal) from None
                finally:
                    self._busy = False
                    self._kick()
            self.refused = None

    async def _drain(self) -> None:
        """Everything queued goes first; while it cannot be stored, neither can the end."""
        while self.closed is None and not self.idle:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drains.append(future)
            self._urgent, self._error = True, None
            self._kick()
            try:
                try:
                    await future
                finally:
                    self._held = False
            except JobClosedError:
                return
            except (StreamFullError, PermissionDeniedError) as error:
                if self._busy:  # somebody else waited too, and for him it is tried again: once, or this never ends
                    self._held = True
                    continue
                # The end must fit all the same (B8), and is a permission of its own (B10); it says that the events
                # which were refused are missing.
                self.refused = error
                self._queue.clear()
                self._queued_bytes = 0
                self._pending = None
                self._fail(error)  # who has come to wait meanwhile
                self._stored = self._taken  # nobody may wait for them any more; `refused` says that they are missing

    async def _store_end(self, end: End) -> wire.Terminal:
        chain, kind, data = self._chain, end.kind, end.data
        while True:
            inline = min(INLINE_BYTES, self._link.max_payload - OVERHEAD)
            if self.refused is not None:
                kind, data = fitting(kind, data, self.refused, most=inline)
            large = len(data) > inline
            try:
                first = await chain.append_parts(chain.end, "final", data) if large else 0
            except StreamFullError as error:
                self.refused = error
                continue
            body = wire.end_body(
                kind,
                chain.position.index,
                chain.writer,
                previous=chain.position.seq,
                reason=end.reason,
                request=end.request,
                data=b"null" if large else data,
                first=first,
            )
            if await chain.append(chain.end, body, after=chain.position.index):
                entry = wire.decode(body)
                assert entry is not None
                return chain.landed or wire.Terminal.of(entry, chain.position.seq, data)

    def fence(self, terminal: wire.Terminal | None) -> JobClosedError:
        """A terminal record was seen (``None``: the log is gone): tell everybody who waits, and the replica, once."""
        if self.closed is None:
            self.terminal = terminal
            status, reason = (terminal.status, terminal.reason) if terminal else (None, None)
            self.closed = JobClosedError(self.stream_id, self.generation, status, reason)
            self._stop_timer()
            self._queue.clear()
            self._queued_bytes = 0
            self._fail(self.closed)
            self._on_closed(terminal)
        return self.closed

    @property
    def writer(self) -> str:
        """Names this writer in every message it stores."""
        return self._chain.writer

    @property
    def late_end(self) -> bool:
        """Our terminal record landed without an acknowledgement: readers may not have seen it."""
        return self._chain.landed is not None

    @property
    def owes(self) -> bool:
        """Events that it took were lost with the end of the generation: whoever flushes is to hear of it."""
        return self.closed is not None and (self._stored < self._taken or self.refused is not None)

    @property
    def queued(self) -> int:
        """Events that are not stored yet."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Nothing is queued or in flight."""
        return not (self._queue or self._busy or self._room)
