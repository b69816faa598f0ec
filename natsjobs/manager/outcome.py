"""How one run ends: which end was asked for first, which one stands, and interrupting the run when it is another's.

It owns no decision of a race: that is made by the store, which answers every attempt with the terminal record that
stands. It guarantees that one run asks for one end, that the attempt goes on when the task that asked is cancelled,
and that the body hears of an end that is not its own once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import msgspec

from natsjobs.config import Config
from natsjobs.errors import JobClosedError, NotOpenError, UnavailableError
from natsjobs.interfaces import EventTransport, JobStore, Registration
from natsjobs.manager.interrupt import Interrupt
from natsjobs.models import EndReason, EventType, Job, JobStatus, StreamEvent
from natsjobs.tasks import Latch, Tasks

_STATUS = {
    EventType.DONE: JobStatus.COMPLETE,
    EventType.ERROR: JobStatus.ERROR,
    EventType.ABORTED: JobStatus.ABORTED,
}

_COMPARED = 1000
"""Longer error texts may have been cut in the terminal record, so they are not compared."""


class Backend(msgspec.Struct, frozen=True):
    """What a run stands on. ``tasks`` outlive every block: an end is stored even when its block is cancelled."""

    store: JobStore
    transport: EventTransport
    config: Config
    tasks: Tasks


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """One way for a generation to end: asked for, or standing."""

    status: JobStatus
    end_reason: EndReason | None = None
    error: str | None = None
    final_event: Any = None

    @property
    def is_abort(self) -> bool:
        """Whether somebody aborted it (and did not replace or delete it)."""
        return self.status == JobStatus.ABORTED and self.end_reason in {None, EndReason.ABORT}

    def stands_in(self, event: StreamEvent) -> bool:
        """Whether a terminal record is this ending; in doubt (the same end, written by somebody else) it is."""
        if _STATUS.get(event.type) != self.status or event.end_reason != self.end_reason:
            return False
        if self.status == JobStatus.COMPLETE and self.final_event is None:
            return event.data is None
        if self.status == JobStatus.ERROR and self.end_reason is None and len(self.error or "") <= _COMPARED:
            return bool(event.data == self.error)
        return True


ABORTED = Ending(status=JobStatus.ABORTED, end_reason=EndReason.ABORT)
CANCELLED = Ending(
    status=JobStatus.ERROR, end_reason=EndReason.CANCELLED, error="the run was cancelled before it was finished"
)
SHUTDOWN = Ending(
    status=JobStatus.ERROR, end_reason=EndReason.SHUTDOWN, error="the run's process shut down before it was finished"
)


def completed(final_event: Any = None) -> Ending:
    """The ending of a run that did its work."""
    return Ending(status=JobStatus.COMPLETE, final_event=final_event)


def failed(error: str | BaseException) -> Ending:
    """The ending of a run that failed. An exception without a text is named by its type."""
    if isinstance(error, str):
        text = error
    else:
        try:
            text = str(error) or type(error).__name__
        except Exception:  # noqa: BLE001 - a broken __str__ must not keep the job running
            text = type(error).__name__
    # Lone surrogates (names of files that are no UTF-8) have no JSON form: the end could never be stored.
    return Ending(status=JobStatus.ERROR, error=text.encode("utf-8", "replace").decode("utf-8"))


class Outcome:
    """How one run ends, as far as this process knows."""

    __slots__ = (
        "_ended", "_left", "_over", "_registrations", "aborting", "backend", "end_cursor", "interrupt", "job", "ours",
        "stands", "unstored", "wanted", "writing",
    )  # fmt: skip

    def __init__(self, job: Job, backend: Backend) -> None:
        self.job = job
        self.backend = backend
        self.interrupt = Interrupt(f"the run of job {job.stream_id!r} (generation {job.generation}) is over")
        self.aborting = False
        """An abort signal is here; its terminal record may not be."""
        self.wanted: Ending | None = None
        """What this run asked for first."""
        self.stands: Ending | None = None
        """What the terminal record says, once it is known."""
        self.ours = False
        """Whether that is what this run asked for."""
        self.unstored: Exception | None = None
        """Why the end could not be stored: NATS stays away, or the store was closed."""
        self.writing: asyncio.Task[Exception | None] | None = None
        self._over, self._ended = Latch(), Latch()
        self._registrations: list[Registration] = []
        self._left = False
        self.end_cursor: str | None = None
        """The cursor of the terminal record, once it was seen."""

    @property
    def is_over(self) -> bool:
        """Whether the run may not write any more: it has ended, or an end is on its way."""
        return self.stands is not None or self.aborting or self.wanted is not None

    @property
    def known(self) -> Ending | None:
        """The end that stands, else the one that is on its way."""
        return self.stands or (ABORTED if self.aborting else self.wanted)

    def closed_error(self) -> JobClosedError:
        """What a call after the end is told."""
        end = self.known
        if end is None:
            return JobClosedError(self.job.stream_id, self.job.generation)
        return JobClosedError(self.job.stream_id, self.job.generation, end.status, end.end_reason)

    def refuse_after_end(self) -> None:
        """Raise ``JobClosedError`` when the run is over."""
        if self.is_over:
            raise self.closed_error()

    async def wait_over(self) -> None:
        """Wait until the run has ended or was asked to."""
        await self._over.wait()

    def is_about(self, exc: BaseException) -> bool:
        """Whether an exception tells of the end of this very run."""
        job = self.job
        return isinstance(exc, JobClosedError) and exc.stream_id == job.stream_id and exc.generation == job.generation

    async def attach(self) -> None:
        """Listen for abort signals, and for the end, whoever writes it."""
        transport, job = self.backend.transport, self.job
        self._registrations = [await transport.on_abort(job.stream_id, self._on_abort, generation=job.generation)]
        self._registrations.append(await transport.on_end(job.stream_id, self._on_end, generation=job.generation))

    async def detach(self) -> None:
        """Stop listening; while the end is unknown (NATS away) it goes on until it becomes known."""
        self._left = True
        while self._registrations and self.stands is not None:
            with contextlib.suppress(UnavailableError, NotOpenError):
                await self._registrations.pop().dispose()

    async def ask(self, ending: Ending) -> None:
        """Ask for an end and wait for what stands; raises what ``JobRun.complete`` raises."""
        self.refuse_after_end()
        work = self.begin(ending)
        interrupted: asyncio.CancelledError | None = None
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as exc:
            # Our own interrupt while the end is being written: how the race went is the answer to this call.
            own = self.interrupt.fired and asyncio.current_task() is self.interrupt.task
            if not own or self.interrupt.by_others:
                raise
            await asyncio.wait({work}, timeout=self.backend.config.timing.abort)
            if not work.done():
                raise
            interrupted = exc
        if work.cancelled():
            raise NotOpenError("the JobManager was closed before the end of this run was stored; open another one")
        if (failure := work.result()) is not None:
            raise failure
        if not self.ours:
            raise self.closed_error() from interrupted

    def begin(self, ending: Ending) -> asyncio.Task[Exception | None]:
        """Ask for an end in a task of its own, which gives what went wrong and never raises."""
        self.wanted = ending
        self.writing = self.backend.tasks.spawn(self._write(ending), f"end of {self.job.stream_id}")
        return self.writing

    def shut_down(self) -> None:
        """Interrupt the body and end the run with ``SHUTDOWN``, unless it is over."""
        if not self.is_over:
            self._over.set()
            self.interrupt.fire()
            self.begin(SHUTDOWN)

    async def conclude(self, ending: Ending) -> None:
        """The block is left: make sure the generation ends, with ``ending`` unless something else came first."""
        if self.aborting and self.stands is None:
            # Whoever aborts writes the end, with the final event he has for the viewers; a mere signal has nobody.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.backend.config.timing.abort):
                    await self._ended.wait()
            ending = ABORTED
        if self.writing is not None:
            await asyncio.wait({self.writing})
        if self.stands is None and self.unstored is None:
            self.unstored = await self.begin(ending)
        await self.detach()

    async def _write(self, ending: Ending) -> Exception | None:
        try:
            event = await self.backend.store.end_job(
                self.job.stream_id,
                generation=self.job.generation,
                status=ending.status,
                end_reason=ending.end_reason,
                error=ending.error,
                final_event=ending.final_event,
            )
        except JobClosedError as exc:
            self.learn(exc)
            # Its log is gone: whoever removed it ended the run before, and how is not known any more.
            self._settle(Ending(status=exc.status or JobStatus.ERROR, end_reason=exc.end_reason), ours=False)
        except (UnavailableError, NotOpenError) as exc:
            self.unstored = exc
            return exc
        except Exception as exc:  # noqa: BLE001 - the one who asked raises it, and the run goes on
            self.wanted = None
            return exc
        else:
            self._heard(event)
        return None

    def learn(self, exc: JobClosedError) -> None:
        """A refused write tells how the run ended, often before the terminal record itself is here."""
        if self.is_about(exc) and exc.status is not None and exc.status.is_terminal:
            wanted = self.wanted
            ours = wanted is not None and (wanted.status, wanted.end_reason) == (exc.status, exc.end_reason)
            self._settle(Ending(status=exc.status, end_reason=exc.end_reason), ours=ours)

    def _on_abort(self) -> None:
        if not self.is_over:
            self.aborting = True
            self._over.set()
            self.interrupt.fire()

    def _on_end(self, event: StreamEvent) -> Awaitable[None] | None:
        self._heard(event)
        return self.detach() if self._left else None

    def _heard(self, event: StreamEvent) -> None:
        self.end_cursor = event.cursor
        ours = self.wanted is not None and self.wanted.stands_in(event)
        self._settle(Ending(status=_STATUS[event.type], end_reason=event.end_reason), ours=ours)

    def _settle(self, ending: Ending, *, ours: bool) -> None:
        if self.stands is None:
            self.stands = ending
            self.ours = ours
            self._over.set()
            self._ended.set()
            if not ours:
                self.interrupt.fire()
