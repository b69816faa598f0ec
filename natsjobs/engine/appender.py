"""Group commit: the one writer of a generation on this replica.

Owns the way from the queue (``backlog``) to the log. Guarantees: order of calls is order in the log; one append is in
flight at most, so the chain has no holes; an event leaves the queue only when it is known to be stored, a group is not
regrouped before it is decided; a writer that lost the generation is told so, at once or by its next call.

The linger: an event after a pause (nothing was sent for as long as the linger is) goes at once, that is at the end of
this turn of the loop, with what else is emitted in it (``departures``). While more keep coming they are collected, the
first of them for the linger at most, and leave together, with those of other writers (``linger``); nothing is held
that fills the largest group or half of the queue. How long the linger is depends on whether anybody watches
(``audience``). An append needs a task only while something is unusual: it is sent in one step, its acknowledgement goes
on with the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from copy import copy

from natsjobs.engine import wire
from natsjobs.engine.backlog import GROUP_BYTES, Backlog, anew
from natsjobs.engine.chain import OVERHEAD, Chain, FencedError
from natsjobs.engine.context import Context
from natsjobs.engine.headroom import fitting
from natsjobs.engine.linger import Linger, Pace
from natsjobs.engine.ports import Sent
from natsjobs.engine.terminals import End, Position
from natsjobs.errors import EventTooLargeError, JobClosedError, PermissionDeniedError, StreamFullError, UnavailableError

INLINE_BYTES = 65_536
"""A larger final event is stored in pieces before its terminal record (B7)."""

OnClosed = Callable[[wire.Terminal | None], None]


class Appender:
    """Writes events, and at most one terminal record, of one generation."""

    def __init__(
        self,
        context: Context,
        *,
        stream_id: str,
        generation: str,
        position: Position,
        on_closed: OnClosed,
        on_held: Callable[[Appender], None],
    ) -> None:
        """``on_closed`` hears once of the terminal record (``None``: the log is gone) that closed this appender.

        ``on_held`` hears of every message that was held back for the linger, as it leaves.
        """
        self.stream_id, self.generation = stream_id, generation
        self.terminal: wire.Terminal | None = None
        self.closed: JobClosedError | None = None
        self.last_stored = time.monotonic()
        self.refused: StreamFullError | PermissionDeniedError | None = None
        """Why the last events of this generation are missing, if they are."""
        self._link, self._on_closed, self._on_held = context.link, on_closed, on_held
        self._spawn, self._headroom, self._departures = context.spawn, context.headroom, context.departures
        self._pace = Pace(context.linger, self)
        self._chain = Chain(context, stream_id, generation, position)
        self._backlog = Backlog(context.config.limits)
        self._error: Exception | None = None
        self._pending: tuple[bytes, int] | None = None  # undecided group: body, events
        self._sent: Sent | None = None  # the try of it that was made without a task
        self._sealed = False
        self._alone = asyncio.Lock()  # two ends at once would move each other's numbers, and both be stored
        self._busy = self._held = self._released = False
        self._urgent = False

    # -- the producer's side ------------------------------------------------------------------------------------

    def offer(self, raw: bytes) -> bool:
        """Queue one encoded event if there is room for it at once; else ``put`` waits. Raises as ``put`` does."""
        if self._sealed or self.closed is not None or self._error is not None:
            self._check()
        return self._backlog.admits(len(raw)) and self._take(raw) > 0

    async def put(self, raw: bytes) -> int:
        """Queue one encoded event; waits only for room. Cancelled while waiting: not queued. Its number for ``store``.

        Raises:
            JobClosedError: The generation has ended.
            UnavailableError: What was queued before could not be stored; it is kept, and so is not this event.
        """
        self._check()
        if self._backlog.admits(len(raw)):
            return self._take(raw)
        place = self._backlog.line_up(len(raw))
        self._kick()
        try:
            await place.free
            if self.closed is not None:
                raise copy(self.closed)
            return self._take(raw)
        finally:
            self._backlog.leave_line(place)
            if self.idle:
                self._backlog.drained()

    async def flush(self) -> int:
        """Wait until everything queued so far is stored; the index of the newest of these. Raises as ``put`` does."""
        self._check(flushing=True)
        if self.refused is not None and not self.closed:
            await asyncio.sleep(0)  # whoever tries again at once must not hold up the end that is on its way
            raise copy(self.refused)
        return await self._until_stored(self._backlog.taken)

    async def _until_stored(self, number: int) -> int:
        if (stored := self._backlog.stored) >= number:
            return self._chain.position.index - 1 - (stored - number)
        future = self._backlog.expect(number)
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
            raise copy(self.closed)
        if self._sealed and not flushing:
            raise JobClosedError(self.stream_id, self.generation)

    def _take(self, raw: bytes) -> int:
        backlog = self._backlog
        if len(backlog.events) == (self._pending[1] if self._pending is not None else 0):
            self._pace.begin()
        number = backlog.add(raw)
        if not self._busy and (self._pace.moment is None or backlog.is_half_full):
            self._kick()
        return number

    # -- sending ------------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """Send now, or when the linger is over. The first event of a pause is never held back."""
        if self._busy or self._held or self._released or not self._backlog.events or self.closed is not None:
            return
        hurry = self._urgent or self._backlog.is_short or self._backlog.is_half_full
        if not hurry and self._pace.holds():
            return
        held = self._pace.sent()
        self._busy = True
        self._departures.join(self)
        if held:
            self._on_held(self)

    def depart(self) -> None:
        """The turn ends in which this was to be sent: what was queued in it goes together."""
        if self._released:
            return
        try:
            sent = self._send_at_once()
        except Exception:  # noqa: BLE001 - if it stays, the task meets it too, and tells who waits
            sent = False
        if not sent:
            self._spawn(self._send(), name=f"natsjobs append {self.stream_id}")

    def leave(self) -> None:
        """The linger is over: the moment that was joined has come."""
        self._pace.over()
        self._kick()
        self._on_held(self)

    def collect(self, linger: Linger) -> None:
        """Collect this long from now on; with a shorter linger what is held back leaves at once."""
        if self._pace.change(linger):
            self._kick()

    def release(self, why: Exception) -> None:
        """This replica closes: nothing is sent any more, and no timer is left; whoever waits here is told ``why``."""
        self._released = True
        self._pace.let_go()
        self._fail(why)

    def _send_at_once(self) -> bool:
        """Send the head of the queue without a task, which is the usual case; ``_on_answer`` goes on."""
        if self._pending is not None:
            return False
        events = self._group()
        if not events or not self._headroom.admits(sum(map(len, events))):
            return False
        self._sent = self._chain.send(self._bind(events), self._on_answer)
        return self._sent is not None

    def _group(self) -> list[bytes]:
        backlog, limit = self._backlog, self._link.max_payload - OVERHEAD
        if backlog.size + len(backlog.events) <= min(GROUP_BYTES, limit):
            return list(backlog.events)  # nearly always
        return wire.group(backlog.events, GROUP_BYTES, limit)

    def _bind(self, events: list[bytes]) -> bytes:
        """These events are one message from now on, until that is decided."""
        body = wire.events_body(self._chain.position.index, self._chain.writer, events)
        self._pending = (body, len(events))
        return body

    def _on_answer(self, seq: int) -> None:
        if self._released:
            return
        if not seq or self._pending is None:
            self._spawn(self._send(), name=f"natsjobs append {self.stream_id}")
            return
        self._sent = None
        (_, count), self._pending = self._pending, None
        index = self._chain.position.index
        self._chain.stored(seq, index + count)
        self._leave(count, index)
        self._next()

    async def _send(self) -> None:
        """Send, or find out what became of what was sent, with all the patience that this may need."""
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
        self._next()

    def _next(self) -> None:
        self._busy = False
        self._urgent = self._urgent and bool(self._backlog.events)
        self._backlog.drained()
        if self._error is None:
            self._kick()

    async def _store_group(self) -> None:
        """Store the head of the queue: one group, or one event in parts."""
        chain, queue = self._chain, self._backlog.events
        while True:
            if not queue:
                return  # closed before this task ran
            if self._pending is None:
                events = self._group()
                if not events:
                    await chain.append_parts(chain.log, "part", queue[0])
                    self._leave(1, chain.position.index - 1)
                    return
                await self._headroom.admit(sum(map(len, events)))
                self._bind(events)
            assert self._pending is not None
            body, count = self._pending
            index = chain.position.index
            sent, self._sent = self._sent, None
            try:
                stored = await chain.append(chain.log, body, after=index + count, sent=sent)
            except EventTooLargeError:
                stored = False  # the server takes less than it did when the group was built
            self._pending = None  # decided: only now may the group be built anew
            if stored:
                self._leave(count, index)
                return

    def _leave(self, count: int, index: int) -> None:
        self._backlog.leave(count, index)
        self.last_stored = time.monotonic()

    def _fail(self, error: Exception) -> None:
        """Tell everybody who waits; with nobody waiting the next call hears of it."""
        if not self._backlog.fail(error) and not isinstance(error, JobClosedError):
            self._error = anew(error)

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
            raise JobClosedError(self.stream_id, self.generation)
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
                    raise copy(self.fence(fenced.terminal)) from None
                finally:
                    self._busy = False
                    self._kick()
            self.refused = None

    async def _drain(self) -> None:
        """Everything queued goes first; while it cannot be stored, neither can the end."""
        while self.closed is None and not self.idle:
            future = self._backlog.expect_drained()
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
                self._backlog.clear()
                self._pending = self._sent = None
                self._fail(error)  # who has come to wait meanwhile
                # Nobody may wait for them any more; `refused` says that they are missing.
                self._backlog.stored = self._backlog.taken

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
            if (terminal := await chain.append_end(end, kind, data, first=first)) is not None:
                return terminal

    def fence(self, terminal: wire.Terminal | None) -> JobClosedError:
        """A terminal record was seen (``None``: the log is gone): tell everybody who waits, and the replica, once."""
        if self.closed is None:
            self.terminal = terminal
            status, reason = (terminal.status, terminal.reason) if terminal else (None, None)
            self.closed = JobClosedError(self.stream_id, self.generation, status, reason)
            self._pace.let_go()
            self._backlog.clear()
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
        return self.closed is not None and (self._backlog.stored < self._backlog.taken or self.refused is not None)

    @property
    def queued(self) -> int:
        """Events that are not stored yet."""
        return len(self._backlog.events)

    @property
    def idle(self) -> bool:
        """Nothing is queued or in flight."""
        return not (self._backlog.events or self._busy or self._backlog.is_short)
