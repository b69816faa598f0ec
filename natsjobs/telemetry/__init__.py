"""What the library measures, and where it can go: Prometheus, OpenTelemetry. Owns no decision of the engine.

``prometheus()`` puts the measures into a registry of prometheus-client, ``opentelemetry()`` gives measures and spans
to OpenTelemetry. Both hold for the whole process, cost nothing before, and end with their ``close``. The gateway
serves the former at ``/metrics`` by itself. Everything else that the library has to say goes to ``logging``, one
logger per module, without handlers.

The table below is complete (``MEASURES`` and ``SPANS`` are the same as data). Prometheus names have underscores for
dots, then the unit (``_seconds``, ``_bytes``), then ``_total`` for counters. No label names a user, a job or a
replica. Counters begin when an exporter is attached.

natsjobs.jobs.running (gauge, {job})
    jobs that run in this process
    for: scaling; before stopping a worker
natsjobs.jobs.started (counter, {job})
    jobs created here
    for: load
natsjobs.jobs.ended (counter, {job}) by status, reason
    terminal records written here, for whichever owner
    for: error rate; alert on the reasons owner_lost and expired
natsjobs.jobs.reaped (counter, {job})
    jobs ended here because their owner is gone
    for: alert: workers die
natsjobs.owners.lost (counter, {replica})
    owners that this replica proved dead
    for: alert: workers die
natsjobs.lease.failures (counter, {renewal})
    renewals of this replica's lease that failed
    for: alert when it goes on: NATS is away, or a permission is missing
natsjobs.events (counter, {event})
    events stored by this replica
    for: load
natsjobs.events.size (counter, By)
    the same in bytes of JSON
    for: capacity
natsjobs.events.queued (gauge, {event})
    events emitted here and not stored yet
    for: stalls: it grows
natsjobs.backpressure.duration (histogram, s)
    how long an emit waited for room in the queue; those that need not wait are not counted
    for: NATS is slower than the model
natsjobs.appends (counter, {message}) by outcome
    attempts to append a message: stored, refused (compare-and-set), full, denied, unavailable, undecided (no answer)
    for: alert on full; undecided and unavailable show elections and outages
natsjobs.append.duration (histogram, s)
    from the first attempt until a message was known to be stored
    for: objectives: what viewers wait for
natsjobs.readers (gauge, {reader})
    readers of jobs in this process
    for: load
natsjobs.pages (counter, {page})
    pages of event logs read, by late readers and repairs
    for: load of replays
natsjobs.looks (counter, {look})
    looks for events that did not come live
    for: load on NATS
natsjobs.live.gaps (counter, {gap})
    gaps on the live path, each repaired from the log
    for: NATS is lossy
natsjobs.aborts (counter, {abort}) by outcome
    aborts carried out here: acknowledged or unacknowledged by the owner, or refused (it had ended, is not there)
    for: unacknowledged: owners are dead or stuck, and models may go on costing
natsjobs.usage.tokens (counter, {token}) by type
    tokens of usage recorded here: input or output
    for: cost
natsjobs.stream.size (gauge, By) by stream
    stored bytes of the stream (events) and the bucket (jobs), as a readiness check or scrape, or a run here, saw it
    for: alert at 80 % of the limit: nothing is stored when it is full
natsjobs.stream.limit (gauge, By) by stream
    their max_bytes; absent without one
    for: with the size
natsjobs.connected (gauge, {connection})
    connections to NATS that work now
    for: alert at 0
natsjobs.reconnects (counter, {reconnect})
    times a connection came back
    for: network; NATS restarts
natsjobs.garbage (counter, {message}) by kind
    messages, keys and answers skipped because they are not ours, by a few fixed kinds
    for: alert: somebody else writes into the namespace
natsjobs.task.failures (counter, {task})
    background tasks, spawned runs among them, that ended with an exception; the log has it
    for: alert: a defect, here or in the application
natsjobs.http.responses (counter, {response}) by status
    answers of the gateway
    for: error rate
natsjobs.http.open (gauge, {request})
    requests that the gateway is answering
    for: load
natsjobs.http.feeds (gauge, {client})
    clients that follow a job over HTTP
    for: scaling; limits
natsjobs.http.feed.size (counter, By)
    bytes sent to them
    for: capacity
natsjobs.http.cut (counter, {client})
    clients cut because they took nothing; they can resume
    for: slow clients
natsjobs.run (span)
    one generation, on its owner, from create to end; a child of what created it. Inside `start` it is the
    current span, so that spans of model clients are its children
    with: messaging.system, natsjobs.stream_id, natsjobs.generation, natsjobs.status, natsjobs.end_reason,
    gen_ai.conversation.id, gen_ai.request.model, gen_ai.response.model, gen_ai.provider.name,
    gen_ai.usage.input_tokens, gen_ai.usage.output_tokens
natsjobs.read (span)
    one reader of one generation, on any replica; a child of its natsjobs.run, linked to what began to read
    with: messaging.system, natsjobs.stream_id, natsjobs.generation, natsjobs.position
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from natsjobs.telemetry.listening import hub
from natsjobs.telemetry.measures import MEASURES, SPANS, Measure, SpanKind

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from natsjobs.telemetry.scrape import PrometheusExport
    from natsjobs.telemetry.tracing import OpenTelemetryExport

__all__ = ["MEASURES", "SPANS", "Measure", "SpanKind", "hub", "opentelemetry", "prometheus"]


def prometheus(registry: CollectorRegistry | None = None) -> PrometheusExport:
    """Put every measure into a registry; ``None``: the registry of the process.

    For workers: ``natsjobs.telemetry.prometheus()``, then ``prometheus_client.start_http_server(9000)``.

    Raises:
        ModuleNotFoundError: prometheus-client is not installed: ``pip install 'natsjobs[prometheus]'``.
        ValueError: The registry has them already.
    """
    from natsjobs.telemetry.scrape import PrometheusExport

    return PrometheusExport(registry)


def opentelemetry(
    *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> OpenTelemetryExport:
    """Give measures and spans to OpenTelemetry; ``None``: the provider of the process. A later call takes the spans.

    Raises:
        ModuleNotFoundError: opentelemetry-api is not installed: ``pip install 'natsjobs[otel]'``.
    """
    from natsjobs.telemetry.tracing import OpenTelemetryExport

    return OpenTelemetryExport(tracer_provider, meter_provider)
