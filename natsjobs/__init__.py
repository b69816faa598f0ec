"""Resumable LLM answers and agent runs on NATS: every viewer gets every event once, in order."""

from __future__ import annotations

from natsjobs.config import Config, Limits, Retention, Timing
from natsjobs.connect import connect
from natsjobs.errors import (
    ConfigError,
    EventTooLargeError,
    GenerationReplacedError,
    HistoryLostError,
    InvalidArgumentError,
    InvalidCursorError,
    InvalidEventError,
    InvalidIdError,
    JobClosedError,
    JobNotFoundError,
    JobRunningError,
    NatsJobsError,
    NotOpenError,
    ResumeError,
    SpendError,
    StreamFullError,
    UnavailableError,
    UnsupportedServerError,
)
from natsjobs.interfaces import EventReader, EventTransport, JobStore, Registration, Subscription
from natsjobs.jetstream import NatsEventTransport, NatsJobStore
from natsjobs.manager import JobManager
from natsjobs.memory import MemoryEventTransport, MemoryJobStore
from natsjobs.models import (
    AbortResult,
    ContentPart,
    EndReason,
    EventType,
    InputTokenDetails,
    Job,
    JobChanges,
    JobFields,
    JobStatus,
    ResumeState,
    RunStep,
    StreamEvent,
    UsageMetadata,
    UserMessage,
    to_dict,
)
from natsjobs.run import JobRun

__all__ = [
    "AbortResult",
    "Config",
    "ConfigError",
    "ContentPart",
    "EndReason",
    "EventReader",
    "EventTooLargeError",
    "EventTransport",
    "EventType",
    "GenerationReplacedError",
    "HistoryLostError",
    "InputTokenDetails",
    "InvalidArgumentError",
    "InvalidCursorError",
    "InvalidEventError",
    "InvalidIdError",
    "Job",
    "JobChanges",
    "JobClosedError",
    "JobFields",
    "JobManager",
    "JobNotFoundError",
    "JobRun",
    "JobRunningError",
    "JobStatus",
    "JobStore",
    "Limits",
    "MemoryEventTransport",
    "MemoryJobStore",
    "NatsEventTransport",
    "NatsJobStore",
    "NatsJobsError",
    "NotOpenError",
    "Registration",
    "ResumeError",
    "ResumeState",
    "Retention",
    "RunStep",
    "SpendError",
    "StreamEvent",
    "StreamFullError",
    "Subscription",
    "Timing",
    "UnavailableError",
    "UnsupportedServerError",
    "UsageMetadata",
    "UserMessage",
    "connect",
    "to_dict",
]

__version__ = "0.1.0"
