"""Every error natsjobs raises. No error of nats-py leaves the package.

The tree::

    NatsJobsError
    ├── JobNotFoundError
    ├── JobRunningError
    ├── JobClosedError
    ├── ResumeError
    │   ├── InvalidCursorError          (also ValueError)
    │   ├── HistoryLostError
    │   └── GenerationReplacedError
    ├── InvalidArgumentError            (also ValueError)
    │   └── InvalidIdError
    ├── InvalidEventError               (also ValueError)
    │   └── EventTooLargeError
    ├── ConfigError                     (also ValueError)
    ├── NotOpenError
    ├── SpendError
    ├── UnsupportedServerError
    └── UnavailableError
        ├── StreamFullError
        ├── ConnectionLostError
        └── PermissionDeniedError

Messages say what happened and what to do next; ids and positions are attributes, so nobody parses text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from natsjobs.models import EndReason, Job, JobStatus


class NatsJobsError(Exception):
    """Root of all errors of this package. They can be copied and pickled, so they cross process pools."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[NatsJobsError], args: tuple[Any, ...]) -> NatsJobsError:
    """The error as it was: its constructor takes ids, not the message that ``args`` holds."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class JobNotFoundError(NatsJobsError):
    """No job has this stream id: never created, deleted, or expired after its end."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(
            f"no job {stream_id!r}: it was never created, was deleted, or expired after its end; "
            "create it with start(), or wait for it with subscribe(..., wait=seconds)"
        )
        self.stream_id = stream_id


class JobRunningError(NatsJobsError):
    """A create with ``if_running="reject"`` met a running job (``job``)."""

    def __init__(self, job: Job) -> None:
        super().__init__(
            f"job {job.stream_id!r} is running (generation {job.generation}); "
            'subscribe to it, abort it, or create with if_running="replace"'
        )
        self.job = job


class JobClosedError(NatsJobsError):
    """A write came after the end of its generation, or for a generation that is not the newest.

    Attributes:
        stream_id: The job.
        generation: The generation that was written to (empty when the caller named none and none is left).
        status: How that generation ended, as far as it is known here.
        end_reason: Why, when its run did not say so itself.
    """

    def __init__(
        self, stream_id: str, generation: str, status: JobStatus | None = None, end_reason: EndReason | None = None
    ) -> None:
        which = f"generation {generation}" if generation else "the newest generation"
        how = f"ended as {status.value}" if status else "is over"
        why = f" ({end_reason.value})" if end_reason else ""
        super().__init__(
            f"{which} of job {stream_id!r} {how}{why}: nothing more can be written to it; "
            "start a new generation for the next turn"
        )
        self.stream_id = stream_id
        self.generation = generation
        self.status = status
        self.end_reason = end_reason


class ResumeError(NatsJobsError):
    """A reader cannot go on from where it wants to; its three forms tell why."""


class InvalidCursorError(ResumeError, ValueError):
    """The text is no cursor of this library; read from the start (``after=None``) instead."""

    def __init__(self, cursor: object) -> None:
        shown = repr(cursor)
        super().__init__(
            f"not a cursor: {shown[:80]}; pass StreamEvent.cursor or ResumeState.cursor unchanged, "
            "or None to read from the start"
        )
        self.cursor = cursor


class HistoryLostError(ResumeError):
    """Events after the cursor are no longer in the log: expired, cleared, deleted, or the server lost them."""

    def __init__(self, stream_id: str, detail: str) -> None:
        super().__init__(
            f"history of job {stream_id!r} is lost: {detail}; "
            "read the final answer from your own storage, or subscribe again without a cursor"
        )
        self.stream_id = stream_id


class GenerationReplacedError(ResumeError):
    """The cursor or generation belongs to an earlier generation; ``generation`` is the newest."""

    def __init__(self, stream_id: str, generation: str) -> None:
        super().__init__(
            f"job {stream_id!r} has a newer generation, {generation}; "
            "subscribe without a cursor to read it, or with follow=True to read the old rest first"
        )
        self.stream_id = stream_id
        self.generation = generation


class InvalidArgumentError(NatsJobsError, ValueError):
    """An argument has a value that can never be right; ``field`` names it. Nothing was sent."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidIdError(InvalidArgumentError):
    """An id is empty, too long, or no text that has a UTF-8 form. Nothing was sent."""


class InvalidEventError(NatsJobsError, ValueError):
    """The event has no JSON form. Nothing was sent and the job goes on."""


class EventTooLargeError(InvalidEventError):
    """Something is over its size limit: an event, or the record field ``field``. Nothing was sent.

    Attributes:
        size: Its size in bytes, encoded.
        limit: The limit in bytes.
        field: What was too large (``"event"`` for an event).
    """

    def __init__(self, size: int, limit: int, *, field: str = "event") -> None:
        super().__init__(
            f"{field} has {size} bytes as JSON, the limit is {limit}; split it, "
            "or store it elsewhere and send a reference"
        )
        self.size = size
        self.limit = limit
        self.field = field


class ConfigError(NatsJobsError, ValueError):
    """A setting is wrong, or two contradict each other; ``field`` names it (``timing.lease``)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class NotOpenError(NatsJobsError):
    """Used before it was opened or after it was closed; the message says how to open it."""


class SpendError(NatsJobsError):
    """Some usage entries could not be spent. This error is now the only place where they are.

    Attributes:
        failures: Pairs of the entry and the exception that ``spend`` raised for it.
        totals: Totals per model of the entries that were spent.
    """

    def __init__(self, failures: Sequence[tuple[Any, BaseException]], totals: Mapping[str, Any]) -> None:
        super().__init__(
            f"{len(failures)} usage entries could not be spent (first: {failures[0][1]!r}); "
            "retry or store SpendError.failures, nobody else has them"
        )
        self.failures = list(failures)
        self.totals = dict(totals)


class UnsupportedServerError(NatsJobsError):
    """The NATS server, or an existing stream or bucket, lacks something that is needed; says what and how to fix it."""


class UnavailableError(NatsJobsError):
    """NATS did not answer in time.

    Attributes:
        outcome_unknown: True when a write may have happened all the same; False when it certainly did not.
    """

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class StreamFullError(UnavailableError):
    """The stream is at its ``max_bytes``, the account at its limit, or the disk is full. Nothing was stored.

    Raise the limit, or shorten the retention. Events are refused from 90 % of ``max_bytes`` on, so that runs can end.

    Attributes:
        size: Bytes that the stream holds, where that is known.
        limit: Its ``max_bytes``, where that is known.
    """

    def __init__(self, message: str, *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class ConnectionLostError(UnavailableError):
    """The NATS connection that was *given* is closed for good, and natsjobs may not replace what is not its own.

    Waiting does not help: every call, and every reader that was waiting, gets this. Runs of this process are ended by
    other replicas when its lease lapses.
    """

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the NATS connection that was given is closed for good ({why}); natsjobs may not replace it: open another "
            "one and make the store, the transport or the manager anew, or give natsjobs.connect() the address, so "
            "that it replaces its connection itself"
        )


class PermissionDeniedError(UnavailableError):
    """The NATS user of this connection lacks a permission, and waiting does not bring it. Nothing was stored.

    Attributes:
        subject: The NATS subject that was refused.
        action: ``"publish"`` (also for every request) or ``"subscribe"``.
    """

    def __init__(self, doing: str, *, subject: str, action: str = "publish") -> None:
        super().__init__(
            f"{doing}: permission denied: this NATS user may not {action} to {subject}; allow it in the user's "
            f"permissions ({action}), or connect as a user that may (deploy/nats/accounts.conf: what each role needs)"
        )
        self.subject = subject
        self.action = action
