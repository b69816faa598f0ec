"""The job record and the active index: how they are read and changed.

Owns the fields of the record, their checks, and the order of writes. Every change is a compare-and-set on the
record's revision; fields and statuses that this version does not know are written back as they were (C5). The
record never decides how a generation ended: the log does, and whoever notices a difference repairs the record.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from natsjobs.engine import garbage, wire
from natsjobs.engine.context import Context
from natsjobs.engine.records import ConflictError, Slot
from natsjobs.engine.subjects import check_id, escape
from natsjobs.errors import EventTooLargeError, InvalidArgumentError, JobClosedError, JobNotFoundError
from natsjobs.models import Job, JobChanges, JobFields, JobStatus, UserMessage

_ERROR_CHARS = 16_384
_ENDING_TIME = 60.0  # however short the limit is, there must be time to write many terminal records
LATEST = 1 << 53
"""The largest ``createdAt``: more has no exact form in every reader of JSON."""
_GENERATION = re.compile(r"[A-Za-z0-9_-]{1,64}")  # one subject token, whatever a later version makes of it

_FIELD_TYPES: Final[dict[str, Any]] = {
    "user_message": UserMessage | None,
    "response_message_id": str | None,
    "sender": str | None,
    "sync_sent": bool,
    "endpoint": str | None,
    "icon_url": str | None,
    "model": str | None,
    "prompt_tokens": int | None,
    "metadata": dict[str, Any] | None,
    "conversation_id": str | None,
    "status": JobStatus,
    "error": str | None,
    "completed_at": int | None,
    "final_event": str | None,
}
_WIRE: Final = dict(zip(Job.__struct_fields__, Job.__struct_encode_fields__, strict=True))


class JobRecord(msgspec.Struct, frozen=True):
    """A job as stored: ``data`` with everything, also what this version does not know."""

    job: Job
    data: dict[str, Any]
    revision: int
    time: float

    @property
    def stream_id(self) -> str:
        """Its stream id."""
        return self.job.stream_id

    @property
    def generation(self) -> str:
        """Its generation."""
        return self.job.generation

    @property
    def status(self) -> JobStatus:
        """How it stands, as far as the record knows."""
        return self.job.status


def record_of(slot: Slot) -> JobRecord | None:
    """The record in a slot; ``None`` when there is none, or somebody else wrote something else there."""
    if slot.value is None:
        return None
    try:
        job = msgspec.convert(slot.value, Job)
        check_record(job, slot.key)
    except (msgspec.ValidationError, ValueError) as error:
        garbage.skipped("a job record", f"{slot.key}: {error}", slot.value)
        return None
    return JobRecord(job, slot.value, slot.revision, slot.time)


def check_record(job: Job, key: str) -> None:
    """What becomes part of a subject must be able to: one that is too long would cost the connection.

    Raises:
        ValueError: It cannot, or it is the record of another key.
    """
    if not key.endswith(f".job.{escape(job.stream_id)}"):
        raise ValueError("it names another stream id")
    if not is_generation(job.generation):
        raise ValueError(f"no generation: {job.generation!r}")
    check_id(job.stream_id, "streamId")
    check_id(job.user_id, "userId")
    if job.owner is not None:
        check_id(job.owner, "owner")
    if not 0 <= job.created_at <= LATEST:
        raise ValueError(f"createdAt {job.created_at}")


def is_generation(value: object) -> bool:
    """Whether this can be a generation id."""
    return isinstance(value, str) and _GENERATION.fullmatch(value) is not None


def job_key(context: Context, stream_id: str) -> str:
    """The bucket subject of a job record."""
    return context.subjects.record("job", stream_id)


async def read_record(context: Context, stream_id: str) -> JobRecord | None:
    """The newest generation's record, at the leader."""
    return record_of(await context.records.read(job_key(context, stream_id)))


async def read_writable(context: Context, stream_id: str, generation: str | None, *, ended: bool = False) -> JobRecord:
    """The newest generation's record, for whoever writes to that generation (``None``: to the newest one).

    Args:
        context: Of this replica.
        stream_id: Whose.
        generation: Which one it must be.
        ended: It may have ended.

    Raises:
        JobNotFoundError: No such job, and no generation was named.
        JobClosedError: That generation is gone, is not the newest one, or has ended.
    """
    record = await read_record(context, stream_id)
    if generation is not None and (record is None or record.generation != generation):
        raise JobClosedError(stream_id, generation)
    if record is None:
        raise JobNotFoundError(stream_id)
    if record.status.is_terminal and not ended:
        raise JobClosedError(stream_id, record.generation, record.status, record.job.end_reason)
    return record


# -- fields -----------------------------------------------------------------------------------------------------------


def check_fields(fields: Mapping[str, Any], allowed: type[JobFields | JobChanges]) -> dict[str, Any]:
    """The wire form of fields that a caller named.

    Raises:
        TypeError: A field that cannot be set.
        InvalidArgumentError: A value of the wrong type.
    """
    names = set(JobFields.__annotations__) | set(allowed.__annotations__)
    wire_fields: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in names:
            raise TypeError(f"{name!r} is no field that can be set here; there are: {', '.join(sorted(names))}")
        if name == "status":
            wire_fields["status"] = check_status(value).value
            continue
        wire_fields[_WIRE[name]] = _plain_value(name, value)
    return wire_fields


def check_status(value: object) -> JobStatus:
    """A status that this version knows; a typo in a filter must not look like an empty list.

    Raises:
        InvalidArgumentError: It is none.
    """
    status = JobStatus(value) if isinstance(value, str) and value else None
    if status is None or not status.is_known:
        known = ", ".join(JobStatus)
        raise InvalidArgumentError("status", f"{value!r} is no job status; there are: {known}")
    return status


def _plain_value(name: str, value: Any) -> Any:
    try:
        if name == "user_message" and isinstance(value, dict):
            names = zip(UserMessage.__struct_fields__, UserMessage.__struct_encode_fields__, strict=True)
            aliases = dict(names)
            value = {aliases.get(key, key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        plain = msgspec.to_builtins(msgspec.convert(value, _FIELD_TYPES[name], from_attributes=False))
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(name, str(error)) from None
    if name == "prompt_tokens" and plain is not None and plain < 0:
        raise InvalidArgumentError(name, "must not be negative")
    if name == "user_message" and plain is not None:
        plain = {key: item for key, item in plain.items() if item is not None}
    try:
        wire.ascii_json(plain)
        wire.encode_event(plain, limit=1 << 40)
    except ValueError as error:
        raise InvalidArgumentError(name, f"has no JSON form: {error}") from None
    return plain


def merge(data: dict[str, Any], changes: Mapping[str, Any], *, limit: int | None) -> dict[str, Any]:
    """Record data with changes; ``None`` clears. Status and ids stay first, for whoever reads with the CLI.

    Raises:
        EventTooLargeError: The record would be larger than ``limit``; names the largest changed field.
    """
    merged = {**data, **changes}
    if isinstance(text := merged.get("error"), str) and len(text) > _ERROR_CHARS:
        merged["error"] = text[:_ERROR_CHARS] + "…"
    merged = {key: value for key, value in merged.items() if value is not None}
    merged["write"] = wire.random_token()
    size = len(wire.ascii_json(merged))
    if limit is not None and size > limit:
        sizes = {key: len(wire.ascii_json(value)) for key, value in merged.items()}
        largest = max((key for key in sizes if key in changes), key=lambda key: sizes[key], default="record")
        names = {wire_name: name for name, wire_name in _WIRE.items()}
        raise EventTooLargeError(sizes.get(largest, size), limit, field=names.get(largest, largest))
    return merged


# -- writing ----------------------------------------------------------------------------------------------------------


def running_ttl(context: Context) -> float | None:
    """A running record's TTL is only a backstop: its end is a terminal record, never an expiry (A8)."""
    limit = context.config.retention.running
    return limit + max(limit, _ENDING_TIME) if limit > 0 else None


def record_ttl(context: Context, status: JobStatus) -> float | None:
    """How long a record with this status stays."""
    return context.config.retention.finished if status.is_terminal else running_ttl(context)


async def write_record(
    context: Context, record: JobRecord, changes: Mapping[str, Any], *, limit: int | None
) -> JobRecord:
    """Change a record that was read. Raises ConflictError when it has changed since."""
    data = merge(record.data, changes, limit=limit)
    job = msgspec.convert(data, Job)
    key = job_key(context, record.stream_id)
    revision = await context.records.write(key, data, expect=record.revision, ttl=record_ttl(context, job.status))
    return JobRecord(job, data, revision, time.time())


async def change_record(
    context: Context, stream_id: str, generation: str | None, changes: Mapping[str, Any]
) -> JobRecord | None:
    """Change the newest record, again until nobody came between; ``None``: missing, or another generation."""
    while True:
        record = await read_record(context, stream_id)
        if record is None or (generation is not None and record.generation != generation):
            return None
        try:
            return await write_record(context, record, changes, limit=context.record_bytes)
        except ConflictError:
            continue


_NOTHING: Final[Mapping[str, Any]] = {}


async def mark_ended(
    context: Context, stream_id: str, generation: str, terminal: wire.Terminal, fields: Mapping[str, Any] = _NOTHING
) -> JobRecord | None:
    """Make the record say what the log says; the record as it is afterwards, ``None`` if it is not this generation's.

    Safe to call any number of times, by anybody: this is also the repair after a crash between log and record.
    ``fields``: what the record is to say beside that, in one write with it.
    """
    while True:
        record = await read_record(context, stream_id)
        if record is None or record.generation != generation:
            return None
        # Somebody else may have noted the end already; of the fields he knows nothing.
        changes = fields if record.status.is_terminal else _ended(context, record, terminal, fields)
        try:
            if changes:
                # Without a limit: an end that could not be noted would leave the job running for ever.
                record = await write_record(context, record, changes, limit=None)
        except ConflictError:
            continue
        await drop_active(context, record)
        return record


def _ended(
    context: Context, record: JobRecord, terminal: wire.Terminal, fields: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What an end changes in a record."""
    changes: dict[str, Any] = {
        "status": terminal.status.value,
        "completedAt": record.data.get("completedAt") or int(time.time() * 1000),
        "endReason": terminal.reason.value if terminal.reason else None,
        "owner": None,
        **fields,
    }
    if terminal.type == "error":
        changes["error"] = _cut(msgspec.json.decode(terminal.raw), context.record_bytes // 2)
    elif terminal.raw != b"null":
        changes["finalEvent"] = terminal.raw.decode()
        limit = context.record_bytes  # of the whole record, in its escaped form
        if len(terminal.raw) > limit // 4 or len(wire.ascii_json({**record.data, **changes})) > limit:
            changes["finalEvent"] = None  # too large for a record: `get_job` reads it from the log (B7)
            changes["finalSeq"] = terminal.seq
    return changes


def _cut(text: Any, limit: int) -> Any:
    """Words that take at most ``limit`` bytes in a record."""
    while isinstance(text, str) and len(wire.ascii_json(text)) > limit:
        text = f"{text[: len(text) // 2]}…"
    return text


# -- the active index -------------------------------------------------------------------------------------------------


def active_key(context: Context, job: Job) -> str:
    """Present exactly while the job has not ended."""
    return context.subjects.record("active", job.user_id, job.stream_id)


async def put_active(context: Context, job: Job, slot: Slot | None = None, *, over: str = "") -> None:
    """Write the index entry of a new generation over whatever an earlier one left (B5).

    ``slot``: the entry as it was read. ``over``: a later generation that never came to be, and left its entry.
    """
    key = active_key(context, job)
    value = {"generation": job.generation, "owner": job.owner, "tenantId": job.tenant_id, "write": wire.random_token()}
    while True:
        slot = slot or await context.records.read(key)
        if slot.value is not None and str(slot.value.get("generation", "")) > max(job.generation, over):
            return  # a newer turn has already written its own
        try:
            await context.records.write(key, value, expect=slot.revision, ttl=running_ttl(context))
        except ConflictError:
            slot = None
            continue
        return


async def drop_active(context: Context, record: JobRecord) -> None:
    """Remove the index entry of this generation, and of no later one (B5)."""
    key = active_key(context, record.job)
    while True:
        slot = await context.records.read(key)
        if slot.value is None or slot.value.get("generation") != record.generation:
            return
        try:
            await context.records.remove(key, expect=slot.revision)
        except ConflictError:
            continue
        return
