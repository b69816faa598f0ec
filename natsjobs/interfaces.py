"""The two interfaces, ``JobStore`` and ``EventTransport``, and the handles they give out.

Everything that can touch the network is a coroutine or an async context manager; everything else is not. After the
first one or two identifying arguments all are keyword-only. The Protocols are for calling: methods are added in
minor releases. A store raises ``NotOpenError`` before ``initialize``, both do after ``destroy`` (a transport opens
with its first use); both raise ``InvalidIdError`` for an id that can never be one, and ``UnavailableError`` when NATS
does not answer in time.

Every write takes ``generation``: when another one is the newest, nothing changes and it is a ``JobClosedError``.
Without it the newest is meant.

Three forms of ``UnavailableError`` come at once, from any call and in mid-iteration, because waiting mends none:
``StreamFullError`` (no room for a write), ``PermissionDeniedError`` (this NATS user may not) and
``ConnectionLostError`` (the connection that was given is closed). The first two, from the call that ends a generation
as done, say that events of it were refused: it has ended as an error instead, or will when that is possible.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeAlias, Unpack

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

Handler: TypeAlias = Callable[[Any], Awaitable[None] | None]
"""Called with one event value; plain or async."""

Callback: TypeAlias = Callable[[], Awaitable[None] | None]
"""Called with nothing; plain or async."""

EndCallback: TypeAlias = Callable[[StreamEvent], Awaitable[None] | None]
"""Called with a terminal event; plain or async."""

IfRunning: TypeAlias = Literal["replace", "reject"]


class Subscription(Protocol):
    """One subscriber of ``EventTransport.subscribe``."""

    async def unsubscribe(self) -> None:
        """Detach; idempotent, affects only itself. When it returns no handler runs any more."""
        ...


class Registration(Protocol):
    """One registered callback."""

    async def dispose(self) -> None:
        """Remove just this callback; idempotent."""
        ...


class EventReader(Protocol):
    """Iterates one generation: replay, live, terminal record, end.

    A cancelled ``__anext__`` loses nothing and the reader goes on, so time-outs around it are fine. It ends normally
    only after a terminal record. May be entered, iterated and left in different tasks, one at a time.

    Raises (in mid-iteration):
        HistoryLostError: The events that come next are no longer in the log.
        GenerationReplacedError: A newer generation exists and this one's log has no end to give.
        NotOpenError: The reader was left, or what it belongs to was closed.
        PermissionDeniedError: The log may not be read (any more); when it may again, the same reader goes on.
        ConnectionLostError: The connection that was given is closed for good.
    """

    def __aiter__(self) -> EventReader:
        """Itself: a second ``async for`` goes on where the first stopped."""
        ...

    async def __anext__(self) -> StreamEvent:
        """The next event."""
        ...

    @property
    def job(self) -> Job:
        """The newest job when the reader was entered; with ``follow``: when it entered the generation that it reads."""
        ...

    @property
    def cursor(self) -> str | None:
        """The cursor of the event given last; ``None`` before the first."""
        ...

    @property
    def stored(self) -> int:
        """How many events the generation has, as far as is known here; those up to it can be had at once."""
        ...


class JobStore(Protocol):
    """Job metadata, content and usage."""

    async def initialize(self) -> None:
        """Connect what is needed, create or check stream and bucket, start background work. Twice is fine."""
        ...

    async def check(self) -> None:
        """Ask NATS for the stream and the bucket, now.

        Raises:
            UnavailableError: One of them does not answer or is gone.
        """
        ...

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
        """Make a new generation, status running, owned by this replica until it ends.

        A running one of the same id is replaced (it ends with ``REPLACED``). While another create of the same id
        runs, one of them replaces the other; both return, and the loser's run is fenced.

        Raises:
            JobRunningError: ``if_running="reject"`` and one is running.
            StreamFullError: Its events would be refused; a running one goes on.
            EventTooLargeError: ``metadata`` or ``user_message`` is too large for a record.
            TypeError: A field that cannot be set.
        """
        ...

    async def get_job(self, stream_id: str) -> Job | None:
        """The newest generation."""
        ...

    async def has_job(self, stream_id: str) -> bool:
        """Whether ``get_job`` would find one."""
        ...

    async def update_job(
        self, stream_id: str, *, expected_generation: str | None = None, **changes: Unpack[JobChanges]
    ) -> bool:
        """Set the named fields; ``field=None`` clears it. A terminal ``status`` ends the generation (log and record).

        Returns:
            False, and nothing changed: missing job, other generation, or a terminal status for an ended job.

        Raises:
            TypeError: A field that cannot be set.
            EventTooLargeError: The record, or the final event, would become too large; nothing was changed.
        """
        ...

    async def delete_job(self, stream_id: str, *, expected_generation: str | None = None) -> bool:
        """End it if it runs (``DELETED``), then remove record, log, steps, index. Unclaimed usage stays claimable."""
        ...

    async def list_jobs(
        self, *, user_id: str | None = None, status: JobStatus | str | None = None, tenant_id: str | None = None
    ) -> list[Job]:
        """The newest generation of each stream id, newest first. ``None`` does not filter."""
        ...

    async def get_running_jobs(self) -> list[Job]:
        """``list_jobs(status="running")``."""
        ...

    async def get_active_job_ids_by_user(self, user_id: str, *, tenant_id: str | None = None) -> list[str]:
        """Stream ids of the user's jobs that have not ended; stale index entries are repaired on the way."""
        ...

    async def get_job_count(self) -> int:
        """How many jobs there are, exact for all that do not come or go between call and return."""
        ...

    async def get_job_count_by_status(self, status: JobStatus | str) -> int:
        """How many jobs have this status, exact for all that do not change between call and return."""
        ...

    async def cleanup(self) -> int:
        """One sweep over expired, orphaned and stale jobs; how many it ended or removed."""
        ...

    async def destroy(self) -> None:
        """End the running jobs owned here (``SHUTDOWN``), stop background work, release what it opened; data stays."""
        ...

    def set_graph(self, stream_id: str, graph: object) -> None:
        """A live object with optional ``content_parts`` and ``run_steps``; held weakly where possible."""
        ...

    def set_content_parts(self, stream_id: str, parts: list[ContentPart]) -> None:
        """A live list of content parts that wins over the log while it has content."""
        ...

    async def get_content_parts(self, stream_id: str) -> list[ContentPart] | None:
        """The live object's content on this replica, else folded from the log; ``None`` when there is nothing."""
        ...

    async def get_run_steps(self, stream_id: str) -> list[RunStep]:
        """The live object's run steps on this replica, else the saved ones and those of the log, merged by id."""
        ...

    async def save_run_steps(self, stream_id: str, steps: Sequence[RunStep], *, generation: str | None = None) -> None:
        """Store the whole list of run steps.

        Raises:
            JobNotFoundError: No such job.
            JobClosedError: The generation has ended or is not the newest.
        """
        ...

    async def get_resume_state(self, stream_id: str) -> ResumeState | None:
        """Folded from the log up to its ``cursor``; ``None``: no such job.

        It may be ``timing.linger`` (``linger_unwatched``) behind what was emitted; whoever subscribes has that at once.
        """
        ...

    async def append_chunk(self, stream_id: str, event: Any, *, generation: str | None = None) -> int:
        """Store one event; its index. Subscribers get it too, so use this or ``emit_chunk``, not both.

        Raises:
            JobNotFoundError: No such job.
            JobClosedError: The generation has ended.
            InvalidEventError: The event has no JSON form.
        """
        ...

    async def clear_content_state(self, stream_id: str, *, generation: str | None = None) -> None:
        """Remove events and steps of the generation; readers behind it get ``HistoryLostError``."""
        ...

    def set_collected_usage(self, stream_id: str, usage: list[Any]) -> None:
        """A list that model callbacks append to; its entries are recorded, each once, at flush, end and abort."""
        ...

    async def get_collected_usage(self, stream_id: str) -> list[UsageMetadata]:
        """Recorded (and on this replica listed) entries that nobody has claimed."""
        ...

    async def record_usage(
        self, stream_id: str, usage: UsageMetadata | Mapping[str, Any], *, generation: str | None = None
    ) -> None:
        """Record one model call, durable when it returns; allowed after the end too.

        Raises:
            JobNotFoundError: No such job and no ``generation``.
        """
        ...

    async def claim_usage(self, stream_id: str, *, generation: str | None = None) -> list[UsageMetadata]:
        """The entries nobody has claimed yet: each goes to exactly one caller, ever. Bill what you get.

        A claimer that dies after its claim loses it (at most once, on purpose).
        """
        ...

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
        """End a generation; the terminal record that now stands, ours or whoever was first. Log and record agree.

        Queued events of this replica are stored before it. Used by ``JobRun``.

        Raises:
            JobClosedError: The generation's log is gone.
            UnavailableError: Not stored within ``timing.give_up``; it is retried in the background.
        """
        ...

    async def abort_job(self, stream_id: str, *, generation: str | None = None, final_event: Any = None) -> AbortResult:
        """Stop the run wherever it is; afterwards the job has ended. What ``JobManager.abort`` returns."""
        ...


class EventTransport(Protocol):
    """Events from a producer to any number of subscribers on any replica."""

    async def subscribe(
        self,
        stream_id: str,
        *,
        on_chunk: Handler,
        on_done: Handler | None = None,
        on_error: Handler | None = None,
        on_aborted: Handler | None = None,
    ) -> Subscription:
        """Live events from now on, over all later generations, until ``unsubscribe``.

        When it returns, nothing later is missed. Handlers are called one at a time, in order; one that raises is
        logged and loses nothing of later events. The final event of an aborted generation goes to ``on_aborted``,
        without that handler to ``on_done``. A stream id without a job is fine.
        """
        ...

    def read(
        self,
        stream_id: str,
        *,
        after: str | None = None,
        generation: str | None = None,
        wait: float = 0.0,
        follow: bool = False,
    ) -> AbstractAsyncContextManager[EventReader, None]:
        """Replay, then live, then the terminal record; counts as a subscriber. See ``JobManager.subscribe``."""
        ...

    async def emit_chunk(self, stream_id: str, event: Any, *, generation: str | None = None) -> None:
        """Queue one event, sent within ``timing.linger`` (``linger_unwatched``); waits only for room in the queue.

        Raises:
            JobNotFoundError: No such job.
            JobClosedError: The generation has ended.
            InvalidEventError: The event has no JSON form; nothing was queued.
        """
        ...

    async def flush(self, stream_id: str, *, generation: str | None = None) -> None:
        """Wait until what was queued here before it is stored; raises what kept it from being stored."""
        ...

    async def emit_done(self, stream_id: str, event: Any, *, generation: str | None = None) -> None:
        """End the generation as complete with a final event; returns when stored.

        Raises:
            JobNotFoundError: No such job.
            JobClosedError: The generation has already ended.
        """
        ...

    async def emit_error(self, stream_id: str, error: str, *, generation: str | None = None) -> None:
        """End the generation as an error with a text; returns when stored. Raises as ``emit_done`` does."""
        ...

    async def emit_abort(self, stream_id: str, *, generation: str | None = None) -> bool:
        """Signal an abort to all replicas; True: the owner's callbacks have run (within ``timing.abort``)."""
        ...

    async def on_abort(self, stream_id: str, callback: Callback, *, generation: str | None = None) -> Registration:
        """Call back at every abort signal for ``generation`` (``None``: the one that is newest at the signal)."""
        ...

    async def on_end(self, stream_id: str, callback: EndCallback, *, generation: str | None = None) -> Registration:
        """Call back once with the terminal event of ``generation`` (``None``: the newest), whoever wrote it.

        Raises:
            JobNotFoundError: No such job and no ``generation``.
        """
        ...

    def get_subscriber_count(self, stream_id: str) -> int:
        """Subscribers on this replica; never touches the network."""
        ...

    def is_first_subscriber(self, stream_id: str) -> bool:
        """Whether exactly one is attached on this replica."""
        ...

    async def count_subscribers(self, stream_id: str) -> int:
        """Subscribers on all replicas that answer within 0.3 s. Raises UnavailableError when NATS does not answer."""
        ...

    async def count_events(self, stream_id: str, *, generation: str | None = None) -> int:
        """Events stored so far, by one look at the log's end; not a subscriber. 0 for a log that is not there."""
        ...

    async def on_all_subscribers_left(self, stream_id: str, callback: Callback) -> Registration:
        """Call back whenever the last subscriber of all replicas has left; on every cycle, never early."""
        ...

    async def cleanup(self, stream_id: str) -> None:
        """Drop every local subscriber and callback of the stream id; later handles of it are no-ops."""
        ...

    def get_tracked_stream_ids(self) -> list[str]:
        """Stream ids with local subscribers or callbacks."""
        ...

    async def destroy(self) -> None:
        """Close readers, subscriptions and callbacks of this transport; the connection stays."""
        ...
