"""``JobManager``: what people use. Start, follow, abort and list jobs, on top of the two interfaces only.

It owns the runs that were started through it and the readers that were opened through it, and ends both when it is
left, the runs first, so that their readers here get the terminal record; it owns neither the store nor the transport.
Leaving takes a bounded time whatever NATS and the bodies of the runs do (``JobManager``). Background work that fails
never cancels a caller: it is logged, or raised by the call that it concerns. A manager may be entered and left in
different tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

from natsjobs.config import Config
from natsjobs.errors import NotOpenError
from natsjobs.interfaces import EventReader, EventTransport, IfRunning, JobStore
from natsjobs.manager.block import Blocks, RunBlock
from natsjobs.manager.interrupt import outlast
from natsjobs.manager.outcome import Backend
from natsjobs.manager.reading import ReaderBlock
from natsjobs.manager.run import JobRun
from natsjobs.models import AbortResult, Job, JobFields, JobStatus, ResumeState, UsageMetadata
from natsjobs.tasks import Tasks

_log = logging.getLogger(__name__)

_GLANCE = 0.01


class JobManager:
    """Runs and readers of one replica: an async context manager over a ``JobStore`` and an ``EventTransport``.

    Entering initializes the store; leaving is ``drain(0)`` and closes the readers opened here. Neither part is
    destroyed. Leaving waits ``timing.request`` for NATS to store the ends, then twice ``timing.abort`` for bodies that
    ignore their interruption; what is left of them then is logged and can store nothing. ``config`` of ``None`` means
    ``Config.from_env()``. Every method raises ``NotOpenError`` outside the block, ``InvalidIdError`` for an id that can
    never be one, and ``UnavailableError`` when NATS stays away, or at once when waiting would not help
    (``StreamFullError``, ``PermissionDeniedError``, ``ConnectionLostError``).
    """

    def __init__(self, store: JobStore, transport: EventTransport, *, config: Config | None = None) -> None:
        self._store = store
        self._transport = transport
        self._config = Config.from_env() if config is None else config
        self._ends = Tasks()
        self._works = Tasks()
        self._backend = Backend(store, transport, self._config, self._ends)
        self._blocks = Blocks()
        self._readers: set[ReaderBlock] = set()
        self._changed = asyncio.Event()
        self._opened = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        self._closed = False

    @property
    def store(self) -> JobStore:
        """The store given."""
        return self._store

    @property
    def transport(self) -> EventTransport:
        """The transport given."""
        return self._transport

    async def __aenter__(self) -> Self:
        if self._opened:
            raise NotOpenError("a JobManager can be entered once; make another one: async with natsjobs.connect(...)")
        await self._store.initialize()
        self._opened, self._loop = True, asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ends.closed:
            return
        closing = self._ends.spawn(self._close(), "close of the JobManager")
        timing = self._config.timing
        if (cut := await outlast(closing, patience=timing.request + timing.abort)) is not None:
            raise cut

    def start(
        self,
        stream_id: str,
        *,
        user_id: str,
        conversation_id: str | None = None,
        tenant_id: str | None = None,
        if_running: IfRunning = "replace",
        **fields: Unpack[JobFields],
    ) -> AbstractAsyncContextManager[JobRun, bool]:
        """Create a job, own it for the length of the block and keep its lease; leaving the block ends it.

        The body is interrupted when somebody aborts the job, and the block is then left quietly. Leaving completes
        the job; an exception fails it and goes on. When it was replaced, deleted or ended by somebody else the block
        raises ``JobClosedError``. The task that entered must leave.

        Raises:
            JobRunningError: On entering, with ``if_running="reject"``, when one is running.
            JobClosedError: On leaving, when the generation was ended by somebody else.
            NotOpenError: On leaving, when the manager was closed; on entering, when it takes no new runs.
            UnavailableError: When NATS stays away; on leaving only if the body raised nothing itself.
        """
        create = partial(
            self._store.create_job,
            stream_id,
            user_id,
            conversation_id,
            tenant_id=tenant_id,
            if_running=if_running,
            **fields,
        )
        return self._block(stream_id, create)

    async def spawn(
        self,
        stream_id: str,
        work: Callable[[JobRun], Awaitable[object]],
        *,
        user_id: str,
        conversation_id: str | None = None,
        tenant_id: str | None = None,
        if_running: IfRunning = "replace",
        **fields: Unpack[JobFields],
    ) -> Job:
        """Await ``work(run)`` in a ``start`` block in a task that this manager holds; returns when the job exists.

        What ``work`` raises is in the job's record and logged. Raises what entering ``start`` raises.
        """
        create = partial(
            self._store.create_job,
            stream_id,
            user_id,
            conversation_id,
            tenant_id=tenant_id,
            if_running=if_running,
            **fields,
        )
        self._require_runs()
        created: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        task = self._works.spawn(self._work(self._block(stream_id, create), work, created), f"run of {stream_id}")
        try:
            return await created
        except asyncio.CancelledError:
            task.cancel()  # Nobody would know of it.
            await outlast(task, patience=self._config.timing.request, cancelled=True)
            raise

    async def drain(self, timeout: float | None = None) -> int:
        """Take no new runs, wait for the open ones, and after ``timeout`` seconds end the rest with ``SHUTDOWN``.

        A run of the calling task itself is not waited for; with a ``timeout`` it is ended with the rest.

        Returns:
            How many runs it ended.
        """
        self._require_open()
        return await self._drain(timeout)

    def subscribe(
        self,
        stream_id: str,
        *,
        after: str | None = None,
        generation: str | None = None,
        wait: float = 0.0,
        follow: bool = False,
    ) -> AbstractAsyncContextManager[EventReader, None]:
        """Read a job from any replica: replay, then live, then the terminal record.

        Args:
            stream_id: The job.
            after: The cursor of the last event already seen; ``None``: from the first event.
            generation: Only this generation.
            wait: Seconds to wait for a job that is not there yet.
            follow: Go on with the next generation instead of ending.

        Raises (on entering):
            JobNotFoundError: No such job.
            HistoryLostError: The events after the cursor are gone.
            GenerationReplacedError: A newer generation exists.
            InvalidCursorError: The text is no cursor.
        """
        block = self._transport.read(stream_id, after=after, generation=generation, wait=wait, follow=follow)
        return ReaderBlock(block, self._readers, self._require_open)

    async def abort(self, stream_id: str, *, generation: str | None = None, final_event: Any = None) -> AbortResult:
        """Stop a run wherever it is; afterwards the job has ended. Does not wait for the body's clean-up.

        Viewers get ``final_event``, perhaps before this returns: save, then answer, and let pages refetch on the
        answer. A run that aborts itself is interrupted after this has returned.
        """
        self._require_open()
        with ExitStack() as holds:
            for block in self._blocks:
                if block.stream_id == stream_id and block.outcome is not None and block.is_here:
                    holds.enter_context(block.outcome.interrupt.held())
            return await self._store.abort_job(stream_id, generation=generation, final_event=final_event)

    async def claim_usage(self, stream_id: str, *, generation: str | None = None) -> list[UsageMetadata]:
        """The usage entries nobody has claimed yet: each goes to exactly one caller, ever. Bill what you get."""
        self._require_open()
        return await self._store.claim_usage(stream_id, generation=generation)

    async def resume_state(self, stream_id: str) -> ResumeState | None:
        """What a client needs to draw the job and subscribe after ``cursor``; ``None``: no such job."""
        self._require_open()
        return await self._store.get_resume_state(stream_id)

    async def get(self, stream_id: str) -> Job | None:
        """The newest generation of the job."""
        self._require_open()
        return await self._store.get_job(stream_id)

    async def list_jobs(
        self, *, user_id: str | None = None, status: JobStatus | str | None = None, tenant_id: str | None = None
    ) -> list[Job]:
        """The newest generation of each stream id, newest first. ``None`` does not filter."""
        self._require_open()
        return await self._store.list_jobs(user_id=user_id, status=status, tenant_id=tenant_id)

    async def active(self, user_id: str, *, tenant_id: str | None = None) -> list[str]:
        """Stream ids of the user's jobs that have not ended."""
        self._require_open()
        return await self._store.get_active_job_ids_by_user(user_id, tenant_id=tenant_id)

    async def count_subscribers(self, stream_id: str) -> int:
        """Subscribers on all replicas that answer within 0.3 s; only those here, if the others may not be asked.

        Raises:
            UnavailableError: NATS does not answer.
        """
        self._require_open()
        return await self._transport.count_subscribers(stream_id)

    async def count_events(self, stream_id: str, *, generation: str | None = None) -> int:
        """Events stored so far, of the newest generation unless one is named; cheap, and not a subscriber."""
        self._require_open()
        return await self._transport.count_events(stream_id, generation=generation)

    def _require_open(self) -> None:
        if self._closed:
            raise NotOpenError("this JobManager was closed; open another one: async with natsjobs.connect(...) as jobs")
        if not self._opened:
            raise NotOpenError("this JobManager is not open; open it first: async with JobManager(...) as jobs")
        if self._loop is not asyncio.get_running_loop():
            raise NotOpenError(
                "this JobManager was opened in another event loop, where its connection lives; open one in this loop, "
                "or call this one with asyncio.run_coroutine_threadsafe"
            )

    def _require_runs(self) -> None:
        self._require_open()
        if self._draining:
            raise NotOpenError("this JobManager is draining and takes no new runs; start it on another one")

    def _block(self, stream_id: str, create: Callable[[], Awaitable[Job]]) -> RunBlock:
        return RunBlock(
            stream_id,
            create,
            backend=self._backend,
            blocks=self._blocks,
            require_open=self._require_runs,
            on_left=self._changed.set,
        )

    async def _work(
        self, block: RunBlock, work: Callable[[JobRun], Awaitable[object]], created: asyncio.Future[Job]
    ) -> None:
        try:
            async with block as run:
                if not created.done():
                    created.set_result(run.job)
                await work(run)
        except asyncio.CancelledError:
            created.cancel()
            raise
        except Exception as exc:
            if not created.done():
                created.set_exception(exc)
            elif block.outcome is not None and (block.outcome.is_about(exc) or isinstance(exc, NotOpenError)):
                _log.info("run of job %r was ended from outside: %s", block.stream_id, exc)
            else:
                raise  # The tasks log it.

    async def _drain(self, timeout: float | None) -> int:
        self._draining = True
        await self._wait_left({block for block in self._blocks if not block.is_here}, timeout)
        if timeout is None:
            return 0
        rest = [block for block in self._blocks if not block.is_over]
        for block in rest:
            block.shut_down()
        if writing := {work for block in rest if (work := block.writing) is not None}:
            await asyncio.wait(writing, timeout=self._config.timing.request)
        # The interrupted bodies get the chance to clean up with a store that is still there, readers here to the end.
        patience = self._config.timing.abort
        await asyncio.gather(
            self._wait_left({block for block in rest if not block.is_here}, patience, ending=True),
            self._wait_read(rest, patience),
        )
        for block in rest:
            if block in self._blocks and not block.is_here and not block.waits_for_nats:
                _log.warning(
                    "the run of job %r was interrupted and has not stopped within %s s; it has ended, and nothing it "
                    "does from now on is stored",
                    block.stream_id,
                    patience,
                )
        return len(rest)

    async def _wait_left(self, blocks: set[RunBlock], timeout: float | None, *, ending: bool = False) -> None:
        """Wait until these blocks are left; ``ending``: or wait only for an end that cannot be stored."""
        try:
            async with asyncio.timeout(timeout):
                while any(b in self._blocks and not (ending and b.waits_for_nats) for b in blocks):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def _wait_read(self, ended: list[RunBlock], timeout: float) -> None:
        """Wait until those who read these runs here have got their terminal records."""
        outcomes = [block.outcome for block in ended if block.outcome is not None]
        ends = {one.job.generation: one.end_cursor for one in outcomes if one.end_cursor is not None}
        deadline = time.monotonic() + timeout
        while any(reader.lacks(ends) for reader in self._readers) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_GLANCE)  # a callback per reader would cost every event something

    async def _close(self) -> None:
        self._closed = True
        await self._drain(0)
        for reader in list(self._readers):
            await reader.close()
        await self._ends.close()
        await self._works.close(patience=self._config.timing.abort)
