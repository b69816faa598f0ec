"""Group commit: the one writer of a generation on this replica.

Owns the queue between ``emit`` and the log, the numbers of the next message (index, expected sequence) and the
decision what became of an append that was not acknowledged. Guarantees: order of calls is order in the log; at most
one append is in flight, so the chain has no holes; an event leaves the queue only when it is known to be stored;
a writer that lost the generation is told so (design-corrections A5, B2).

How an append is decided after a refusal or a lost acknowledgement: read at the leader the message that took our
place (the first after the expected sequence). Ours, by writer and index: it had landed. A terminal record or a
tombstone: fenced. Another writer's: number again behind the tail. None: repeat *the same bytes*, because the first
try may still land; a group is never regrouped before it is decided.

The linger: an event after a pause goes at once; while more keep coming they are collected and leave together when
``timing.linger`` has passed since the last message.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from natsjobs.config import Config
from natsjobs.engine import wire
from natsjobs.engine.patience import Backoff, patiently
from natsjobs.engine.ports import Link, Message, StreamMissingError, WrongSequenceError
from natsjobs.engine.subjects import Subjects
from natsjobs.errors import JobClosedError, StreamFullError, UnavailableError
from natsjobs.models import EndReason
from natsjobs.tasks import Tasks

GROUP_BYTES = 262_144
"""Largest group, so that a page of replay stays small and an owner's memory too."""

INLINE_BYTES = 65_536
"""A larger final event is stored in pieces before its terminal record (B7)."""

_OVERHEAD = 2048  # headers and the JSON around the events
_FENCE_TIME = 1.0  # against a writer at full speed a terminal record does not back off this long (C2)


class Position(msgspec.Struct, frozen=True):
    """Where a log stands: the sequence and the index that the next append has to name."""

    seq: int
    index: int


class End(msgspec.Struct, frozen=True):
    """A terminal record that somebody wants to write."""

    kind: str
    reason: EndReason | None
    request: str | None
    data: bytes


class _Fate(enum.Enum):
    STORED = "stored"
    MOVED = "moved"  # another writer's message took the place: number again


class Appender:
    """Writes events, and at most one terminal record, of one generation."""

    def __init__(
        self,
        link: Link,
        subjects: Subjects,
        config: Config,
        tasks: Tasks,
        *,
        stream_id: str,
        generation: str,
        position: Position,
        on_closed: Callable[[wire.Terminal | None], None],
    ) -> None:
        """``on_closed`` hears once of the terminal record (``None``: the log is gone) that closed this appender."""
        self.stream_id, self.generation = stream_id, generation
        self.writer = wire.random_token()
        self.terminal: wire.Terminal | None = None
        self.closed: JobClosedError | None = None
        self.last_stored = time.monotonic()
        self.late_end = False  # our terminal record landed without an acknowledgement: readers may not have seen it
        self._link, self._config, self._tasks, self._on_closed = link, config, tasks, on_closed
        self._log, self._end = subjects.log(stream_id, generation), subjects.end(stream_id, generation)
        self._scope = subjects.scope(stream_id, generation)
        self._position = position
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._taken = 0  # events ever queued
        self._stored = 0  # events ever stored
        self._room: deque[tuple[asyncio.Future[None], bytes]] = deque()
        self._flushers: list[tuple[int, asyncio.Future[int]]] = []
        self._drains: list[asyncio.Future[None]] = []
        self._error: UnavailableError | None = None
        self._pending: tuple[int, bytes, int] | None = None  # undecided group: index, body, events
        self._sealed = False
        self._busy = False
        self._urgent = False
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # -- the producer's side ------------------------------------------------------------------------------------

    async def put(self, raw: bytes) -> None:
        """Queue one encoded event; waits only for room. Cancelled while waiting: not queued.

        Raises:
            JobClosedError: The generation has ended.
            UnavailableError: What was queued before could not be stored; it is kept, and so is not this event.
        """
        self._check()
        if not self._room and self._has_room(len(raw)):
            self._take(raw)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (future, raw)
        self._room.append(waiting)
        self._kick()
        try:
            await future
        except asyncio.CancelledError:
            if waiting in self._room:
                self._room.remove(waiting)
            raise

    async def flush(self) -> int:
        """Wait until everything queued so far is stored; the index of the newest of these. Raises as ``put`` does."""
        self._check(flushing=True)
        if self._stored >= self._taken:
            return self._position.index - 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._flushers.append((self._taken, future))
        self._urgent = True
        self._kick()
        return await future

    async def store(self, raw: bytes) -> int:
        """Queue one event and wait until it is stored; its index. Raises as ``put`` does."""
        await self.put(raw)
        return await self.flush()

    def _check(self, *, flushing: bool = False) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._kick()  # the next try starts with the call that heard of the failure
            raise error
        if self.closed is not None:
            if flushing and self._stored >= self._taken:
                return
            raise self.closed
        if self._sealed and not flushing:
            raise JobClosedError(self.stream_id, self.generation)

    def _has_room(self, size: int) -> bool:
        limits = self._config.limits
        if not self._queue:
            return True
        return len(self._queue) < limits.queue_events and self._queued_bytes + size <= limits.queue_bytes

    def _take(self, raw: bytes) -> None:
        self._queue.append(raw)
        self._queued_bytes += len(raw)
        self._taken += 1
        if not self._busy:
            self._kick()

    # -- sending ------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """Start a send now, or when the linger is over. The first event of a pause is never held back."""
        if self._busy or not self._queue or self.closed is not None:
            return
        wait = self._config.timing.linger - (time.monotonic() - self._sent_at)
        if wait > 0 and not self._urgent and not self._room and self._queued_bytes < GROUP_BYTES:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(wait, self._on_timer)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._busy = True
        self._sent_at = time.monotonic()
        self._tasks.spawn(self._send(), name=f"natsjobs append {self.stream_id}")

    def _on_timer(self) -> None:
        self._timer = None
        self._sent_at = 0.0
        self._kick()

    async def _send(self) -> None:
        try:
            await self._store_group()
        except UnavailableError as error:
            self._fail(error)
        except JobClosedError:  # noqa: S110 - `_close` has told everybody
            pass
        finally:
            self._busy = False
        self._urgent = self._urgent and bool(self._queue)
        drains, self._drains = self._drains, []
        for future in drains:
            if not future.done():
                future.set_result(None)
        if self._error is None:
            self._kick()

    async def _store_group(self) -> None:
        """Store the head of the queue: one group, or one event in parts."""
        while True:
            if self._pending is not None:
                index, body, count = self._pending
            else:
                events = self._group()
                if not events:
                    await self._store_parts(self._queue[0])
                    self._leave(1, self._position.index - 1)
                    return
                index, count = self._position.index, len(events)
                body = wire.events_body(index, self.writer, events)
                self._pending = (index, body, count)
            if await self._append(self._log, body, index, index + count) is _Fate.STORED:
                self._pending = None
                self._leave(count, index)
                return
            self._pending = None

    def _group(self) -> list[bytes]:
        """Events for one message; empty: the first is too large for one."""
        limit = min(GROUP_BYTES, self._link.max_payload - _OVERHEAD)
        size, events = 0, list[bytes]()
        for raw in self._queue:
            size += len(raw) + 1
            if size > limit and (events or size > self._link.max_payload - _OVERHEAD):
                break
            events.append(raw)
        return events

    async def _store_parts(self, raw: bytes) -> None:
        """One event over several messages that follow each other; an interrupted run starts again (B2)."""
        while not await self._parts(self._log, "part", raw):
            pass

    async def _parts(self, subject: str, kind: str, raw: bytes) -> int:
        """Append all pieces; the sequence of piece 0, or 0 when another writer came between."""
        # A piece becomes a JSON string, and quoting at most doubles it.
        pieces = wire.split_text(raw, (self._link.max_payload - _OVERHEAD) // 2)
        index, first = self._position.index, 0
        for number, piece in enumerate(pieces):
            body = wire.part_body(kind, index, self.writer, (number, len(pieces)), first, piece)
            after = index + 1 if kind == "part" and number == len(pieces) - 1 else index
            if await self._append(subject, body, index, after) is _Fate.MOVED:
                return 0
            first = first or self._position.seq
        return first

    def _leave(self, count: int, index: int) -> None:
        for _ in range(count):
            self._queued_bytes -= len(self._queue.popleft())
        before, self._stored = self._stored, self._stored + count
        self.last_stored = time.monotonic()
        while self._flushers and self._flushers[0][0] <= self._stored:
            target, flushed = self._flushers.pop(0)
            if not flushed.done():
                flushed.set_result(index + target - before - 1)
        while self._room and self._has_room(len(self._room[0][1])):
            future, raw = self._room.popleft()
            if not future.done():
                self._take(raw)
                future.set_result(None)

    def _fail(self, error: Exception) -> None:
        """Tell everybody who waits; with nobody waiting the next call hears of it."""
        waiting: list[asyncio.Future[Any]] = [future for _, future in self._flushers]
        waiting += [future for future, _ in self._room] + self._drains
        self._flushers.clear()
        self._room.clear()
        self._drains.clear()
        heard = False
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                heard = True
        if isinstance(error, UnavailableError) and not heard:
            self._error = error

    # -- one append ---------------------------------------------------------------------------------------------

    async def _append(
        self, subject: str, body: bytes, index: int, after: int, *, rollup: bool = False
    ) -> _Fate:
        """Append one message and know what became of it; ``after`` is the next index if it is stored.

        Raises:
            JobClosedError: Fenced: somebody else ended the generation, or its log is gone.
            UnavailableError: NATS was away for ``timing.give_up``; the same bytes have to be tried again.
            StreamFullError: The stream is full.
        """
        backoff = Backoff(self._config.timing.give_up)
        fast_until = time.monotonic() + _FENCE_TIME
        unsure = self._pending is not None and self._pending[1] is body
        while True:
            refusal: WrongSequenceError | None = None
            try:
                seq = await self._link.events.append(
                    subject, body, expect=self._position.seq, scope=self._scope, rollup=rollup
                )
            except WrongSequenceError as error:
                refusal = error
            except StreamMissingError:
                raise self._close(None) from None
            except StreamFullError:
                raise
            except UnavailableError as error:
                unsure = unsure or error.outcome_unknown
                if backoff.expired:
                    raise UnavailableError(str(error), outcome_unknown=unsure) from None
                if not error.outcome_unknown:
                    await backoff.pause()
                    continue
            else:
                self._position = Position(seq, after)
                return _Fate.STORED
            fate = await self._decide(index, after, refusal)
            if fate is not None:
                return fate
            if backoff.expired:
                raise UnavailableError(
                    f"no decision about an append to {subject} within {self._config.timing.give_up} s",
                    outcome_unknown=True,
                )
            if refusal is None or refusal.last is None or time.monotonic() > fast_until:
                await backoff.pause()

    async def _decide(self, index: int, after: int, refusal: WrongSequenceError | None) -> _Fate | None:
        """What took our place? ``None``: undecided, repeat the same bytes."""
        message = await self._leader(lambda: self._link.events.next(self._scope, self._position.seq + 1))
        if message is None:
            if refusal is not None and refusal.last is not None and refusal.last < self._position.seq:
                raise self._close(None)
            return None
        entry = wire.decode(message.body)
        if entry is not None and entry.writer == self.writer and entry.index == index:
            if entry.type in wire.TERMINAL:
                self.late_end = True
                self._settle(await read_terminal(self._link, message, entry))
            self._position = Position(message.seq, after)
            return _Fate.STORED
        position = await self._tail()
        if position is None:
            raise self._close(self.terminal)
        self._position = position
        return _Fate.MOVED

    async def _tail(self) -> Position | None:
        """The position behind the newest message; ``None``: the generation is over (``self.terminal`` says how)."""
        message = await self._leader(lambda: self._link.events.last(self._scope))
        if message is None:
            return None
        self.terminal = await find_terminal(self._link, self._end, message)
        return None if self.terminal else position_after(message, self._position.index)

    async def _leader(self, read: Callable[[], Awaitable[Message | None]]) -> Message | None:
        try:
            return await patiently(read, limit=self._config.timing.give_up)
        except StreamMissingError:
            return None

    # -- the end ------------------------------------------------------------------------------------------------

    async def finish(self, end: End) -> wire.Terminal:
        """Store what is queued, then the terminal record; the one that stands afterwards, ours or an earlier one.

        Raises:
            JobClosedError: The log is gone.
            UnavailableError: Not stored in ``timing.give_up``. Calling again goes on where this stopped.
        """
        self._sealed = True
        with contextlib.suppress(JobClosedError):
            await self._drain()
            if self.closed is None:
                await self._store_end(end)
        if self.terminal is None:
            raise self.closed or JobClosedError(self.stream_id, self.generation)
        return self.terminal

    async def clear(self) -> None:
        """Store what is queued, then replace everything by a tombstone that the log goes on behind. Raises as ``put``."""
        while True:
            await self._drain()
            self._check(flushing=True)
            self._busy = True  # no group may start between: the numbers are ours until this is decided
            try:
                index = self._position.index
                body = wire.tombstone_body("cleared", index, self.writer)
                if await self._append(self._log, body, index, index, rollup=True) is _Fate.STORED:
                    return
            finally:
                self._busy = False
                self._kick()

    async def _drain(self) -> None:
        """Everything queued goes first; while it cannot be stored, neither can the end."""
        while self.closed is None and not self.idle:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drains.append(future)
            self._urgent, self._error = True, None
            self._kick()
            try:
                await future
            except StreamFullError:
                # The end must fit all the same (B8). The events that were refused are lost, and the producer heard it.
                self._queue.clear()
                self._queued_bytes = 0
                self._pending = None

    async def _store_end(self, end: End) -> None:
        while True:
            first = 0
            if len(end.data) > INLINE_BYTES:
                first = await self._parts(self._end, "final", end.data)
                if not first:
                    continue
            index, previous = self._position.index, self._position.seq
            body = wire.end_body(
                end.kind,
                index,
                self.writer,
                previous=previous,
                reason=end.reason,
                request=end.request,
                data=b"null" if first else end.data,
                first=first,
            )
            if await self._append(self._end, body, index, index) is _Fate.STORED:
                entry = wire.decode(body)
                assert entry is not None
                terminal = self.terminal or wire.Terminal.of(entry, self._position.seq, end.data)
                self._settle(terminal)
                return

    def _settle(self, terminal: wire.Terminal) -> None:
        self.terminal = terminal
        self._close(terminal)

    def _close(self, terminal: wire.Terminal | None) -> JobClosedError:
        """No more writes: tell everybody who waits, and the hub, once."""
        if self.closed is None:
            self.terminal = terminal
            status, reason = (terminal.status, terminal.reason) if terminal else (None, None)
            self.closed = JobClosedError(self.stream_id, self.generation, status, reason)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._queue.clear()
            self._queued_bytes = 0
            self._fail(self.closed)
            self._on_closed(terminal)
        return self.closed

    def fence(self, terminal: wire.Terminal | None) -> None:
        """Somebody else's terminal record was seen (``None``: the log is gone)."""
        self._close(terminal)

    @property
    def idle(self) -> bool:
        """Nothing is queued or in flight."""
        return not (self._queue or self._busy or self._room)


def position_after(message: Message, index: int) -> Position | None:
    """Where a log stands whose newest message is this; ``None``: it is over. ``index``: behind what is not ours."""
    entry = wire.decode(message.body)
    if entry is None:
        return Position(message.seq, index)
    return None if entry.type == "gone" else Position(message.seq, entry.next_index)


async def find_terminal(link: Link, end_subject: str, newest: Message) -> wire.Terminal | None:
    """The terminal record of a log whose newest message is ``newest``, also behind a tombstone."""
    entry = wire.decode(newest.body)
    if entry is not None and entry.type in {"gone", "cleared"}:
        behind = await patiently(lambda: link.events.last(end_subject), limit=10)
        if behind is None:
            return None
        newest, entry = behind, wire.decode(behind.body)
    if entry is None or entry.type not in wire.TERMINAL or newest.subject != end_subject:
        return None
    return await read_terminal(link, newest, entry)


async def read_terminal(link: Link, message: Message, entry: wire.Entry) -> wire.Terminal:
    """A terminal record with its data, also when that was stored in pieces before it."""
    if not entry.first:
        return wire.Terminal.of(entry, message.seq)
    pieces: list[str] = []
    seq = entry.first
    while seq < message.seq:
        start = seq
        stored = await patiently(lambda: link.events.next(message.subject, start), limit=10)
        if stored is None:
            break
        piece = wire.decode(stored.body)
        if piece is not None and piece.type == "final" and piece.writer == entry.writer:
            pieces.append(msgspec.json.decode(piece.data, type=str))
        seq = stored.seq + 1
    return wire.Terminal.of(entry, message.seq, "".join(pieces).encode())
