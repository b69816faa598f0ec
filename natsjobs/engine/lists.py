"""Lists of jobs: all of them from their records, the running ones of a user from the index.

Guarantees that a user's list costs what the user's own jobs cost, however many others there are, and that a list of
all holds up no other task for longer than a page takes, and once to be sorted (0.1 s for a hundred thousand). It
changes nothing but index entries that are stale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from operator import attrgetter

from natsjobs.engine.context import Context
from natsjobs.engine.jobs import active_key, job_key, record_of
from natsjobs.engine.moment import Moment
from natsjobs.engine.ports import Message
from natsjobs.engine.records import ConflictError, slot_of
from natsjobs.models import Job, JobStatus


class Lists:
    """What one replica can list."""

    def __init__(self, context: Context) -> None:
        """No I/O."""
        self._context = context

    async def jobs(self, user_id: str | None, status: JobStatus | None, tenant_id: str | None) -> list[Job]:
        """The newest generation of each stream id, newest first; ``None`` does not filter."""
        jobs: list[Job] = []

        def take(page: Iterable[Message]) -> None:
            jobs.extend(
                record.job
                for message in page
                if (record := record_of(slot_of(message))) is not None
                and user_id in {None, record.job.user_id}
                and status in {None, record.job.status}
                and tenant_id in {None, record.job.tenant_id}
            )

        await self._context.records.visit(self._context.subjects.records("job"), take)
        return sorted(jobs, key=attrgetter("created_at", "generation"), reverse=True)

    async def active(self, user_id: str, tenant_id: str | None) -> list[str]:
        """Stream ids of the user's jobs that have not ended; stale entries are removed on the way."""
        context, moment, subjects = self._context, Moment(self._context), self._context.subjects
        listed = {
            parts[2]: slot
            for slot in await moment.matching(subjects.records("active", user_id))
            if (parts := subjects.split_record(slot.key)) is not None and len(parts) == 3
        }
        active: list[str] = []
        found = await moment.read([job_key(context, stream_id) for stream_id in listed])
        for (stream_id, slot), record in zip(listed.items(), map(record_of, found), strict=True):
            if record is None or record.status.is_terminal or active_key(context, record.job) != slot.key:
                # Read after the entry, so the entry is stale; if a newer turn rewrites it, the revision saves it.
                with contextlib.suppress(ConflictError):
                    await context.records.remove(slot.key, expect=slot.revision)
            elif tenant_id in {None, record.job.tenant_id}:
                active.append(stream_id)
        return active
