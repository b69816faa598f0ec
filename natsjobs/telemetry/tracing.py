"""OpenTelemetry: the measures as metrics and the runs and readers as spans. Needs the extra ``natsjobs[otel]``.

Owns the spans that are open. The context of a run's span is stored with its job, so a reader on any replica, in any
process, continues the run's trace. Uses the API package alone: what becomes of it is the application's SDK's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

from opentelemetry import context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, MeterProvider, Observation
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from natsjobs.telemetry.listening import hub
from natsjobs.telemetry.measures import DURATIONS, MEASURES, Measure

_SCOPE = "natsjobs"
_JOB_ATTRIBUTES = {"conversationId": "gen_ai.conversation.id", "model": "gen_ai.request.model"}
_MOST_OPEN = 100_000
"""Runs that never end here (they cannot, but a leak would be worse than a lost span)."""


class _OpenRun:
    """A run's span, and what its usage adds up to."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.tokens = {"input": 0, "output": 0}


class OpenTelemetryExport:
    """An export that goes on until it is closed; a context manager that closes it."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        """From now on; ``None``: the provider of the process."""
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._propagator = TraceContextTextMapPropagator()
        self._runs: dict[tuple[str, str], _OpenRun] = {}
        self._made: dict[Measure, Counter | Histogram] = {}
        self._closed = False
        for measure in MEASURES:
            self._make(measure)
        self._detach = hub.attach(self)
        hub.tracer = self

    def _make(self, measure: Measure) -> None:
        about = {"unit": measure.unit, "description": measure.meaning}
        if measure.kind == "counter":
            self._made[measure] = self._meter.create_counter(measure.name, **about)
        elif measure.kind == "histogram":
            self._made[measure] = self._meter.create_histogram(
                measure.name, **about, explicit_bucket_boundaries_advisory=DURATIONS
            )
        else:
            self._meter.create_observable_gauge(measure.name, callbacks=[partial(self._observe, measure)], **about)

    # -- measures -----------------------------------------------------------------------------------------------

    def add(self, measure: Measure, value: float, labels: tuple[str, ...]) -> None:
        """Called by the hub."""
        made, attributes = self._made[measure], dict(zip(measure.labels, labels, strict=True))
        if measure.kind == "histogram":
            cast("Histogram", made).record(value, attributes)
        else:
            cast("Counter", made).add(value, attributes)

    def _observe(self, measure: Measure, _: CallbackOptions) -> Iterable[Observation]:
        if self._closed:
            return []
        return [
            Observation(value, dict(zip(measure.labels, labels, strict=True)))
            for (other, labels), value in hub.gauges().items()
            if other is measure
        ]

    # -- spans --------------------------------------------------------------------------------------------------

    def start_run(self, run: tuple[str, str], job: Mapping[str, object]) -> dict[str, str]:
        """Called by the hub."""
        attributes = _about(run)
        attributes |= {name: str(job[field]) for field, name in _JOB_ATTRIBUTES.items() if job.get(field)}
        span = self._tracer.start_span("natsjobs.run", kind=SpanKind.PRODUCER, attributes=attributes)
        while len(self._runs) >= _MOST_OPEN:
            self._runs.pop(next(iter(self._runs))).span.end()
        self._runs[run] = _OpenRun(span)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, trace.set_span_in_context(span))
        return carrier

    def enter_run(self, run: tuple[str, str]) -> Callable[[], None] | None:
        """Called by the hub."""
        if (found := self._runs.get(run)) is None:
            return None
        return partial(context.detach, context.attach(trace.set_span_in_context(found.span)))

    def add_usage(self, run: tuple[str, str], usage: Mapping[str, object]) -> None:
        """Called by the hub."""
        if (found := self._runs.get(run)) is None:
            return
        for name in ("input", "output"):
            tokens = usage.get(f"{name}_tokens")
            found.tokens[name] += tokens if isinstance(tokens, int) else 0
            found.span.set_attribute(f"gen_ai.usage.{name}_tokens", found.tokens[name])
        for field, attribute in (("model", "gen_ai.response.model"), ("provider", "gen_ai.provider.name")):
            if value := usage.get(field):
                found.span.set_attribute(attribute, str(value))

    def end_run(self, run: tuple[str, str], status: str | None, reason: str | None) -> None:
        """Called by the hub."""
        if (found := self._runs.pop(run, None)) is None:
            return
        for name, value in (("natsjobs.status", status), ("natsjobs.end_reason", reason)):
            if value is not None:
                found.span.set_attribute(name, value)
        if status in {None, "error"}:
            found.span.set_status(StatusCode.ERROR, reason or "")
        found.span.end()

    def start_read(self, run: tuple[str, str], stored: object) -> object:
        """Called by the hub."""
        here = trace.get_current_span().get_span_context()
        parent: Context | None = None
        links: list[Any] = []
        if isinstance(stored, dict):
            carrier = {
                name: value
                for name in ("traceparent", "tracestate")
                if isinstance(value := stored.get(name), str)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            }
            parent = self._propagator.extract(carrier, context=Context())
            if trace.get_current_span(parent).get_span_context().is_valid:
                links = [trace.Link(here)] if here.is_valid else []
            else:
                parent = None  # somebody else's idea of a trace: what reads is the parent, as without one
        return self._tracer.start_span(
            "natsjobs.read",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=_about(run),
            links=links,
        )

    def end_read(self, reading: object, position: int) -> None:
        """Called by the hub."""
        span = cast("Span", reading)
        span.set_attribute("natsjobs.position", position)
        span.end()

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Export nothing any more; spans of runs that go on end here. Idempotent."""
        self._closed = True
        self._detach()
        if hub.tracer is self:
            hub.tracer = None
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _about(run: tuple[str, str]) -> dict[str, str]:
    return {"messaging.system": "nats", "natsjobs.stream_id": run[0], "natsjobs.generation": run[1]}
