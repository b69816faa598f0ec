"""What a sweep looks at: every job record and every entry of the active index, in small steps.

Owns what is kept of each of them, which is little, for there may be a hundred thousand: of a record the few fields that
a sweep decides by, of the index only what is not as the records say. It decides and changes nothing (``upkeep`` does).

Guarantees that it takes exactly that for a record or an entry which ``jobs.record_of`` and ``records.slot_of`` take for
one, and that no other task waits longer for it than for one page. A body as this version writes it is decoded into the
fields that are needed; everything else (fields of a later version, somebody else's bytes) goes the long way, where
garbage is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from natsjobs.engine import wire
from natsjobs.engine.context import Context
from natsjobs.engine.jobs import check_record, record_of
from natsjobs.engine.ports import Message
from natsjobs.engine.records import Slot, slot_of
from natsjobs.models import Job, UserMessage
from natsjobs.tasks import in_steps


class Seen(msgspec.Struct, frozen=True, gc=False):
    """A job record, as far as a sweep needs it. ``time``: when it was stored, server clock."""

    stream_id: str
    generation: str
    user_id: str
    owner: str | None
    ended: bool
    seq: int
    time: float

    @property
    def run(self) -> tuple[str, str]:
        """Stream id and generation."""
        return self.stream_id, self.generation


class Survey:
    """Records and index as one sweep has found them."""

    def __init__(self, context: Context) -> None:
        """Nothing was looked at."""
        self._context = context
        self.records: dict[str, Seen] = {}
        """By stream id."""
        self.running: list[Seen] = []
        self.unlisted: dict[str, Seen] = {}
        """Running jobs that no list shows as they are, by the key that the index should have for them."""
        self.odd: list[Slot] = []
        """Entries of the index that are not those of a running job, or of another generation of one."""

    async def look(self) -> None:
        """Read everything. Raises as ``Records.list`` does."""
        context, key = self._context, self._context.subjects.record
        await context.records.visit(context.subjects.records("job"), self._take_records)
        for step in in_steps(self.records.values()):
            running = [record for record in step if not record.ended]
            self.running += running
            self.unlisted.update((key("active", record.user_id, record.stream_id), record) for record in running)
            await asyncio.sleep(0)
        await context.records.visit(context.subjects.records("active"), self._take_entries)

    def _take_records(self, page: Iterable[Message]) -> None:
        for message in page:
            if (seen := _seen(message)) is None:
                continue
            before = self.records.get(seen.stream_id)
            if before is None or before.seq < seen.seq:  # else a stranger has stored it under two keys
                self.records[seen.stream_id] = seen

    def _take_entries(self, page: Iterable[Message]) -> None:
        for message in page:
            record = self.unlisted.get(message.subject)
            if record is not None and _is_entry(message, record.generation):
                del self.unlisted[message.subject]
            elif (slot := slot_of(message)).value is None:
                continue  # removed, or nothing of ours
            elif record is not None and generation_of(slot) == record.generation:
                del self.unlisted[message.subject]
            else:
                self.odd.append(slot)


def generation_of(slot: Slot) -> str:
    """Which generation an entry of the index names."""
    return str((slot.value or {}).get("generation"))


class _Words(UserMessage, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A user message and nothing else."""


class _Record(Job, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A body that has no fields but those which this version writes."""

    user_message: _Words | None = None
    write: str | None = None
    final_seq: int | None = None
    trace: Any = None


class _Entry(msgspec.Struct, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """The same of the index."""

    generation: str
    owner: str | None = None
    tenant_id: str | None = None
    write: str | None = None


_decode_record = msgspec.json.Decoder(_Record).decode
_decode_entry = msgspec.json.Decoder(_Entry).decode


def _seen(message: Message) -> Seen | None:
    job = _usual(message) or _unusual(message)
    if job is None:
        return None
    ended = job.status.is_terminal
    return Seen(job.stream_id, job.generation, job.user_id, job.owner, ended, message.seq, message.time)


def _usual(message: Message) -> Job | None:
    """The record in a body as this version writes it; ``None``: it is looked at more closely."""
    if message.marker is not None or not wire.is_shallow(message.body):
        return None
    try:
        job = _decode_record(message.body)
        check_record(job, message.subject)
    except (ValueError, *wire.UNREADABLE):
        return None
    return job


def _unusual(message: Message) -> Job | None:
    record = record_of(slot_of(message))
    return None if record is None else record.job


def _is_entry(message: Message, generation: str) -> bool:
    """Whether it is the entry of this generation as this version writes it; else it is looked at more closely."""
    if message.marker is not None:
        return False
    try:
        return _decode_entry(message.body).generation == generation
    except wire.UNREADABLE:
        return False
