"""What happens by itself: inactivity, retention, and the sweep that repairs what nobody saw.

A running job is ended by a terminal record, never by a TTL (A8). Nothing is removed by stream id: generations are
listed first, then the record is read, then those are removed that it does not name and that are old enough not to
belong to a create under way. Logs leave one at a time with pauses, because removal holds the stream (A9).
No decision compares two machines' clocks: ages are differences of the server's own times (C6).

What it looks at (``survey``) and what it goes through comes in small steps, each followed by a turn of the loop: among
ten thousand jobs a sweep takes a second, and no event waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from functools import partial

from natsjobs.engine import wire
from natsjobs.engine.content_state import ContentState
from natsjobs.engine.context import Context
from natsjobs.engine.creation import remove_log
from natsjobs.engine.jobs import active_key, mark_ended, put_active, read_record
from natsjobs.engine.liveness import Liveness
from natsjobs.engine.patience import Seldom, patiently
from natsjobs.engine.ports import StreamMissingError
from natsjobs.engine.records import ConflictError, Slot
from natsjobs.engine.runs import Run, Runs, lost_end
from natsjobs.engine.survey import Seen, Survey, generation_of
from natsjobs.engine.terminals import find_terminal
from natsjobs.errors import JobClosedError, NatsJobsError, PermissionDeniedError, UnavailableError
from natsjobs.models import EndReason
from natsjobs.tasks import in_steps

_log = logging.getLogger(__name__)

_PAUSE_FACTOR = 10  # after a removal wait ten times as long as it took (A9)
_RETIRE_EVERY = 0.5
_LOOKS = 64
"""A run is looked at this many times within the inactivity limit, or at every tick if these are fewer."""


class Upkeep:
    """Background work of one replica."""

    def __init__(self, context: Context, runs: Runs, liveness: Liveness, content: ContentState) -> None:
        """Nothing happens before ``start``."""
        self._seldom = Seldom()
        self._gone: set[tuple[str, str]] = set()  # logs that the sweep knows to be tombstones
        self._look_at = -math.inf  # when the runs are looked at next, monotonic
        self._survey: Survey | None = None  # of the last sweep
        self._nameless: set[str] = set()  # stream ids with live objects and no record, at the last sweep
        self._context, self._runs, self._liveness, self._content = context, runs, liveness, content

    def start(self) -> None:
        """Begin; the context's tasks end it."""
        self._context.spawn(self._tick_for_ever(), "natsjobs upkeep")
        self._context.spawn(self._sweep_for_ever(), "natsjobs sweep")
        self._context.spawn(self._retire_for_ever(), "natsjobs retention")

    async def _tick_for_ever(self) -> None:
        limit = self._context.config.retention.running
        interval = min(self._context.config.timing.renew, limit / 4 if limit > 0 else 3.0)
        while True:
            await asyncio.sleep(max(0.05, interval))
            try:
                await self._tick()
            except NatsJobsError as error:
                _log.info("upkeep: %s; trying again", error)

    async def _tick(self) -> None:
        await self._runs.retry_unstored()
        await self._runs.forget_idle()
        self._forget_live()
        limit, now = self._context.config.retention.running, time.monotonic()
        if limit <= 0 or now < self._look_at:
            return
        for step in in_steps(self._runs.owned.items()):
            for key, run in step:
                try:
                    if now - run.active_at > limit:
                        if key not in self._runs.unstored:  # else its end is tried again and again already
                            await self._expire(run)
                    elif run.active_at > run.touched_at and now - run.touched_at > limit / 4:
                        await self._runs.touch(run)
                except PermissionDeniedError as error:  # of this one; the others need not wait for it
                    if self._seldom.may_say(key):
                        _log.warning("job %s, which has no activity or needs to be noted as active: %s", key[0], error)
            await asyncio.sleep(0)
        self._look_at = now + limit / _LOOKS

    def _forget_live(self) -> None:
        """Lists and graphs that callers gave us go when the record goes; else a process would hold them all."""
        now = time.monotonic()
        while self._runs.over and (first := next(iter(self._runs.over.items())))[1] <= now:
            del self._runs.over[first[0]]
            if self._runs.local(first[0], None) is None:  # else a later turn has its own
                self._content.forget(first[0])
                self._runs.ledger.forget(first[0])

    async def _expire(self, run: Run) -> None:
        """Inactive as far as this replica knows; others may have written, so the log is asked first."""
        stream_id, generation = run.job.stream_id, run.job.generation
        idle = await self._idle_time(stream_id, generation)
        limit = self._context.config.retention.running
        if idle is not None and idle < limit:
            run.active_at = time.monotonic() - idle
            return
        _log.warning("job %s had no activity for %.0f s and ends", stream_id, limit)
        await self._end_expired(stream_id, generation)

    async def _idle_time(self, stream_id: str, generation: str) -> float | None:
        events = self._context.link.events
        scope = self._context.subjects.scope(stream_id, generation)
        newest = await patiently(lambda: events.last(scope), limit=self._context.patience)
        if newest is None:
            return None
        state = await patiently(events.state, limit=self._context.patience)
        return max(0.0, state.now - newest.time)

    async def _end_expired(self, stream_id: str, generation: str) -> bool:
        end = lost_end("the job had no activity for too long", EndReason.EXPIRED)
        try:
            terminal, _ = await self._runs.end(stream_id, generation, end)
        except JobClosedError:
            return True  # its log was gone, and now the record says so
        return terminal.request == end.request

    async def _retire_for_ever(self) -> None:
        """Remove the logs whose retention is over, of the generations that this replica ended.

        Apart from the tick, which running jobs depend on: after many jobs this takes minutes.
        """
        retired = self._runs.retired
        while True:
            if not retired or retired[0][0] > time.monotonic():
                await asyncio.sleep(_RETIRE_EVERY)
                continue
            _, stream_id, generation = retired.popleft()
            began, removed = time.monotonic(), True
            try:
                removed = await remove_log(self._context, stream_id, generation)
            except NatsJobsError as error:
                _log.info("the log of %s stays until max_age: %s", stream_id, error)
            if removed:
                await asyncio.sleep((time.monotonic() - began) * _PAUSE_FACTOR)

    async def _sweep_for_ever(self) -> None:
        interval = self._context.config.timing.sweep
        await asyncio.sleep(interval * random.uniform(0.02, 0.1))  # noqa: S311 - replicas start together
        while True:
            try:
                await self.sweep()
            except NatsJobsError as error:
                _log.info("sweep: %s; the next one tries again", error)
            await asyncio.sleep(interval * random.uniform(0.8, 1.2))  # noqa: S311

    # -- the sweep ----------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Repair everything that can be seen to be wrong; how many jobs and stale entries were ended or removed."""
        context, subjects = self._context, self._context.subjects
        try:
            logs = await patiently(lambda: context.link.events.subjects(subjects.all_events), limit=context.patience)
        except StreamMissingError as error:
            raise UnavailableError(f"the events stream does not exist: {error}; run `natsjobs setup`") from None
        # Whoever sweeps meanwhile begins anew, and so does the next one if this one fails.
        survey, self._survey = self._survey or Survey(context), None
        await survey.look()
        alive = await self._liveness.look()
        now = (await patiently(context.link.records.state, limit=context.patience)).now
        over, nameless = await self._match(logs, survey.records)
        ended = 0
        for step in in_steps(survey.running):
            for record in step:
                try:
                    ended += await self._sweep_running(record, now, is_over=record.run in over)
                except NatsJobsError as error:
                    _log.warning("the sweep passes over %s: %s", record.stream_id, error)  # one job holds up no other
            await asyncio.sleep(0)
        ended += await self._sweep_owners(survey.running, alive)
        ended += await self._sweep_index(survey)
        await self._sweep_missing_index(survey, now)
        await self._sweep_logs(nameless)
        self._sweep_live(survey.records)
        self._survey = survey
        return ended

    async def _match(
        self, logs: dict[str, int], records: dict[str, Seen]
    ) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """Running generations that have an end in their log, and logs that no record names."""
        over, nameless = set[tuple[str, str]](), set[tuple[str, str]]()
        split = self._context.subjects.split_event
        for step in in_steps(logs):
            for name in step:
                if (parts := split(name)) is None:
                    continue
                record = records.get(parts[0])
                if record is None or record.generation != parts[1]:
                    nameless.add(parts[:2])
                elif parts[2] == "end" and not record.ended:
                    over.add(parts[:2])
            await asyncio.sleep(0)
        return over, nameless

    def _sweep_live(self, records: dict[str, Seen]) -> None:
        """Lists and graphs of jobs that nobody has any more, or that never came to be; owned here or not."""
        nameless = {name for name in self._content.named | self._runs.ledger.named if name not in records}
        for stream_id in nameless & self._nameless:  # one look would take a list that was set before its job began
            if self._runs.local(stream_id, None) is not None:
                continue  # it has begun since the records were read
            self._content.forget(stream_id)
            self._runs.ledger.forget(stream_id)
        self._nameless = nameless

    async def _sweep_running(self, record: Seen, now: float, *, is_over: bool) -> int:
        """A record that says "running" although its log has ended, or has been silent for too long."""
        limit = self._context.config.retention.running
        if is_over:
            end = self._context.subjects.end(record.stream_id, record.generation)
            newest = await patiently(lambda: self._context.link.events.last(end), limit=self._context.patience)
            terminal = await find_terminal(self._context.link, end, newest) if newest is not None else None
            if terminal is not None:
                return int(await mark_ended(self._context, record.stream_id, record.generation, terminal) is not None)
        if limit > 0 and now - record.time > limit and record.run not in self._runs.owned:
            idle = await self._idle_time(record.stream_id, record.generation)
            if (idle is None or idle > limit) and await self._is_as_seen(record):
                return int(await self._end_expired(record.stream_id, record.generation))
        return 0

    async def _is_as_seen(self, record: Seen) -> bool:
        """Whether a record has not changed since it was looked at: activity is noted there, too."""
        current = await read_record(self._context, record.stream_id)
        return current is not None and current.revision == record.seq

    async def _sweep_owners(self, running: list[Seen], alive: set[str]) -> int:
        """Owners without a lease are judged; runs that a living owner does not have are over (A4)."""
        by_owner, own = dict[str, list[tuple[str, str]]](), self._context.replica_id
        for step in in_steps(running):
            for record in step:
                if record.owner is not None and (record.owner != own or record.run not in self._runs.owned):
                    by_owner.setdefault(record.owner, []).append(record.run)
            await asyncio.sleep(0)
        ended = 0
        for owner, runs in by_owner.items():
            if owner == own:
                missing = [run for run in runs if run not in self._runs.owned]  # by now
            elif owner in alive:
                missing = await self._liveness.missing_runs(owner, runs) or []
            else:
                self._liveness.suspect(owner)
                continue
            ended += await self._liveness.end_lost(missing)
        return ended

    async def _sweep_index(self, survey: Survey) -> int:
        """Index entries whose job is gone or has ended."""
        dropped = 0
        for slot in survey.odd:
            parts = self._context.subjects.split_record(slot.key)
            if parts is None or len(parts) != 3 or slot.key in survey.unlisted:
                continue
            record = await read_record(self._context, parts[2])
            if record is None or record.status.is_terminal or active_key(self._context, record.job) != slot.key:
                dropped += await self._drop_entry(slot)
        return dropped

    async def _drop_entry(self, slot: Slot) -> int:
        try:
            await self._context.records.remove(slot.key, expect=slot.revision)
        except ConflictError:
            return 0
        return 1

    async def _sweep_missing_index(self, survey: Survey, now: float) -> None:
        """Running jobs that no list shows as they are: a creator died between record and index (B5)."""
        listed = {slot.key: slot for slot in survey.odd}
        for key, record in survey.unlisted.items():
            current = await read_record(self._context, record.stream_id)
            if current is not None and current.generation == record.generation and not current.status.is_terminal:
                # An entry of a later generation is that of a create under way, or of one that died or lost.
                slot = listed.get(key)
                stale = slot is not None and now - slot.time > self._context.config.retention.orphan
                named = generation_of(slot) if slot is not None and stale else ""
                await put_active(self._context, current.job, over=named)

    async def _sweep_logs(self, nameless: set[tuple[str, str]]) -> None:
        """Logs that no record names: a create that died, a generation that was replaced, a job that expired."""
        subjects, events = self._context.subjects, self._context.link.events
        self._gone &= nameless
        now = (await patiently(events.state, limit=self._context.patience)).now
        for stream_id, generation in nameless - self._gone:
            newest = await patiently(
                partial(events.last, subjects.scope(stream_id, generation)), limit=self._context.patience
            )
            if newest is None or now - newest.time < self._context.config.retention.orphan:
                continue
            entry = wire.decode(newest.body)
            if entry is not None and entry.type == "gone":
                self._gone.add((stream_id, generation))  # its tombstone goes by itself
                continue
            record = await read_record(self._context, stream_id)  # again: the list is older than the log may be
            if (record is not None and record.generation == generation) or (stream_id, generation) in self._runs.owned:
                continue
            began = time.monotonic()
            try:
                if await self._is_open(stream_id, generation):
                    await self._end_expired(stream_id, generation)  # who reads it gets an end; it is removed later
                else:
                    await remove_log(self._context, stream_id, generation)
            except PermissionDeniedError:
                return  # this replica is a gateway: a worker removes them
            except NatsJobsError as error:
                _log.info("an orphaned log of %s stays: %s", stream_id, error)
            await asyncio.sleep((time.monotonic() - began) * _PAUSE_FACTOR)

    async def _is_open(self, stream_id: str, generation: str) -> bool:
        """Whether a log has events and no end: its record lapsed unseen (A8). With nothing in it, it was no turn."""
        context, subjects = self._context, self._context.subjects
        log, end = subjects.log(stream_id, generation), subjects.end(stream_id, generation)
        newest = await patiently(lambda: context.link.events.last(log), limit=context.patience)
        entry = wire.decode(newest.body) if newest is not None else None
        if newest is None or entry is None or entry.type in {"open", "gone"}:
            return False
        last = await patiently(lambda: context.link.events.last(end), limit=context.patience)
        return last is None or await find_terminal(context.link, end, last) is None
