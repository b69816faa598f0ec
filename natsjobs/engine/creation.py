"""How a generation begins and how a job is removed: the two operations that change which log a record names.

Begin: end the running predecessor, append the open record of the new log, listen for its end and for aborts, register
the run, then change the record by compare-and-set (A6: log first, record second, so that a crash in between leaves an
orphan that a sweep can see, never a record that refers to nothing). Two steps, each one round trip: what is there is
read while the log is opened, for a log that no record names is nothing to anybody; then record and index are written,
of which the record decides: a create that loses it takes its index entry back, a sweep does it for one that dies.
Remove: end it, then record, index, steps, then tombstone the log (A10).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.aborts import Aborts
from natsjobs.engine.content_state import ContentState
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import (
    LATEST,
    JobRecord,
    drop_active,
    job_key,
    merge,
    put_active,
    read_record,
    record_of,
    running_ttl,
)
from natsjobs.engine.ledger import Ledger
from natsjobs.engine.patience import FINAL, Backoff, patiently
from natsjobs.engine.ports import StreamMissingError, WrongSequenceError
from natsjobs.engine.records import ConflictError, Slot
from natsjobs.engine.runs import Runs
from natsjobs.engine.terminals import End, Position
from natsjobs.errors import (
    JobClosedError,
    JobRunningError,
    NatsJobsError,
    PermissionDeniedError,
    UnavailableError,
)
from natsjobs.interfaces import IfRunning
from natsjobs.models import EndReason, Job
from natsjobs.tasks import together
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)


class _Log(msgspec.Struct, frozen=True):
    """A log that was opened for a new generation, and that no record names yet."""

    stream_id: str
    generation: str
    created_at: int
    seq: int


class _There(msgspec.Struct):
    """What a create has found: record and index entry as they are, the log that was opened meanwhile.

    ``before``: when the predecessor was created.
    """

    slot: Slot
    index: Slot
    log: _Log | None = None
    before: int = 0


class Creation:
    """Creates and removes jobs for one replica."""

    def __init__(self, context: Context, runs: Runs, content: ContentState, ledger: Ledger, aborts: Aborts) -> None:
        """No I/O."""
        self._context, self._runs, self._content, self._ledger = context, runs, content, ledger
        self._aborts = aborts
        self._created_at = 0

    # -- begin --------------------------------------------------------------------------------------------------

    async def create(
        self, fixed: Mapping[str, Any], fields: Mapping[str, Any], if_running: IfRunning, by: object
    ) -> Job:
        """Make a new generation. ``fixed``: ids, in wire form; ``fields``: checked fields; ``by``: the store."""
        context, stream_id = self._context, str(fixed["streamId"])
        merge({}, {**fixed, **fields}, limit=context.record_bytes)  # before anything is sent
        await context.headroom.check_create()  # before the running predecessor is ended for nothing
        before = 0
        while True:
            there = await self._look(stream_id, str(fixed["userId"]), before, if_running)
            log = await self._log_for(there, stream_id, if_running)
            before = max(before, there.before)
            if log is None:
                continue
            data, job = self._record(log, fixed, fields)
            if await self._begin(there, data, log, job, by):
                hub.add(measures.JOBS_STARTED)
                self._content.forget(stream_id)
                self._ledger.forget(stream_id)
                return job

    async def _look(self, stream_id: str, user_id: str, before: int, if_running: IfRunning) -> _There:
        """What there is; a log is opened at the same time, unless the create may be refused."""
        context, records = self._context, self._context.records
        key, entry = job_key(context, stream_id), context.subjects.record("active", user_id, stream_id)
        if if_running == "reject":  # a log for every refused create would be a way to fill the stream
            slot, index = await together(records.read(key), records.read(entry))
            return _There(slot, index)
        opened: list[_Log] = []

        async def open_log() -> None:
            opened.append(await self._open_log(stream_id, before))

        try:
            slot, index, _ = await together(records.read(key), records.read(entry), open_log())
        except BaseException:
            for log in opened:
                self._drop(log)
            raise
        return _There(slot, index, opened[0])

    async def _log_for(self, there: _There, stream_id: str, if_running: IfRunning) -> _Log | None:
        """The log of the new generation, its predecessor having ended; ``None``: look again."""
        log: _Log | None = None
        try:
            if await self._make_room(there, if_running):
                log = there.log or await self._open_log(stream_id, there.before)
                if log.created_at > there.before or log.created_at == LATEST:  # else the predecessor's clock is ahead
                    return log
        except BaseException:
            self._drop(log or there.log)
            raise
        self._drop(log or there.log)
        return None

    async def _make_room(self, there: _There, if_running: IfRunning) -> bool:
        """End the running predecessor; false: yet another create came between."""
        previous = record_of(there.slot)
        if previous is not None and not previous.status.is_terminal:
            await self._check_running(previous, if_running)
            # Of a crash from here on nothing may be left but what the record names (A6): first its end, then a log.
            log, there.log = there.log, None
            self._drop(log)
            await self._replace(previous)
            there.slot = await self._context.records.read(there.slot.key)
            previous = record_of(there.slot)
        there.before = previous.job.created_at if previous else _left_at(there.slot)
        return previous is None or previous.status.is_terminal

    async def _check_running(self, record: JobRecord, if_running: IfRunning) -> None:
        """Whether a job that the record calls running may be replaced, or its log has its end already."""
        if if_running == "reject" and await self._runs.terminal_of(record.stream_id, record.generation) is None:
            raise JobRunningError(record.job)

    async def _replace(self, previous: JobRecord) -> None:
        end = End("aborted", EndReason.REPLACED, wire.random_token(), b"null")
        try:
            await self._runs.end(previous.stream_id, previous.generation, end)
        except JobClosedError:
            _log.info("the log of %s was gone before it was replaced", previous.stream_id)

    def _record(self, log: _Log, fixed: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[dict[str, Any], Job]:
        try:
            data = merge(
                {},
                {
                    "status": "running",
                    "streamId": log.stream_id,
                    "generation": log.generation,
                    "userId": fixed["userId"],
                    "owner": self._context.replica_id,
                    "createdAt": log.created_at,
                    "lastActiveAt": log.created_at,
                    **fixed,
                    **fields,
                },
                limit=self._context.record_bytes,
            )
            return data, msgspec.convert(data, Job)
        except BaseException:
            self._drop(log)
            raise

    async def _begin(self, there: _There, data: dict[str, Any], log: _Log, job: Job, by: object) -> bool:
        """Own the run, change record and index; false: another create changed the record first."""
        context, run = self._context, (job.stream_id, job.generation)
        self._runs.own(job, Position(log.seq, 0), by)
        if hub.tracer is not None:
            with hub.tracing() as tracer:
                if trace := tracer.start_run(run, data):
                    data["trace"] = trace
        try:
            await together(
                context.records.write(there.slot.key, data, expect=there.slot.revision, ttl=running_ttl(context)),
                put_active(context, job, there.index),
            )
        except BaseException as error:
            self._runs.disown(*run)
            if isinstance(error, ConflictError):
                context.spawn(self._lost(log, job, there.index.key), "natsjobs lost create")
                return False
            context.spawn(self._undo(job), "natsjobs undo create")
            raise
        return True

    async def _lost(self, log: _Log, job: Job, entry: str) -> None:
        """Another create has won: nothing of this one is left, and the index says what the record says."""
        await self._remove_quietly(log)
        try:
            slot = await self._context.records.read(entry)
            if slot.value is not None and slot.value.get("generation") == job.generation:
                record = await read_record(self._context, job.stream_id)
                if record is None or record.status.is_terminal or record.job.user_id != job.user_id:
                    await self._context.records.remove(entry, expect=slot.revision)
                else:
                    await put_active(self._context, record.job, slot, over=job.generation)
        except (NatsJobsError, ConflictError) as error:
            _log.info("the index entry of a create that lost stays until the next sweep: %s", error)

    async def _open_log(self, stream_id: str, before: int) -> _Log:
        """A log for a generation that was created later than ``before``; its end and aborts are listened for."""
        writer = wire.random_token()
        # Larger than any this replica gave out, so that "newest first" is the order of calls within a millisecond. The
        # predecessor's may come from a clock that is wrong: it moves this job, and not all that are created after it.
        self._created_at = max(int(time.time() * 1000), self._created_at + 1)
        created_at = min(max(self._created_at, before + 1), LATEST)
        generation = wire.generation_id(created_at)
        try:
            # Sent before the record is, so an abort or an end that anybody can write is heard; nothing waits for that.
            await self._aborts.listen(stream_id)
            await self._runs.ends.listen(stream_id, generation)
            return _Log(stream_id, generation, created_at, await self._append_open(stream_id, generation, writer))
        except BaseException:
            self._deafen(stream_id, generation)
            raise

    def _deafen(self, stream_id: str, generation: str) -> None:
        self._runs.ends.deafen(stream_id, generation)
        self._aborts.deafen(stream_id)

    async def _append_open(self, stream_id: str, generation: str, writer: str) -> int:
        context = self._context
        body = wire.open_body(context.replica_id, writer)
        subject, scope = context.subjects.log(stream_id, generation), context.subjects.scope(stream_id, generation)
        backoff = Backoff(context.config.timing.give_up)
        while True:
            try:
                return await context.link.events.append(subject, body, expect=0, scope=scope)
            except WrongSequenceError as refusal:
                # The generation id is random: whatever is there is our own open record, or still in flight.
                if refusal.last:
                    return refusal.last
            except StreamMissingError as error:
                if backoff.expired:
                    raise UnavailableError(f"the events stream does not exist: {error}") from None
            except UnavailableError as error:
                if backoff.expired or isinstance(error, FINAL):
                    raise
            await backoff.pause()

    def _drop(self, log: _Log | None) -> None:
        """No record will name it."""
        if log is None:
            return
        self._deafen(log.stream_id, log.generation)
        self._context.spawn(self._remove_quietly(log), "natsjobs orphan")

    async def _remove_quietly(self, log: _Log) -> None:
        try:
            await remove_log(self._context, log.stream_id, log.generation)
        except NatsJobsError as error:
            _log.info("the log of a create that lost stays until the next sweep: %s", error)

    async def _undo(self, job: Job) -> None:
        """A create that failed or was cancelled leaves no running job; its record may have been written anyway."""
        end = End("error", EndReason.CANCELLED, wire.random_token(), b'"the job was not started"')
        try:
            await self._runs.end(job.stream_id, job.generation, end)
        except NatsJobsError as error:
            _log.info("a create that failed left generation %s; the next sweep ends it: %s", job.generation, error)

    # -- remove -------------------------------------------------------------------------------------------------

    async def delete(self, stream_id: str, generation: str | None) -> bool:
        """Remove a job and everything of it but its unclaimed usage."""
        context = self._context
        while True:
            record = await read_record(context, stream_id)
            if record is None or (generation is not None and record.generation != generation):
                return False
            generation = record.generation
            if not record.status.is_terminal:
                end = End("aborted", EndReason.DELETED, wire.random_token(), b"null")
                try:
                    _, ended = await self._runs.end(stream_id, generation, end)
                except JobClosedError:
                    ended = None
                record = ended or await read_record(context, stream_id)
                if record is None or record.generation != generation:
                    return False
            await drop_active(context, record)
            try:
                await context.records.remove(
                    job_key(context, stream_id),
                    expect=record.revision,
                    left={"createdAt": record.job.created_at},
                    ttl=context.config.retention.tombstone,
                )
            except ConflictError:
                continue
            break
        self._content.forget(stream_id)
        self._ledger.forget(stream_id)
        try:
            await self._content.drop_steps(stream_id, generation)
            await remove_log(context, stream_id, generation, keep_end=True)
        except PermissionDeniedError as error:  # a gateway's: nothing refers to them, and a worker's sweep takes them
            _log.info("what is left of the deleted job %s stays until the next sweep: %s", stream_id, error)
        return True


def _left_at(slot: Slot) -> int:
    """When the removed job was created, as its removal noted."""
    left = (slot.left or {}).get("createdAt")
    return left if isinstance(left, int) and 0 <= left <= LATEST else 0


async def remove_log(context: Context, stream_id: str, generation: str, *, keep_end: bool = False) -> bool:
    """Replace a log by a tombstone that goes by itself (A10); whether there was anything to replace.

    ``keep_end`` leaves the terminal record for readers that are just being told of it; the sweep takes it later.
    """
    removed = False
    subjects, events = context.subjects, context.link.events
    scope = subjects.scope(stream_id, generation)
    gone, ttl = wire.tombstone_body("gone", 0, wire.random_token()), context.config.retention.tombstone
    for subject in (subjects.log(stream_id, generation), subjects.end(stream_id, generation)):
        if keep_end and subject.endswith(".end"):
            break
        while True:
            there = await patiently(partial(events.last, subject), limit=context.patience)
            newest = await patiently(lambda: events.last(scope), limit=context.patience)
            entry = wire.decode(there.body) if there is not None else None
            if newest is None:
                return removed
            if there is None or (entry is not None and entry.type == "gone"):
                break
            try:
                await events.append(subject, gone, expect=newest.seq, scope=scope, ttl=ttl, rollup=True)
            except WrongSequenceError:
                continue
            removed = True
            break
    return removed
