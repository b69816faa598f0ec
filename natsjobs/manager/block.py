"""The block around a run that ``JobManager.start`` gives, and the open ones of a manager.

The block owns the table of how a block ends: what the body did and what became of the generation decide which
terminal record is asked for and whether the block is left quietly or with an exception. What the record in the log
finally says is ``Outcome``'s; how a task is interrupted is ``Interrupt``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

from natsjobs.errors import JobClosedError, NotOpenError, PermissionDeniedError, StreamFullError
from natsjobs.manager.interrupt import outlast
from natsjobs.manager.outcome import CANCELLED, SHUTDOWN, Backend, Ending, Outcome, completed, failed
from natsjobs.manager.run import JobRun
from natsjobs.models import Job
from natsjobs.telemetry.listening import hub


class Blocks:
    """The open blocks of a manager, found by stream id."""

    def __init__(self) -> None:
        """None."""
        self._all: set[RunBlock] = set()
        self._of: dict[str, list[RunBlock]] = {}

    def __iter__(self) -> Iterator[RunBlock]:
        return iter(list(self._all))

    def __contains__(self, block: RunBlock) -> bool:
        return block in self._all

    def of(self, stream_id: str) -> Sequence[RunBlock]:
        """Those of one stream id."""
        return self._of.get(stream_id, ())

    def add(self, block: RunBlock) -> None:
        """It is being entered."""
        self._all.add(block)
        self._of.setdefault(block.stream_id, []).append(block)

    def discard(self, block: RunBlock) -> None:
        """It was left; twice is fine."""
        if block in self._all:
            self._all.discard(block)
            left = self._of[block.stream_id]
            left.remove(block)
            if not left:
                del self._of[block.stream_id]


class RunBlock:
    """``async with`` around a run: creates the job and owns it, interrupts the body, and ends the generation."""

    __slots__ = (
        "_backend", "_blocks", "_body_left", "_create", "_given_up", "_holds", "_leave_span", "_on_left",
        "_require_open", "outcome", "stream_id", "task",
    )  # fmt: skip

    def __init__(
        self,
        stream_id: str,
        create: Callable[[], Awaitable[Job]],
        *,
        backend: Backend,
        blocks: Blocks,
        require_open: Callable[[], None],
        on_left: Callable[[], None],
    ) -> None:
        self.stream_id = stream_id
        self.task: asyncio.Task[Any] | None = None
        self.outcome: Outcome | None = None
        self._create: Callable[[], Awaitable[Job]] | None = create
        self._backend = backend
        self._blocks = blocks
        self._require_open = require_open
        self._on_left = on_left
        self._given_up: Ending | None = None
        self._body_left = False
        self._holds: ExitStack | None = None
        self._leave_span: Callable[[], None] | None = None

    async def __aenter__(self) -> JobRun:
        if self.task is not None:
            raise RuntimeError("a start() block can be entered once; call start() again for another generation")
        self._require_open()
        self.task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("start() must be entered in an asyncio task: that is what an abort interrupts")
        for outer in self._blocks.of(self.stream_id):
            # A nested start of the same id replaces the outer run; its interrupt must not hit the start that causes it.
            if outer.is_here and outer.outcome is not None:
                self._holds = self._holds or ExitStack()
                self._holds.enter_context(outer.outcome.interrupt.held())
        self._blocks.add(self)
        try:
            outcome = await self._open()
        except BaseException:
            self._leave()
            raise
        if hub.tracer is not None:
            with hub.tracing() as tracer:
                self._leave_span = tracer.enter_run((self.stream_id, outcome.job.generation))
        outcome.interrupt.arm(task)
        return JobRun(outcome)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            here = asyncio.current_task()
        except RuntimeError:
            return False  # The interpreter closes a forgotten coroutine without a loop: nothing can be awaited here.
        outcome = self.outcome
        if outcome is None:
            raise RuntimeError("this start() block was not entered")
        self._body_left = True
        self._on_left()
        try:
            cut = await outcome.interrupt.release()
            cut = await self._conclude(outcome, exc, cut)
        finally:
            self._leave()
        if here is not self.task:
            if cut is not None:
                raise cut
            raise RuntimeError(
                f"the run of job {self.stream_id!r} was left in another task than it was entered in: "
                "that task would be the one interrupted. Enter and leave it in one task, or use spawn()"
            ) from exc
        return self._verdict(outcome, exc, cut)

    @property
    def is_here(self) -> bool:
        """Whether the calling task is inside this block."""
        return self.task is asyncio.current_task()

    @property
    def is_over(self) -> bool:
        """Whether the run has ended or is about to; one that is only being created has not."""
        return self.outcome is not None and self.outcome.is_over

    @property
    def waits_for_nats(self) -> bool:
        """Whether all that is missing is an end that cannot be stored yet: the body is done."""
        return self._body_left and self.writing is not None and not self.writing.done()

    @property
    def writing(self) -> asyncio.Task[Any] | None:
        """The task that writes the end, if one does."""
        return None if self.outcome is None else self.outcome.writing

    def shut_down(self) -> None:
        """End the run with ``SHUTDOWN``, also when it is only being created."""
        if self.outcome is not None:
            self.outcome.shut_down()
        elif self._given_up is None:
            self._given_up = SHUTDOWN

    async def _open(self) -> Outcome:
        """Create in a task of the manager, so that being cancelled in the middle leaves no running job."""
        tasks, patience = self._backend.tasks, self._backend.config.timing.request
        work = tasks.spawn(self._make(), f"start of {self.stream_id}")
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            self._given_up = self._given_up or CANCELLED
            undoing: asyncio.Task[Any] = work
            if self.outcome is not None:
                undoing = tasks.spawn(self._undo(self.outcome, CANCELLED), f"end of {self.stream_id}")
            await outlast(undoing, patience=patience, cancelled=True)
            raise
        made = None if work.cancelled() else work.result()
        if isinstance(made, Exception):
            raise made
        if self._given_up is not None or made is None:
            raise NotOpenError("the JobManager was closed while the run was being started; open another one")
        return made

    async def _make(self) -> Outcome | Exception:
        create, self._create = self._create, None  # with all that the job was made of
        assert create is not None
        try:
            outcome = Outcome(await create(), self._backend)
        except Exception as exc:  # noqa: BLE001 - raised by the one who waits for it
            return exc
        try:
            await outcome.attach()
        except Exception as exc:  # noqa: BLE001 - raised by the one who waits for it
            await self._undo(outcome, failed(exc))
            return exc
        if self._given_up is not None:
            await self._undo(outcome, self._given_up)
        else:
            self.outcome = outcome
        return outcome

    async def _undo(self, outcome: Outcome, ending: Ending) -> None:
        await outcome.interrupt.release()
        await outcome.conclude(ending)

    async def _conclude(
        self, outcome: Outcome, exc: BaseException | None, cut: asyncio.CancelledError | None
    ) -> asyncio.CancelledError | None:
        """See the generation ended and stored, whatever happens to this task; what else arrived for it meanwhile."""
        if self._backend.tasks.closed:
            await outcome.detach()  # The manager is closed and has ended the run.
            return cut
        if exc is None:
            ending = completed()
        elif isinstance(exc, Exception):
            ending = failed(exc)
        else:
            ending = CANCELLED
        work = self._backend.tasks.spawn(outcome.conclude(ending), f"end of {self.stream_id}")
        # A task that was asked to stop waits for the end only so long; an interrupt of ours is no such request.
        stop = ending is CANCELLED and not self._is_own(outcome, exc) if exc is not None else False
        cancelled = cut is not None or stop or outcome.interrupt.by_others
        later = await outlast(work, patience=self._backend.config.timing.request, cancelled=cancelled)
        return cut or later

    def _leave(self) -> None:
        if self._leave_span is not None and self.is_here:
            self._leave_span()
        self._blocks.discard(self)
        self._on_left()
        if self._holds is not None:
            self._holds.close()

    def _is_own(self, outcome: Outcome, exc: BaseException) -> bool:
        """Whether an exception only says that this run is over."""
        if isinstance(exc, BaseExceptionGroup):
            parts = cast("BaseExceptionGroup[BaseException]", exc).exceptions
            return all(self._is_own(outcome, part) for part in parts)
        if isinstance(exc, asyncio.CancelledError):
            return outcome.interrupt.fired
        return outcome.is_about(exc)

    def _verdict(self, outcome: Outcome, exc: BaseException | None, cut: asyncio.CancelledError | None) -> bool:
        """True: the block is left quietly; False: the body's exception goes on."""
        own = exc is not None and self._is_own(outcome, exc)
        if cut is not None and (own or exc is None or isinstance(exc, Exception)):
            raise cut
        if exc is not None and not own:
            if outcome.stands is None and outcome.unstored is not None:
                exc.add_note(f"and the end of job {self.stream_id!r} could not be stored: {outcome.unstored}")
            return False
        if exc is not None and outcome.interrupt.by_others:
            # Somebody else asked the task to stop, too: that always goes on, also where the body turned it into
            # something of ours (a TaskGroup gives the errors of its tasks instead).
            if isinstance(exc, asyncio.CancelledError):
                return False
            raise asyncio.CancelledError from exc
        return self._quietly(outcome, exc)

    def _quietly(self, outcome: Outcome, exc: BaseException | None) -> bool:
        """The verdict when the body has nothing to say but that the run is over."""
        end = outcome.stands
        if end is not None and end.end_reason != SHUTDOWN.end_reason:
            if outcome.ours and not end.is_abort:
                return False
            if end.is_abort:
                return True
            if isinstance(exc, JobClosedError):
                return False
            if isinstance(outcome.unstored, StreamFullError | PermissionDeniedError):  # not all of it is stored
                raise outcome.unstored from exc
            raise outcome.closed_error() from exc
        if end is None and outcome.wanted is not SHUTDOWN and outcome.unstored is not None:
            raise outcome.unstored from exc
        raise NotOpenError(
            f"the JobManager was closed while job {self.stream_id!r} was running, which ended it; "
            "open another one (async with natsjobs.connect(...)) for new runs"
        ) from exc
