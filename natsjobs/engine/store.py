"""``EngineStore``: the ``JobStore`` interface on the engine; the backends only say on which link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.content_state import merge_steps
from natsjobs.engine.jobs import (
    JobRecord,
    change_record,
    check_fields,
    check_status,
    merge,
    read_record,
    read_writable,
)
from natsjobs.engine.lists import Lists
from natsjobs.engine.replica import Replica
from natsjobs.engine.terminals import End, end_event
from natsjobs.errors import EventTooLargeError, InvalidArgumentError, JobClosedError, JobNotFoundError, NotOpenError
from natsjobs.interfaces import IfRunning
from natsjobs.models import (
    AbortResult,
    ContentPart,
    EndReason,
    Job,
    JobChanges,
    JobFields,
    JobStatus,
    ResumeState,
    RunStep,
    StreamEvent,
    UsageMetadata,
)


class EngineStore:
    """Implements ``natsjobs.interfaces.JobStore``; see there for what each method means."""

    def __init__(self, replica: Replica) -> None:
        """No I/O; ``initialize`` opens."""
        self.replica = replica
        self._context = replica.context
        self._lists = Lists(replica.context)
        self._opened = False

    @property
    def replica_id(self) -> str:
        """Names this replica as ``Job.owner``."""
        return self._context.replica_id

    async def initialize(self) -> None:
        """Connect what is needed, create or check stream and bucket, start background work."""
        if not self._opened:
            await self.replica.open(self)
            self._opened = True

    async def destroy(self) -> None:
        """End the running jobs owned here, stop background work, release what was opened; data stays."""
        if self._opened:
            self._opened = False
            await self.replica.shut_down(self)
            await self.replica.close(self)

    async def check(self) -> None:
        """Ask NATS for the stream and the bucket, now."""
        await self.replica.check(opened=self._opened)

    def _check(self, stream_id: object, field: str = "stream_id") -> str:
        checked = self._context.check_id(stream_id, field)
        if not self._opened:
            raise NotOpenError("this job store is not open: call `await store.initialize()` first")
        return checked

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def create_job(
        self,
        stream_id: str,
        user_id: str,
        conversation_id: str | None = None,
        *,
        tenant_id: str | None = None,
        if_running: IfRunning = "replace",
        **fields: Unpack[JobFields],
    ) -> Job:
        """Make a new generation, status running, owned by this replica until it ends."""
        self._check(stream_id)
        fixed: dict[str, Any] = {"streamId": stream_id, "userId": self._check(user_id, "user_id")}
        if conversation_id is not None:
            fixed["conversationId"] = self._check(conversation_id, "conversation_id")
        if tenant_id is not None:
            fixed["tenantId"] = self._check(tenant_id, "tenant_id")
        if if_running not in {"replace", "reject"}:
            raise InvalidArgumentError("if_running", f'{if_running!r} is neither "replace" nor "reject"')
        return await self.replica.creation.create(fixed, check_fields(fields, JobFields), if_running, self)

    async def get_job(self, stream_id: str) -> Job | None:
        """The newest generation."""
        record = await read_record(self._context, self._check(stream_id))
        return None if record is None else await self._complete(record)

    async def _complete(self, record: JobRecord) -> Job:
        """A final event that is too large for the record is in the log (B7)."""
        if record.data.get("finalSeq") is None or record.job.final_event is not None:
            return record.job
        terminal = await self.replica.runs.terminal_of(record.stream_id, record.generation)
        if terminal is None:
            return record.job
        return msgspec.structs.replace(record.job, final_event=terminal.raw.decode())

    async def has_job(self, stream_id: str) -> bool:
        """Whether ``get_job`` would find one."""
        return await read_record(self._context, self._check(stream_id)) is not None

    async def update_job(
        self, stream_id: str, *, expected_generation: str | None = None, **changes: Unpack[JobChanges]
    ) -> bool:
        """Set the named fields; a terminal ``status`` ends the generation in log and record."""
        self._check(stream_id)
        fields = check_fields(changes, JobChanges)
        record = await read_record(self._context, stream_id)
        if record is None or (expected_generation is not None and record.generation != expected_generation):
            return False
        self.replica.runs.active(stream_id, record.generation)
        if not fields:
            return not record.status.is_terminal
        if (status := fields.get("status")) is not None:
            if record.status.is_terminal:
                return False
            if JobStatus(status).is_terminal:
                return await self._end_by_update(record, fields)
        return await change_record(self._context, stream_id, record.generation, fields) is not None

    async def _end_by_update(self, record: JobRecord, fields: dict[str, Any]) -> bool:
        """The end, and the other fields in one write with it; what may be refused is before the end."""
        status = JobStatus(fields.pop("status"))
        reason = EndReason.ABORT if status is JobStatus.ABORTED else None
        if status is JobStatus.ERROR:
            data = msgspec.json.encode(fields.pop("error", None) or record.job.error or "")
        else:
            data = self._final_of(record, fields)
        if fields:
            merge(record.data, fields, limit=self._context.record_bytes)
        end = End(wire.KIND_OF[status.value], reason, wire.random_token(), data, fields)
        try:
            terminal, _ = await self.replica.runs.end(record.stream_id, record.generation, end)
        except JobClosedError:
            return False
        return terminal.request == end.request

    def _final_of(self, record: JobRecord, fields: dict[str, Any]) -> bytes:
        """The final event, which leaves ``fields``, for the terminal record brings it; cleared it is to stay there."""
        text: str | None = fields.get("finalEvent", record.job.final_event)
        if text is None:
            return b"null"
        fields.pop("finalEvent", None)
        try:
            data = msgspec.json.format(text.encode(), indent=-1)
        except msgspec.DecodeError as error:
            raise InvalidArgumentError("final_event", f"is not JSON: {error}") from None
        if len(data) > (limit := self._context.config.limits.event_bytes):
            raise EventTooLargeError(len(data), limit, field="final_event")
        if not wire.is_json(data):
            raise InvalidArgumentError("final_event", "is nested too deeply: not every reader could open it")
        return data

    async def end_job(
        self,
        stream_id: str,
        *,
        generation: str,
        status: JobStatus | str,
        end_reason: EndReason | None = None,
        error: str | None = None,
        final_event: Any = None,
    ) -> StreamEvent:
        """End a generation; the terminal record that now stands."""
        self._check(stream_id)
        checked = check_status(status)
        if not checked.is_terminal:
            raise InvalidArgumentError("status", f"{checked.value!r} does not end a job")
        if checked is JobStatus.ERROR:
            data = msgspec.json.encode(_clean_text(error or ""))
        else:
            config = self._context.config
            data = wire.encode_event(final_event, limit=config.limits.event_bytes, enc_hook=config.enc_hook)
        end = End(wire.KIND_OF[checked.value], end_reason, wire.random_token(), data)
        terminal, _ = await self.replica.runs.end(stream_id, generation, end)
        return end_event(generation, terminal)

    async def abort_job(self, stream_id: str, *, generation: str | None = None, final_event: Any = None) -> AbortResult:
        """Stop the run wherever it is; afterwards the job has ended."""
        return await self.replica.aborts.abort(self._check(stream_id), generation, final_event)

    async def delete_job(self, stream_id: str, *, expected_generation: str | None = None) -> bool:
        """End it if it runs, then remove record, log, steps and index."""
        return await self.replica.creation.delete(self._check(stream_id), expected_generation)

    # -- lists --------------------------------------------------------------------------------------------------

    async def list_jobs(
        self, *, user_id: str | None = None, status: JobStatus | str | None = None, tenant_id: str | None = None
    ) -> list[Job]:
        """The newest generation of each stream id, newest first."""
        wanted = None if status is None else check_status(status)
        for field, value in (("user_id", user_id), ("tenant_id", tenant_id)):
            if value is not None:
                self._check(value, field)
        self._check("any")
        return await self._lists.jobs(user_id, wanted, tenant_id)

    async def get_running_jobs(self) -> list[Job]:
        """All running jobs."""
        return await self.list_jobs(status=JobStatus.RUNNING)

    async def get_active_job_ids_by_user(self, user_id: str, *, tenant_id: str | None = None) -> list[str]:
        """Stream ids of the user's jobs that have not ended; stale entries are removed on the way."""
        self._check(user_id, "user_id")
        if tenant_id is not None:
            self._check(tenant_id, "tenant_id")
        return await self._lists.active(user_id, tenant_id)

    async def get_job_count(self) -> int:
        """How many jobs there are."""
        return len(await self.list_jobs())

    async def get_job_count_by_status(self, status: JobStatus | str) -> int:
        """How many jobs have this status."""
        return len(await self.list_jobs(status=status))

    async def cleanup(self) -> int:
        """One sweep over expired, orphaned and stale jobs; how many it ended or removed."""
        self._check("any")
        return await self.replica.upkeep.sweep()

    # -- content ------------------------------------------------------------------------------------------------

    def set_graph(self, stream_id: str, graph: object) -> None:
        """A live object with optional ``content_parts`` and ``run_steps``."""
        self.replica.content.set_graph(self._check(stream_id), graph)

    def set_content_parts(self, stream_id: str, parts: list[ContentPart]) -> None:
        """A live list of content parts that wins over the log while it has content."""
        self.replica.content.set_parts(self._check(stream_id), parts)

    async def get_content_parts(self, stream_id: str) -> list[ContentPart] | None:
        """The live object's content on this replica, else folded from the log; ``None`` when there is nothing."""
        self._check(stream_id)
        if live := self.replica.content.live_parts(stream_id):
            return live
        record = await read_record(self._context, stream_id)
        if record is None:
            return None
        return await self.replica.content.folded(stream_id, record.generation) or None

    async def get_run_steps(self, stream_id: str) -> list[RunStep]:
        """The live object's steps on this replica, else the saved and the folded ones, merged by id."""
        self._check(stream_id)
        if live := self.replica.content.live_steps(stream_id):
            return live
        record = await read_record(self._context, stream_id)
        if record is None:
            return []
        content = self.replica.content
        folded = await content.folded_steps(stream_id, record.generation)
        return merge_steps(await content.saved_steps(stream_id, record.generation), folded)

    async def save_run_steps(self, stream_id: str, steps: Sequence[RunStep], *, generation: str | None = None) -> None:
        """Store the whole list of run steps."""
        record = await self._writable(self._check(stream_id), generation)
        await self.replica.content.save_steps(stream_id, record.generation, steps)

    async def _writable(self, stream_id: str, generation: str | None, *, ended: bool = False) -> JobRecord:
        record = await read_writable(self._context, stream_id, generation, ended=ended)
        self.replica.runs.active(stream_id, record.generation)
        return record

    async def get_resume_state(self, stream_id: str) -> ResumeState | None:
        """Everything a client needs to draw the job and go on."""
        self._check(stream_id)
        while True:
            record = await read_record(self._context, stream_id)
            if record is None:
                return None
            generation = record.generation
            folded = await self.replica.content.fold(stream_id, generation)
            saved = await self.replica.content.saved_steps(stream_id, generation)
            usage = await self.replica.ledger.unclaimed(stream_id, generation)
            after = await read_record(self._context, stream_id)
            if after is not None and after.generation == generation:
                break  # else it was replaced meanwhile: nothing of the old one may be shown (scenario 73)
        job = after.job
        return ResumeState(
            generation=generation,
            status=job.status,
            cursor=str(folded.cursor),
            run_steps=merge_steps(saved, folded.run_steps),
            aggregated_content=folded.content,
            user_message=job.user_message,
            response_message_id=job.response_message_id,
            conversation_id=job.conversation_id,
            sender=job.sender,
            collected_usage=usage,
        )

    async def append_chunk(self, stream_id: str, event: Any, *, generation: str | None = None) -> int:
        """Store one event; its index."""
        self._check(stream_id)
        config, runs = self._context.config, self.replica.runs
        raw = wire.encode_event(event, limit=config.limits.event_bytes, enc_hook=config.enc_hook)
        writer = await runs.writer(stream_id, generation)
        runs.active(stream_id, writer.generation)
        return await writer.store(raw)

    async def clear_content_state(self, stream_id: str, *, generation: str | None = None) -> None:
        """Remove events and steps of the generation; its terminal record and unclaimed usage stay."""
        record = await self._writable(self._check(stream_id), generation, ended=True)
        content = self.replica.content
        content.forget(stream_id)
        if not await content.clear(stream_id, record.generation):
            writer = await self.replica.runs.writer(stream_id, record.generation)
            await writer.clear()
        await content.drop_steps(stream_id, record.generation)

    # -- usage --------------------------------------------------------------------------------------------------

    def set_collected_usage(self, stream_id: str, usage: list[Any]) -> None:
        """A list that model callbacks append to."""
        self.replica.ledger.watch(self._check(stream_id), usage)

    async def get_collected_usage(self, stream_id: str) -> list[UsageMetadata]:
        """Recorded (and on this replica listed) entries that nobody has claimed."""
        record = await read_record(self._context, self._check(stream_id))
        listed = self.replica.ledger.listed(stream_id)
        return (
            listed if record is None else [*await self.replica.ledger.unclaimed(stream_id, record.generation), *listed]
        )

    async def record_usage(
        self, stream_id: str, usage: UsageMetadata | Mapping[str, Any], *, generation: str | None = None
    ) -> None:
        """Record one model call, durable when it returns; allowed after the end too."""
        named = await self._generation_of(stream_id, generation)
        self.replica.runs.active(stream_id, named)
        await self.replica.ledger.record(stream_id, named, usage)

    async def claim_usage(self, stream_id: str, *, generation: str | None = None) -> list[UsageMetadata]:
        """The entries nobody has claimed yet: each goes to exactly one caller, ever."""
        self._check(stream_id)
        try:
            named = await self._generation_of(stream_id, generation)
        except JobNotFoundError:
            return []
        if (stream_id, named) in self.replica.runs.owned or self.replica.runs.local(stream_id, named) is not None:
            await self.replica.ledger.record_listed(stream_id, named)
        return await self.replica.ledger.claim(stream_id, named)

    async def _generation_of(self, stream_id: str, generation: str | None) -> str:
        self._check(stream_id)
        if generation is not None:
            return self._check(generation, "generation")
        record = await read_record(self._context, stream_id)
        if record is None:
            raise JobNotFoundError(stream_id)
        return record.generation


def _clean_text(text: str) -> str:
    """An error text may come from anywhere: what has no UTF-8 form is replaced rather than lost."""
    return text.encode("utf-8", "replace").decode()
