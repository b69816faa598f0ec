"""``JobRun``: one owner's part of a generation, as ``JobManager.start`` and ``JobManager.spawn`` give it.

It owns nothing: what it is told goes to the two interfaces, and what became of the generation is ``Outcome``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from natsjobs.errors import JobClosedError
from natsjobs.manager.outcome import SHUTDOWN, Outcome, completed, failed
from natsjobs.models import Job, JobFields, JobStatus, RunStep, UsageMetadata


class JobRun:
    """One generation as its producer sees it; given by ``JobManager.start`` and ``JobManager.spawn``.

    Every call is activity. After the end only ``flush``, ``record_usage`` and ``claim_usage`` work, the rest is a
    ``JobClosedError``. All tasks of the loop may call it; nothing is thread-safe. Every coroutine raises
    ``UnavailableError`` when NATS does not answer in time, or at once when waiting would not help (``JobManager``).
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._store = outcome.backend.store
        self._transport = outcome.backend.transport
        self._job = outcome.job
        self._stream_id = outcome.job.stream_id
        self._generation = outcome.job.generation

    def __repr__(self) -> str:
        return f"<JobRun {self._stream_id!r} generation={self._generation} status={self.status.value}>"

    @property
    def stream_id(self) -> str:
        """The job."""
        return self._stream_id

    @property
    def generation(self) -> str:
        """The generation that this run owns."""
        return self._generation

    @property
    def job(self) -> Job:
        """The job as it was created."""
        return self._job

    @property
    def status(self) -> JobStatus:
        """How the run stands as far as this process knows; after the block: how it ended."""
        outcome = self._outcome
        if outcome.stands is not None:
            return outcome.stands.status
        if outcome.aborting:
            return JobStatus.ABORTED
        # With NATS away the run ends as an error: whoever sees its lease lapse writes OWNER_LOST.
        lost = outcome.unstored is not None or outcome.wanted is SHUTDOWN
        return JobStatus.ERROR if lost else JobStatus.RUNNING

    @property
    def aborted(self) -> bool:
        """Whether somebody aborted the run; true from the signal on, so the interrupted body can ask."""
        outcome = self._outcome
        return outcome.aborting if outcome.stands is None else outcome.stands.is_abort

    async def wait_aborted(self) -> None:
        """Wait until somebody aborts the run: for work that has to be stopped by hand.

        Raises:
            JobClosedError: The run ended in another way, nobody can abort it any more.
        """
        await self._outcome.wait_over()
        if not self.aborted:
            raise self._outcome.closed_error()

    async def emit(self, event: object) -> None:
        """Send one event to every viewer and into the log; waits only for room in the queue.

        It is encoded before this returns. The order is the order of the calls. It is sent within
        ``timing.linger``; while nobody watches, within ``timing.linger_unwatched``. A failed write is raised by the
        next call or at the end; what was queued is kept.

        Raises:
            JobClosedError: The run has ended.
            InvalidEventError: The event has no JSON form; nothing was sent.
        """
        self._outcome.refuse_after_end()
        try:
            await self._transport.emit_chunk(self._stream_id, event, generation=self._generation)
        except JobClosedError as exc:
            self._outcome.learn(exc)
            raise

    async def flush(self) -> None:
        """Wait until every event emitted so far is stored; raises what kept one from it. Works after the end too."""
        await self._transport.flush(self._stream_id, generation=self._generation)

    async def record_usage(self, usage: UsageMetadata | Mapping[str, Any]) -> None:
        """Record the tokens of one model call; durable when it returns. Works after the end too."""
        await self._store.record_usage(self._stream_id, usage, generation=self._generation)

    async def claim_usage(self) -> list[UsageMetadata]:
        """The usage of this run that nobody has claimed: bill it, nobody else gets it. Works after the end too."""
        return await self._store.claim_usage(self._stream_id, generation=self._generation)

    async def save_run_steps(self, steps: Sequence[RunStep]) -> None:
        """Store the whole list of run steps.

        Raises:
            JobClosedError: The run has ended.
        """
        self._outcome.refuse_after_end()
        try:
            await self._store.save_run_steps(self._stream_id, steps, generation=self._generation)
        except JobClosedError as exc:
            self._outcome.learn(exc)
            raise

    async def update(self, **fields: Unpack[JobFields]) -> None:
        """Set the named fields of the job (``field=None`` clears it); without fields it is only activity.

        Raises:
            JobClosedError: The run has ended.
            TypeError: A field that a run cannot set.
        """
        if unknown := sorted(fields.keys() - JobFields.__annotations__.keys()):
            known = ", ".join(JobFields.__annotations__)
            raise TypeError(f"update() cannot set {', '.join(unknown)}; a run sets {known}")
        self._outcome.refuse_after_end()
        if not await self._store.update_job(self._stream_id, expected_generation=self._generation, **fields):
            raise self._outcome.closed_error()

    async def complete(self, final_event: Any = None) -> None:
        """End the run as complete; returns when that is stored, behind every event emitted before.

        Raises:
            JobClosedError: It has ended already, or another end came first (an abort in the same moment).
            InvalidEventError: The final event has no JSON form; the run goes on.
            UnavailableError: NATS stays away; the end may still be stored later.
            StreamFullError, PermissionDeniedError: The last events were refused; the run has ended as failed, or will
                once there is room.
        """
        await self._outcome.ask(completed(final_event))

    async def fail(self, error: str | BaseException) -> None:
        """End the run as failed, with a text that viewers see. Returns and raises as ``complete`` does."""
        await self._outcome.ask(failed(error))
