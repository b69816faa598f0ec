"""The generations that this replica writes to, and how each of them ends.

Owns one ``Appender`` per generation, the list of runs that are owned here, and the one way a generation ends: the
terminal record first (it is the fence), then the job record, then everybody on this replica who asked to hear of it.
A crash in between is repaired by whoever notices; an end that could not be stored is kept and tried again (A4).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.appender import Appender
from natsjobs.engine.audience import Audience
from natsjobs.engine.context import Context
from natsjobs.engine.ends import EndRegistration, Ends
from natsjobs.engine.jobs import JobRecord, mark_ended, put_active, read_record, read_writable, write_record
from natsjobs.engine.ledger import Ledger
from natsjobs.engine.patience import Seldom, patiently
from natsjobs.engine.ports import StreamMissingError
from natsjobs.engine.records import ConflictError
from natsjobs.engine.terminals import End, Position, find_terminal, position_behind
from natsjobs.engine.writers import Writers
from natsjobs.errors import (
    EventTooLargeError,
    JobClosedError,
    NatsJobsError,
    NotOpenError,
    PermissionDeniedError,
    StreamFullError,
    UnavailableError,
)
from natsjobs.models import EndReason, EventType, Job
from natsjobs.tasks import in_steps
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)

_KEEP_CLOSED = 60.0  # a closed or idle writer is remembered at most this long, to answer late calls without a read
_MOST_OWING = 1024
_RETIRED = 10_000  # logs that wait for their removal; those that find no place leave with the stream's max_age
_REPAIR_AFTER = 2.0


class Run(msgspec.Struct):
    """A generation owned by this replica. Times are ``time.monotonic()``."""

    job: Job
    active_at: float
    touched_at: float
    by: object
    """The store through which it was created, and with which it ends; others may share the replica."""


class Runs:
    """All writers of one replica."""

    def __init__(self, context: Context, ledger: Ledger, audience: Audience) -> None:
        """Empty."""
        self._context, self.ledger, self._audience = context, ledger, audience
        self._ending = set[tuple[str, str]]()
        self.ends = Ends(context, self._written, self._ending)
        self.owned: dict[tuple[str, str], Run] = {}
        # Logs that this replica ended: (monotonic due time, id, generation).
        self.retired: deque[tuple[float, str, str]] = deque(maxlen=_RETIRED)
        self.over: dict[str, float] = {}  # stream id of a run that ended here -> when its live objects go, monotonic
        self.unstored: dict[tuple[str, str], End] = {}
        self._repairs: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._seldom = Seldom()
        self._writers = Writers()
        self._newest: dict[str, str] = {}
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._watched: dict[tuple[str, str], EndRegistration] = {}
        self.on_disowned: Callable[[str], None] = _ignore
        context.on_terminal = self.seen_end

    # -- owning -------------------------------------------------------------------------------------------------

    def own(self, job: Job, position: Position, by: object) -> None:
        """Register a run; before its record is written, so that nobody finds it without an owner (A4)."""
        key, now = (job.stream_id, job.generation), time.monotonic()
        self.owned[key] = Run(job, now, now, by)
        self._newest[job.stream_id] = job.generation
        self._writers.add(self._appender(*key, position), owned=True)

    def disown(self, stream_id: str, generation: str, terminal: wire.Terminal | None = None) -> None:
        """Forget a run that never became one, or has ended (``terminal``)."""
        owned = self.owned.pop((stream_id, generation), None)
        self._writers.disown(stream_id, generation)
        if hub.tracer is not None:
            with hub.tracing() as tracer:
                status = terminal.status.value if terminal is not None else None
                reason = terminal.reason.value if terminal is not None and terminal.reason is not None else None
                tracer.end_run((stream_id, generation), status, reason)
        if self._newest.get(stream_id) == generation:
            del self._newest[stream_id]
        if owned is not None:
            self.ends.deafen(stream_id, generation)
            self._audience.forget(stream_id, generation)
            self.on_disowned(stream_id)

    def _written(self, stream_id: str, generation: str) -> float:
        appender = self._writers.get(stream_id, generation)
        return appender.last_stored if appender is not None and appender.closed is None else 0.0

    def newest(self, stream_id: str) -> str | None:
        """The generation that is written to here, as far as is known the newest."""
        return self._newest.get(stream_id)

    def active(self, stream_id: str, generation: str) -> None:
        """Any call on a run is activity."""
        if (run := self.owned.get((stream_id, generation))) is not None:
            run.active_at = time.monotonic()

    def _appender(self, stream_id: str, generation: str, position: Position) -> Appender:
        def closed(terminal: wire.Terminal | None) -> None:
            self.seen_end(stream_id, generation, terminal)

        return Appender(
            self._context,
            stream_id=stream_id,
            generation=generation,
            position=position,
            on_closed=closed,
            on_held=self._lingered,
        )

    def _lingered(self, appender: Appender) -> None:
        if (appender.stream_id, appender.generation) in self.owned:
            self._audience.heed(appender)

    # -- writing ------------------------------------------------------------------------------------------------

    def local(self, stream_id: str, generation: str | None) -> Appender | None:
        """The writer that is already here, without touching the network."""
        wanted = generation or self._newest.get(stream_id)
        if wanted is None:
            return None
        found = self._writers.get(stream_id, wanted)
        return None if found is not None and generation is None and found.closed is not None else found

    async def writer(self, stream_id: str, generation: str | None) -> Appender:
        """The writer of a generation that must be the newest.

        Raises:
            JobNotFoundError: No such job.
            JobClosedError: It has ended, or another generation is the newest.
        """
        if (found := self.local(stream_id, generation)) is not None:
            return found
        record = await read_writable(self._context, stream_id, generation)
        appender = await self._open(stream_id, record.generation)
        if isinstance(appender, wire.Terminal):
            raise JobClosedError(stream_id, record.generation, appender.status, appender.reason)
        if generation is None and stream_id not in self._newest:
            # Remembered until its end is seen, so that emitting does not read the record per event.
            self._watched[stream_id, record.generation] = await self.ends.add(
                stream_id, record.generation, lambda _: None
            )
            if appender.closed is None:
                self._newest[stream_id] = record.generation
        return appender

    async def _open(self, stream_id: str, generation: str) -> Appender | wire.Terminal:
        """A writer behind the newest message of the log, or how it ended. Raises JobClosedError: no log."""
        key = (stream_id, generation)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (found := self._writers.get(*key)) is not None:
                return found.terminal or found
            context = self._context
            scope, end = context.subjects.scope(*key), context.subjects.end(*key)
            try:
                newest = await patiently(lambda: context.link.events.last(scope), limit=context.config.timing.give_up)
            except StreamMissingError:
                newest = None
            if newest is None:
                raise JobClosedError(stream_id, generation)
            if (terminal := await find_terminal(context.link, end, newest)) is not None:
                return terminal
            position = await position_behind(context.link, scope, newest, Position(0, 0))
            if position is None:
                raise JobClosedError(stream_id, generation)
            appender = self._appender(stream_id, generation, position)
            self._writers.add(appender, owned=key in self.owned)
            return appender

    async def terminal_of(self, stream_id: str, generation: str) -> wire.Terminal | None:
        """How a generation ended, by its log; ``None``: it has not, or nobody knows any more."""
        context, end = self._context, self._context.subjects.end(stream_id, generation)
        newest = await patiently(lambda: context.link.events.last(end), limit=context.patience)
        return None if newest is None else await find_terminal(context.link, end, newest)

    async def flush(self, stream_id: str, generation: str | None) -> None:
        """Wait for what was queued here; record the usage that was listed here."""
        for appender in self._writers.of(stream_id):
            written = appender.generation
            if generation not in {None, written}:
                continue
            if generation is None and appender.closed is not None and written != self._newest.get(stream_id):
                continue  # an earlier turn that is over
            self.active(stream_id, written)
            await self.ledger.record_listed(stream_id, written)
            await appender.flush()

    # -- ending -------------------------------------------------------------------------------------------------

    async def end(self, stream_id: str, generation: str, end: End) -> tuple[wire.Terminal, JobRecord | None]:
        """End a generation; the terminal record that stands, and the record if it is still this generation's.

        Raises:
            JobClosedError: Its log is gone.
            UnavailableError: Not stored in time; it is kept and stored later.
            StreamFullError, PermissionDeniedError: Either that, or events were refused, so that the generation has
                ended as an error instead.
        """
        key = (stream_id, generation)
        try:
            if key in self.owned:
                with contextlib.suppress(UnavailableError):
                    await self.ledger.record_listed(stream_id, generation)
                self._ending.add(key)  # its acknowledgement says more than what is heard of an end meanwhile
            appender = await self._open(stream_id, generation)
            terminal = appender if isinstance(appender, wire.Terminal) else await appender.finish(end)
        except (UnavailableError, EventTooLargeError, asyncio.CancelledError) as error:
            denied = isinstance(error, PermissionDeniedError) and not error.outcome_unknown
            if key in self.owned or not denied:  # a denied end of somebody else's job is his who asked to ask for again
                self.unstored[key] = end  # begun, so it may be in the log already: it is seen through
            raise
        except JobClosedError:
            # Its log is gone, so nobody can read it or write to it; only the record may still say "running".
            gone = wire.Terminal(EventType(end.kind), 0, 0, "", end.reason, None, end.data)
            await mark_ended(self._context, stream_id, generation, gone)
            raise
        finally:
            self._ending.discard(key)
        self.unstored.pop(key, None)
        self.seen_end(stream_id, generation, terminal)
        if isinstance(appender, Appender) and terminal.writer == appender.writer:
            self.retired.append((time.monotonic() + self._context.config.retention.finished, *key))
            if terminal.request == end.request:
                hub.add(measures.JOBS_ENDED, 1, terminal.status.value, terminal.reason.value if terminal.reason else "")
            if appender.late_end:
                await self._context.link.bus.publish(self._context.subjects.wake(stream_id), b"{}")
        fields = end.fields if terminal.request == end.request else {}
        record = await self._mark_ended(stream_id, generation, terminal, fields)
        refused = appender.refused if isinstance(appender, Appender) else None
        if refused is not None and end.kind == "done" and terminal.request == end.request:
            raise copy(refused)
        return terminal, record

    async def _mark_ended(
        self, stream_id: str, generation: str, terminal: wire.Terminal, fields: Mapping[str, Any]
    ) -> JobRecord | None:
        """As ``jobs.mark_ended``; a refused record without ``fields`` waits for a sweep: the log has decided."""
        try:
            record = await mark_ended(self._context, stream_id, generation, terminal, fields)
        except (StreamFullError, PermissionDeniedError) as error:
            _log.warning("the record of %s does not say yet that it ended: %s; a sweep repairs it", stream_id, error)
            if fields:
                raise  # of these no sweep knows: whoever gave them can set them later
            return None
        if (repair := self._repairs.pop((stream_id, generation), None)) is not None:
            repair.cancel()
        return record

    def seen_end(self, stream_id: str, generation: str, terminal: wire.Terminal | None) -> None:
        """The terminal record was seen, whoever wrote it (``None``: the log is gone)."""
        key = (stream_id, generation)
        if (appender := self._writers.get(*key)) is not None and appender.closed is None:
            appender.fence(terminal)
            return  # which calls back here
        concerned = key in self.owned or key in self.ends
        if key in self.owned:
            self.over.pop(stream_id, None)  # so that the order is that of the times
            self.over[stream_id] = time.monotonic() + self._context.config.retention.finished
        self.disown(stream_id, generation, terminal)
        self.ends.fire(stream_id, generation, terminal)
        if terminal is not None and concerned and key not in self._repairs:
            after = _REPAIR_AFTER * random.uniform(1, 1.5)  # noqa: S311 - replicas see an end together
            self._repairs[key] = asyncio.get_running_loop().call_later(after, self._begin_repair, *key, terminal)

    def _begin_repair(self, stream_id: str, generation: str, terminal: wire.Terminal) -> None:
        self._repairs.pop((stream_id, generation), None)
        self._context.spawn(self._repair(stream_id, generation, terminal), f"natsjobs repair {stream_id}")

    async def _repair(self, stream_id: str, generation: str, terminal: wire.Terminal) -> None:
        """Whoever wrote the end may have died before the record said so."""
        try:
            await mark_ended(self._context, stream_id, generation, terminal)
        except NatsJobsError as error:
            _log.info(
                "the record of %s does not say yet that it ended: %s; the next sweep repairs it", stream_id, error
            )

    # -- upkeep -------------------------------------------------------------------------------------------------

    async def retry_unstored(self) -> None:
        """Try the ends again that NATS was away for."""
        for (stream_id, generation), end in list(self.unstored.items()):
            try:
                await self.end(stream_id, generation, end)
            except JobClosedError:
                self.unstored.pop((stream_id, generation), None)
            except PermissionDeniedError as error:  # of this one, perhaps for a while; the others need not wait for it
                if self._seldom.may_say((stream_id, generation)):
                    _log.warning("the end of %s is not stored, it is tried again and again: %s", stream_id, error)
            except UnavailableError:
                return
            except NatsJobsError as error:
                if self._seldom.may_say((stream_id, generation)):
                    _log.warning("the end of %s cannot be stored, it is tried again and again: %s", stream_id, error)

    async def forget_idle(self) -> None:
        """Drop writers nobody used for a while: closed ones, and those of generations owned elsewhere."""
        horizon = time.monotonic() - min(_KEEP_CLOSED, self._context.config.retention.finished)
        owing = 0
        for step in in_steps(reversed(self._writers.others)):
            for appender in step:
                key = (appender.stream_id, appender.generation)
                if key in self.unstored or self._writers.get(*key) is not appender:
                    continue
                if appender.owes:
                    owing += 1
                    if owing <= _MOST_OWING:
                        continue  # the next call on it is to hear that its events were not stored
                if appender.idle and appender.last_stored < horizon:
                    self._writers.remove(appender)
                    if self._newest.get(key[0]) == key[1]:
                        del self._newest[key[0]]
                    if (watch := self._watched.pop(key, None)) is not None:
                        await watch.dispose()
            await asyncio.sleep(0)

    async def touch(self, run: Run) -> None:
        """Extend a running record's backstop and say when it was active."""
        record = await read_record(self._context, run.job.stream_id)
        if record is None or record.generation != run.job.generation or record.status.is_terminal:
            return
        idle = time.monotonic() - run.active_at
        with contextlib.suppress(ConflictError):
            changes = {"lastActiveAt": int((time.time() - idle) * 1000)}
            await write_record(self._context, record, changes, limit=None)
            await put_active(self._context, run.job)  # its TTL is the same, and must not lapse before
            run.touched_at = time.monotonic()

    @property
    def queued(self) -> int:
        """Events that were emitted here and are not stored yet. May be asked for from another thread."""
        return sum(writer.queued for writer in self._writers)

    async def drain(self) -> None:
        """Store what is queued here, also for runs owned elsewhere; what cannot be is told in the log."""
        busy = [writer for writer in self._writers if writer.closed is None and not writer.idle]
        if busy and self._context.link.connected_since is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._context.config.timing.request):
                    await asyncio.gather(*(writer.flush() for writer in busy), return_exceptions=True)
        for writer in busy:
            if not writer.idle or writer.owes:
                _log.warning("events of %s that were emitted here were not stored before closing", writer.stream_id)

    def close(self) -> None:
        """Forget everything; nothing is written."""
        closed = NotOpenError("the job store was closed before these events were stored; open another one")
        for writer in self._writers:
            writer.release(closed)
        for key in list(self.owned):
            self.disown(*key)
        for repair in self._repairs.values():
            repair.cancel()
        self._repairs.clear()
        self._newest.clear()
        self._watched.clear()
        self._writers.clear()
        self._locks.clear()
        self.retired.clear()
        self.over.clear()


def _ignore(stream_id: str) -> None:
    """Nobody asked yet."""
    del stream_id


def lost_end(text: str, reason: EndReason) -> End:
    """The terminal error record of a run that could not speak for itself."""
    return End("error", reason, wire.random_token(), msgspec.json.encode(text))
