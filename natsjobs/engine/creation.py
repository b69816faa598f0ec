"""How a generation begins and how a job is removed: the two operations that change which log a record names.

Begin: end the running predecessor, append the open record of the new log, register the run, then change the record by
compare-and-set (A6: log first, record second, so that a crash in between leaves an orphan that a sweep can see, never
a record that refers to nothing). Remove: end it, then record, index, steps, then tombstone the log (A10).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from natsjobs.engine import wire
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
from natsjobs.telemetry import measures
from natsjobs.telemetry.listening import hub

_log = logging.getLogger(__name__)


class Creation:
    """Creates and removes jobs for one replica."""

    def __init__(self, context: Context, runs: Runs, content: ContentState, ledger: Ledger) -> None:
        """No I/O."""
        self._context, self._runs, self._content, self._ledger = context, runs, content, ledger
        self._created_at = 0

    # -- begin --------------------------------------------------------------------------------------------------

    async def create(
        self, fixed: Mapping[str, Any], fields: Mapping[str, Any], if_running: IfRunning, by: object
    ) -> Job:
        """Make a new generation. ``fixed``: ids, in wire form; ``fields``: checked fields; ``by``: the store."""
        context, stream_id = self._context, str(fixed["streamId"])
        merge({}, {**fixed, **fields}, limit=context.record_bytes)  # before anything is sent
        while True:
            slot = await context.records.read(job_key(context, stream_id))
            previous = record_of(slot)
            await context.headroom.check_create()  # before the running predecessor is ended for nothing
            if previous is not None and not previous.status.is_terminal:
                if if_running == "reject" and not await self._has_ended(previous):
                    raise JobRunningError(previous.job)
                await self._replace(previous)
                slot = await context.records.read(job_key(context, stream_id))
                previous = record_of(slot)
                if previous is not None and not previous.status.is_terminal:
                    continue  # yet another create came between
            job = await self._begin(slot, previous, fixed, fields, by)
            if job is not None:
                hub.add(measures.JOBS_STARTED)
                self._content.forget(stream_id)
                self._ledger.forget(stream_id)
                await self._index(job)
                return job

    async def _has_ended(self, record: JobRecord) -> bool:
        """Whether the log of a job that the record calls running has its end already."""
        return await self._runs.terminal_of(record.stream_id, record.generation) is not None

    async def _replace(self, previous: JobRecord) -> None:
        end = End("aborted", EndReason.REPLACED, wire.random_token(), b"null")
        try:
            await self._runs.end(previous.stream_id, previous.generation, end)
        except JobClosedError:
            _log.info("the log of %s was gone before it was replaced", previous.stream_id)

    async def _begin(
        self, slot: Slot, previous: JobRecord | None, fixed: Mapping[str, Any], fields: Mapping[str, Any], by: object
    ) -> Job | None:
        """Open the log, own the run, change the record; ``None``: another create changed the record first."""
        context, stream_id = self._context, str(fixed["streamId"])
        before = previous.job.created_at if previous else _left_at(slot)
        # Larger than any this replica gave out, so that "newest first" is the order of calls within a millisecond. The
        # predecessor's may come from a clock that is wrong: it moves this job, and not all that are created after it.
        self._created_at = max(int(time.time() * 1000), self._created_at + 1)
        created_at = min(max(self._created_at, before + 1), LATEST)
        generation = wire.generation_id(created_at)
        data = merge(
            {},
            {
                "status": "running",
                "streamId": stream_id,
                "generation": generation,
                "userId": fixed["userId"],
                "owner": context.replica_id,
                "createdAt": created_at,
                "lastActiveAt": created_at,
                **fixed,
                **fields,
            },
            limit=context.record_bytes,
        )
        job = msgspec.convert(data, Job)
        seq = await self._open_log(stream_id, generation)
        self._runs.own(job, Position(seq, 0), by)
        if hub.tracer is not None:
            with hub.tracing() as tracer:
                if trace := tracer.start_run((stream_id, generation), data):
                    data["trace"] = trace
        try:
            await context.records.write(slot.key, data, expect=slot.revision, ttl=running_ttl(context))
        except BaseException as error:
            self._runs.disown(stream_id, generation)
            if isinstance(error, ConflictError):
                self._context.spawn(self._remove_quietly(job), "natsjobs orphan")
                return None
            self._context.spawn(self._undo(job), "natsjobs undo create")
            raise
        return job

    async def _open_log(self, stream_id: str, generation: str) -> int:
        context, writer = self._context, wire.random_token()
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

    async def _remove_quietly(self, job: Job) -> None:
        try:
            await remove_log(self._context, job.stream_id, job.generation)
        except NatsJobsError as error:
            _log.info("the log of a create that lost stays until the next sweep: %s", error)

    async def _undo(self, job: Job) -> None:
        """A create that failed or was cancelled leaves no running job; its record may have been written anyway."""
        end = End("error", EndReason.CANCELLED, wire.random_token(), b'"the job was not started"')
        try:
            await self._runs.end(job.stream_id, job.generation, end)
        except NatsJobsError as error:
            _log.info("a create that failed left generation %s; the next sweep ends it: %s", job.generation, error)

    async def _index(self, job: Job) -> None:
        try:
            await put_active(self._context, job)
        except BaseException:
            self._context.spawn(self._undo(job), "natsjobs undo create")
            raise

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
