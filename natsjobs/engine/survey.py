"""What a sweep looks at: every job record and every entry of the active index, in small steps.

Owns what is kept of each of them from one sweep to the next, which is little, for there may be a hundred thousand: of a
record the few fields that a sweep decides by, of the index whether it has the entry that belongs to the record. It
decides and changes nothing (``upkeep`` does).

A sweep reads what has changed since the one before: everything stored behind the newest sequence of then. Which keys
there are it hears from the leader each time, so what has gone is gone here, and what is not known is read. All is read
at first and at every tenth time, and whenever what was seen may not be the beginning of what is there: the connection
broke (a server may have been restarted), the bucket was made anew or went back to an older sequence. An operator who
puts back a backup under a connection that stays is found out at the tenth time. Whoever acts on what is kept reads the
key first.

Guarantees that it takes exactly that for a record or an entry which ``jobs.record_of`` and ``records.slot_of`` take for
one, and that no other task waits longer for it than for one page. A body as this version writes it is decoded into the
fields that are needed; everything else (fields of a later version, somebody else's bytes) goes the long way, where
garbage is counted.
"""

from __future__ import annotations

import asyncio
import sys
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

_ALL_EVERY = 10
"""Sweeps."""


class Seen(msgspec.Struct, gc=False):
    """A job record, as far as a sweep needs it. ``time``: when it was stored, server clock."""

    stream_id: str
    generation: str
    user_id: str
    owner: str | None
    ended: bool
    seq: int
    time: float
    listed: bool = False
    """It runs, and the index has the entry that belongs to it."""

    @property
    def run(self) -> tuple[str, str]:
        """Stream id and generation."""
        return self.stream_id, self.generation


class _Mark(msgspec.Struct, frozen=True):
    """How far was read, and in which bucket, over which connection."""

    created: str
    seq: int
    connected: float | None


class Survey:
    """Records and index as sweeps have found them, which come one after the other."""

    def __init__(self, context: Context) -> None:
        """Nothing was looked at."""
        self._context = context
        self._mark: _Mark | None = None
        self._times = 0
        self._void: set[str] = set()  # keys of records that hold none: markers, or somebody else's
        self._doubtful = False  # there is a record under a key that is not its own
        self._entries: dict[str, Message] = {}  # what has changed in the index
        self.records: dict[str, Seen] = {}
        """By stream id."""
        self.running: list[Seen] = []
        self.unlisted: dict[str, Seen] = {}
        """Running jobs that no list shows as they are, by the key that the index should have for them."""
        self.odd: list[Slot] = []
        """Entries of the index that are not those of a running job, or of another generation of one."""

    async def look(self) -> None:
        """Look at everything. Raises as ``Records.list`` does; then this one cannot be used any more."""
        context, subjects = self._context, self._context.subjects
        connected, state = context.link.connected_since, await context.records.state()
        names = await context.records.names(subjects.records("job"))
        now, before = _Mark(state.created, state.last_seq, connected), self._mark
        if before is not None and self._goes_on(before, now, 2 * len(names)):
            await context.records.changes(before.seq + 1, now.seq, self._take_changes)
        else:
            self.records, self._void, self._times = {}, set(), 0
        self._mark, self._times, self._doubtful = now, self._times + 1, False
        await self._look_at_records(names)
        await self._look_at_index()

    def _goes_on(self, before: _Mark, now: _Mark, most: int) -> bool:
        """Whether what was seen then is worth anything: more changes than there are keys are more work than these."""
        same = before.created == now.created and before.connected == now.connected is not None
        few = 0 <= now.seq - before.seq <= most
        return same and few and self._times < _ALL_EVERY and not self._doubtful

    async def _look_at_records(self, names: dict[str, int]) -> None:
        """Those of these names, and no others."""
        key = self._context.subjects.record
        for step in in_steps(self.records):
            for stream_id in step:
                if names.pop(key("job", stream_id), None) is None:
                    del self.records[stream_id]
            await asyncio.sleep(0)
        self._void &= names.keys()
        unknown = [name for name in names if name not in self._void]
        await self._context.records.pick(unknown, self._context.subjects.records("job"), self._take_records)

    async def _look_at_index(self) -> None:
        context, key = self._context, self._context.subjects.record
        names = await context.records.names(context.subjects.records("active"))
        self.running, self.unlisted, self.odd = [], {}, []
        for step in in_steps(self.records.values()):
            for record in step:
                if record.ended:
                    continue
                self.running.append(record)
                name = key("active", record.user_id, record.stream_id)
                if (change := self._entries.get(name)) is not None:
                    record.listed = _is_entry(change, record.generation)
                if record.listed and name in names:
                    del names[name]
                else:
                    record.listed, self.unlisted[name] = False, record
            await asyncio.sleep(0)
        self._entries = {}
        await context.records.pick([*names], context.subjects.records("active"), self._take_entries)

    def _take_changes(self, page: Iterable[Message]) -> None:
        for message in page:
            parts = self._context.subjects.split_record(message.subject)
            if parts is None or len(parts) < 2:
                continue
            if parts[0] == "active":
                self._entries[message.subject] = message
            elif parts[0] == "job":
                before = self.records.get(parts[1]) if len(parts) == 2 else None
                if before is not None and before.seq < message.seq:
                    del self.records[before.stream_id]
                self._take_record(message, before)

    def _take_records(self, page: Iterable[Message]) -> None:
        for message in page:
            self._take_record(message, None)

    def _take_record(self, message: Message, before: Seen | None) -> None:
        """``before``: the same key as it was."""
        if (seen := _seen(message)) is None:
            self._void.add(message.subject)
            return
        if message.subject != self._context.subjects.record("job", seen.stream_id):
            self._doubtful = True  # a stranger has put it there
        other = self.records.get(seen.stream_id)
        if other is None or other.seq < seen.seq:
            if before is not None and not seen.ended and before.generation == seen.generation:
                seen.listed = before.listed and before.user_id == seen.user_id
            self.records[seen.stream_id] = seen

    def _take_entries(self, page: Iterable[Message]) -> None:
        for message in page:
            record = self.unlisted.get(message.subject)
            if record is not None and _is_entry(message, record.generation):
                self._list(message.subject, record)
            elif (slot := slot_of(message)).value is None:
                continue  # removed, or nothing of ours
            elif record is not None and generation_of(slot) == record.generation:
                self._list(message.subject, record)
            else:
                self.odd.append(slot)

    def _list(self, name: str, record: Seen) -> None:
        record.listed = True
        del self.unlisted[name]


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
    # One owner has thousands of jobs, and a user has several.
    owner = job.owner and sys.intern(job.owner)
    return Seen(job.stream_id, job.generation, sys.intern(job.user_id), owner, ended, message.seq, message.time)


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
