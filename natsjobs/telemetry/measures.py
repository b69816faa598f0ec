"""The table of measures and spans, as data. Pure; the package's docstring is this table in words, and a test says so.

Owns names, units, labels and meanings. Names follow OpenTelemetry; Prometheus gets the same with underscores, the unit
and ``_total``. No label holds an id of a user, a job or a replica: their number has no bound.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
_UNITS = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure. ``reader``: who looks at it, and why."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    reader: str
    labels: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """As a Prometheus server knows it."""
        name = self.name.replace(".", "_")
        suffix = _UNITS.get(self.unit, "")
        name = name if name.endswith(suffix) else name + suffix
        return f"{name}_total" if self.kind == "counter" else name


@dataclass(frozen=True, slots=True)
class SpanKind:
    """One kind of span."""

    name: str
    meaning: str
    attributes: tuple[str, ...]


DURATIONS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms' buckets, seconds: an append takes milliseconds, an election 5 to 8 seconds."""

JOBS_RUNNING: Final = Measure(
    "natsjobs.jobs.running", "gauge", "{job}", "jobs that run in this process", "scaling; before stopping a worker"
)
JOBS_STARTED: Final = Measure("natsjobs.jobs.started", "counter", "{job}", "jobs created here", "load")
JOBS_ENDED: Final = Measure(
    "natsjobs.jobs.ended",
    "counter",
    "{job}",
    "terminal records written here, for whichever owner",
    "error rate; alert on the reasons owner_lost and expired",
    ("status", "reason"),
)
JOBS_REAPED: Final = Measure(
    "natsjobs.jobs.reaped", "counter", "{job}", "jobs ended here because their owner is gone", "alert: workers die"
)
OWNERS_LOST: Final = Measure(
    "natsjobs.owners.lost", "counter", "{replica}", "owners that this replica proved dead", "alert: workers die"
)
LEASE_FAILURES: Final = Measure(
    "natsjobs.lease.failures",
    "counter",
    "{renewal}",
    "renewals of this replica's lease that failed",
    "alert when it goes on: NATS is away, or a permission is missing",
)
EVENTS: Final = Measure("natsjobs.events", "counter", "{event}", "events stored by this replica", "load")
EVENT_BYTES: Final = Measure("natsjobs.events.size", "counter", "By", "the same in bytes of JSON", "capacity")
EVENTS_QUEUED: Final = Measure(
    "natsjobs.events.queued", "gauge", "{event}", "events emitted here and not stored yet", "stalls: it grows"
)
BACKPRESSURE: Final = Measure(
    "natsjobs.backpressure.duration",
    "histogram",
    "s",
    "how long an emit waited for room in the queue; those that need not wait are not counted",
    "NATS is slower than the model",
)
APPENDS: Final = Measure(
    "natsjobs.appends",
    "counter",
    "{message}",
    "attempts to append a message: stored, refused (compare-and-set), full, denied, unavailable, undecided (no answer)",
    "alert on full; undecided and unavailable show elections and outages",
    ("outcome",),
)
APPEND_DURATION: Final = Measure(
    "natsjobs.append.duration",
    "histogram",
    "s",
    "from the first attempt until a message was known to be stored",
    "objectives: what viewers wait for",
)
READERS: Final = Measure("natsjobs.readers", "gauge", "{reader}", "readers of jobs in this process", "load")
PAGES: Final = Measure(
    "natsjobs.pages", "counter", "{page}", "pages of event logs read, by late readers and repairs", "load of replays"
)
LOOKS: Final = Measure("natsjobs.looks", "counter", "{look}", "looks for events that did not come live", "load on NATS")
GAPS: Final = Measure(
    "natsjobs.live.gaps", "counter", "{gap}", "gaps on the live path, each repaired from the log", "NATS is lossy"
)
ABORTS: Final = Measure(
    "natsjobs.aborts",
    "counter",
    "{abort}",
    "aborts carried out here: acknowledged or unacknowledged by the owner, or refused (it had ended, is not there)",
    "unacknowledged: owners are dead or stuck, and models may go on costing",
    ("outcome",),
)
TOKENS: Final = Measure(
    "natsjobs.usage.tokens", "counter", "{token}", "tokens of usage recorded here: input or output", "cost", ("type",)
)
STREAM_SIZE: Final = Measure(
    "natsjobs.stream.size",
    "gauge",
    "By",
    "stored bytes of the stream (events) and the bucket (jobs), as a readiness check or scrape, or a run here, saw it",
    "alert at 80 % of the limit: nothing is stored when it is full",
    ("stream",),
)
STREAM_LIMIT: Final = Measure(
    "natsjobs.stream.limit", "gauge", "By", "their max_bytes; absent without one", "with the size", ("stream",)
)
CONNECTED: Final = Measure(
    "natsjobs.connected", "gauge", "{connection}", "connections to NATS that work now", "alert at 0"
)
RECONNECTS: Final = Measure(
    "natsjobs.reconnects", "counter", "{reconnect}", "times a connection came back", "network; NATS restarts"
)
GARBAGE: Final = Measure(
    "natsjobs.garbage",
    "counter",
    "{message}",
    "messages, keys and answers skipped because they are not ours, by a few fixed kinds",
    "alert: somebody else writes into the namespace",
    ("kind",),
)
TASK_FAILURES: Final = Measure(
    "natsjobs.task.failures",
    "counter",
    "{task}",
    "background tasks, spawned runs among them, that ended with an exception; the log has it",
    "alert: a defect, here or in the application",
)
HTTP_RESPONSES: Final = Measure(
    "natsjobs.http.responses", "counter", "{response}", "answers of the gateway", "error rate", ("status",)
)
HTTP_OPEN: Final = Measure("natsjobs.http.open", "gauge", "{request}", "requests that the gateway is answering", "load")
HTTP_FEEDS: Final = Measure(
    "natsjobs.http.feeds", "gauge", "{client}", "clients that follow a job over HTTP", "scaling; limits"
)
HTTP_FEED_BYTES: Final = Measure("natsjobs.http.feed.size", "counter", "By", "bytes sent to them", "capacity")
HTTP_CUT: Final = Measure(
    "natsjobs.http.cut", "counter", "{client}", "clients cut because they took nothing; they can resume", "slow clients"
)

MEASURES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Measure))
"""All of them."""

SPANS: Final = (
    SpanKind(
        "natsjobs.run",
        "one generation, on its owner, from create to end; a child of what created it. Inside `start` it is the "
        "current span, so that spans of model clients are its children",
        (
            "messaging.system",
            "natsjobs.stream_id",
            "natsjobs.generation",
            "natsjobs.status",
            "natsjobs.end_reason",
            "gen_ai.conversation.id",
            "gen_ai.request.model",
            "gen_ai.response.model",
            "gen_ai.provider.name",
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.output_tokens",
        ),
    ),
    SpanKind(
        "natsjobs.read",
        "one reader of one generation, on any replica; a child of its natsjobs.run, linked to what began to read",
        ("messaging.system", "natsjobs.stream_id", "natsjobs.generation", "natsjobs.position"),
    ),
)
"""The spans; ``messaging.system`` is always ``nats``. The context of a run is in its job record, as ``trace``."""


def table() -> str:
    """The table as text: what the package's docstring has to say."""
    lines: list[str] = []
    for measure in MEASURES:
        labels = f" by {', '.join(measure.labels)}" if measure.labels else ""
        lines += [f"{measure.name} ({measure.kind}, {measure.unit}){labels}"]
        lines += [f"    {measure.meaning}", f"    for: {measure.reader}"]
    for span in SPANS:
        lines += [f"{span.name} (span)"]
        for text in (span.meaning, f"with: {', '.join(span.attributes)}"):
            lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
