"""The records people hold: jobs, events, results. Pure values; nothing here touches the network.

All are frozen, keyword-only ``msgspec.Struct``s. Python attributes are snake_case, the wire form (``to_dict``) is
camelCase, except token usage, which keeps the snake_case names that providers write. Fields and enum values that
a newer replica wrote and this one does not know are accepted: unknown fields are ignored, unknown statuses are
kept as they are and never count as terminal (design-corrections C5).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias, TypedDict

import msgspec

ContentPart: TypeAlias = dict[str, Any]
"""One part of an answer, as JSON: ``{"type": "text", "text": …}``, a tool call, …"""

RunStep: TypeAlias = dict[str, Any]
"""One step of an agent run, as JSON (LibreChat's ``on_run_step`` data)."""


class _OpenEnum(StrEnum):
    """An enum that keeps values it does not know, so that replicas of two versions can run side by side."""

    @classmethod
    def _missing_(cls, value: object) -> _OpenEnum | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value.upper()
        member._value_ = value
        return member

    @property
    def is_known(self) -> bool:
        """Whether this version of the library knows the value."""
        return self.value in type(self)._value2member_map_


class JobStatus(_OpenEnum):
    """How a job stands. More will follow (not terminal), so test ``is_terminal``, never "not running"."""

    RUNNING = "running"
    COMPLETE = "complete"
    ERROR = "error"
    ABORTED = "aborted"

    @property
    def is_terminal(self) -> bool:
        """Whether the generation has ended."""
        return self.value in _TERMINAL


_TERMINAL = frozenset({"complete", "error", "aborted"})


class EndReason(_OpenEnum):
    """Why a generation ended when its run did not say so itself; ``None`` after ``complete`` or ``fail``."""

    ABORT = "abort"
    """Somebody aborted it. Status aborted."""
    REPLACED = "replaced"
    """The same stream id was created again while it ran. Status aborted."""
    DELETED = "deleted"
    """It was deleted while it ran. Status aborted."""
    OWNER_LOST = "owner_lost"
    """The process that ran it is gone, or was away from NATS for longer than its lease. Status error."""
    EXPIRED = "expired"
    """Nothing happened in it for ``retention.running``. Status error."""
    CANCELLED = "cancelled"
    """Its block was cancelled from outside: a time-out, a task group, Ctrl-C. Status error."""
    SHUTDOWN = "shutdown"
    """Its manager or store was closed while it ran, or ``drain`` ran out. Status error."""


class EventType(_OpenEnum):
    """What a reader got. More (not terminal) may follow: skip what you do not know."""

    EVENT = "event"
    DONE = "done"
    ERROR = "error"
    ABORTED = "aborted"


def _wire_name(name: str) -> str:
    if name == "icon_url":
        return "iconURL"
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class _Record(msgspec.Struct, frozen=True, kw_only=True, rename=_wire_name):
    """Base of the camelCase records."""


class UserMessage(_Record, frozen=True, kw_only=True):
    """The user's message that a generation answers."""

    message_id: str
    parent_message_id: str | None = None
    conversation_id: str | None = None
    text: str | None = None


class Job(_Record, frozen=True, kw_only=True):
    """The newest generation of a stream id. A value: changing a job that was read is impossible and changes nothing.

    ``created_at``, ``completed_at`` and ``last_active_at`` are milliseconds since the epoch; ``created_at`` is
    strictly larger than that of the previous generation of the same stream id. ``final_event`` is JSON text.
    ``owner`` is the id of the replica that runs it, ``None`` while nobody does.
    """

    stream_id: str
    user_id: str
    status: JobStatus
    created_at: int
    generation: str
    completed_at: int | None = None
    conversation_id: str | None = None
    error: str | None = None
    user_message: UserMessage | None = None
    response_message_id: str | None = None
    sender: str | None = None
    sync_sent: bool = False
    final_event: str | None = None
    endpoint: str | None = None
    icon_url: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    owner: str | None = None
    end_reason: EndReason | None = None
    last_active_at: int | None = None
    tenant_id: str | None = None
    metadata: dict[str, Any] | None = None


class JobFields(TypedDict, total=False):
    """The fields of a job that its producer may set at any time."""

    user_message: UserMessage | dict[str, Any] | None
    response_message_id: str | None
    sender: str | None
    sync_sent: bool
    endpoint: str | None
    icon_url: str | None
    model: str | None
    prompt_tokens: int | None
    metadata: dict[str, Any] | None


class JobChanges(JobFields, total=False):
    """What ``update_job`` may set: the producer's fields, and those that end a job."""

    conversation_id: str | None
    status: JobStatus | str
    error: str | None
    completed_at: int | None
    final_event: str | None


class InputTokenDetails(TypedDict, total=False):
    """Cache tokens as OpenAI reports them."""

    cache_creation: int
    cache_read: int


class UsageMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Token usage of one model call. The cache tokens come in either of two forms; ``cache_read`` reads both.

    ``id`` is given by ``record_usage``, one per entry for ever: the key to bill by. ``extra`` holds every other
    field the provider wrote; on the wire they are flat, beside the known ones.
    """

    id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    model: str | None = None
    provider: str | None = None
    input_token_details: InputTokenDetails | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])

    @property
    def cache_creation(self) -> int:
        """Tokens written to the provider's cache: the first of the two forms that is not 0, else 0."""
        details = self.input_token_details or {}
        return details.get("cache_creation") or self.cache_creation_input_tokens or 0

    @property
    def cache_read(self) -> int:
        """Tokens read from the provider's cache: the first of the two forms that is not 0, else 0."""
        details = self.input_token_details or {}
        return details.get("cache_read") or self.cache_read_input_tokens or 0


class AbortResult(_Record, frozen=True, kw_only=True):
    """What an abort did. ``success`` false: nothing was changed or claimed, ``reason`` says why.

    ``reason`` is ``"not_found"`` (no such job), ``"ended"`` (it had ended, or something else ended it first),
    ``"replaced"`` (another generation is the newest) or, after a success, ``None``.
    ``acknowledged`` tells whether the owner confirmed that the work was stopped; the abort holds either way.
    ``collected_usage`` was claimed by this abort: bill it here, nobody else will get these entries.
    ``content`` is the live content of the owner (``set_content_parts``, ``set_graph``). Where it has none, or none with
    a JSON form, does not answer in time, or answers from another process and has more than fits into one message
    (``max_payload`` of the server, usually 1 MiB), it is folded from the log, by ``Config.fold`` if there is one; what
    is left out for its form or its size is told in the log of the program. ``text`` joins its text parts, for counting
    tokens. ``final_event`` is what ``abort`` was given.
    """

    success: bool
    job_data: Job | None = None
    content: list[ContentPart] = msgspec.field(default_factory=list[ContentPart])
    final_event: Any = None
    text: str = ""
    collected_usage: list[UsageMetadata] = msgspec.field(default_factory=list[UsageMetadata])
    acknowledged: bool = False
    reason: str | None = None


class ResumeState(_Record, frozen=True, kw_only=True):
    """Everything a client needs to draw a job and go on.

    Subscribe after ``cursor`` and nothing is missing or doubled.
    """

    generation: str
    status: JobStatus
    cursor: str
    run_steps: list[RunStep] = msgspec.field(default_factory=list[RunStep])
    aggregated_content: list[ContentPart] = msgspec.field(default_factory=list[ContentPart])
    user_message: UserMessage | None = None
    response_message_id: str | None = None
    conversation_id: str | None = None
    sender: str | None = None
    collected_usage: list[UsageMetadata] = msgspec.field(default_factory=list[UsageMetadata])


_decode = msgspec.json.Decoder().decode


class _Data:
    """``StreamEvent.data``: decoded when it is first asked for, and kept with the event.

    ``functools.cached_property`` takes a lock before Python 3.12, which costs more than the decoding.
    """

    def __get__(self, event: Any, _: type[StreamEvent]) -> Any:
        if event is None:
            return self
        data = event.__dict__["data"] = _decode(event.raw)
        return data


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One event, or the terminal record, of a generation.

    ``index`` is dense and 0-based; of a terminal record it is the number of events. ``raw`` is ``data`` as JSON
    bytes, for forwarding untouched and for typed readers.
    """

    type: EventType
    index: int
    cursor: str
    generation: str
    raw: bytes
    end_reason: EndReason | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether this ends the generation."""
        return self.type in _TERMINAL_EVENTS

    data = _Data()
    """Event: the value; done: the final event; error: the text; aborted: the final event given to ``abort``."""


_TERMINAL_EVENTS = frozenset({"done", "error", "aborted"})


def to_dict(record: msgspec.Struct) -> dict[str, Any]:
    """The wire form of a record: camelCase names, absent fields left out, usage with its extra fields flat."""
    if isinstance(record, StreamEvent):
        out: dict[str, Any] = {
            "type": record.type.value,
            "index": record.index,
            "cursor": record.cursor,
            "generation": record.generation,
            "data": record.data,
        }
        if record.end_reason is not None:
            out["endReason"] = record.end_reason.value
        return out
    if isinstance(record, UsageMetadata):
        known = {k: v for k in record.__struct_fields__ if k != "extra" and (v := getattr(record, k)) is not None}
        flat: dict[str, Any] = msgspec.to_builtins({**record.extra, **known})
        return flat
    wire: dict[str, Any] = {}
    for name, wire_name in zip(record.__struct_fields__, record.__struct_encode_fields__, strict=True):
        value = getattr(record, name)
        if value is not None:
            wire[wire_name] = _plain(value)
    return wire


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return to_dict(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return msgspec.to_builtins(value)
