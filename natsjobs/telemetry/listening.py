"""``hub``: where the library says what it measures, and where exporters listen. Knows no exporter.

One per process, like the registries of OpenTelemetry and Prometheus that it feeds. Guarantees that measuring costs one
call and nothing else while nobody listens, and that an exporter that fails touches nothing else: its error is logged
once. Gauges are not counted along, they are asked for: whoever has one is watched, weakly.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Protocol, TypeAlias
from weakref import WeakSet

from natsjobs.telemetry.measures import Measure

_log = logging.getLogger(__name__)

Gauge: TypeAlias = tuple[Measure, tuple[str, ...], float]
"""A measure, its labels' values, its value now."""


class Source(Protocol):
    """Something that has gauges. They may be asked for from another thread."""

    def gauges(self) -> Iterable[Gauge]:
        """How it stands now."""
        ...


class Sink(Protocol):
    """An exporter of measures."""

    def add(self, measure: Measure, value: float, labels: tuple[str, ...]) -> None:
        """Add to a counter, or observe for a histogram."""
        ...


class Tracer(Protocol):
    """An exporter of spans. A run is named by stream id and generation, a reading by what ``start_read`` gave."""

    def start_run(self, run: tuple[str, str], job: Mapping[str, object]) -> dict[str, str]:
        """A run begins; the trace context for its job record."""
        ...

    def enter_run(self, run: tuple[str, str]) -> Callable[[], None] | None:
        """Make the run's span the current one; what to call, in the same task, to leave it."""
        ...

    def add_usage(self, run: tuple[str, str], usage: Mapping[str, object]) -> None:
        """Usage was recorded: ``model``, ``provider``, ``input_tokens``, ``output_tokens``."""
        ...

    def end_run(self, run: tuple[str, str], status: str | None, reason: str | None) -> None:
        """A run has ended; one that is not known is none of ours."""
        ...

    def start_read(self, run: tuple[str, str], stored: object) -> object:
        """A reader has attached; ``stored`` is what the job record holds as ``trace``."""
        ...

    def end_read(self, reading: object, position: int) -> None:
        """It has left, having read this many records."""
        ...


class Hub:
    """The exporters and the gauges of this process. Not for other threads, but for ``gauges``."""

    def __init__(self) -> None:
        self.tracer: Tracer | None = None
        """Who listens to spans."""
        self._sinks: tuple[Sink, ...] = ()
        self._sources: WeakSet[Source] = WeakSet()
        self._failed: set[int] = set()

    @property
    def on(self) -> bool:
        """Whether anybody listens to measures."""
        return bool(self._sinks)

    # -- for those who measure ----------------------------------------------------------------------------------

    def add(self, measure: Measure, value: float = 1, *labels: str) -> None:
        """Add to a counter, or observe for a histogram."""
        for sink in self._sinks:
            try:
                sink.add(measure, value, labels)
            except Exception:  # noqa: BLE001 - measuring must never break what is measured
                self._complain(sink)

    def watch(self, source: Source) -> None:
        """Ask this one for its gauges from now on, for as long as it lives."""
        self._sources.add(source)

    def forget(self, source: Source) -> None:
        """Do not ask it any more; idempotent."""
        self._sources.discard(source)

    @contextlib.contextmanager
    def tracing(self) -> Generator[Tracer]:
        """The tracer, which is there, for a block whose errors are its own: they are logged once and go no further."""
        assert self.tracer is not None
        tracer = self.tracer
        try:
            yield tracer
        except Exception:  # noqa: BLE001 - as above
            self._complain(tracer)

    # -- for exporters ------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> Callable[[], None]:
        """Listen to measures; the returned function, idempotent, ends it."""
        self._sinks = (*self._sinks, sink)

        def detach() -> None:
            self._sinks = tuple(other for other in self._sinks if other is not sink)

        return detach

    def gauges(self) -> dict[tuple[Measure, tuple[str, ...]], float]:
        """All gauges now, summed over their sources."""
        found: dict[tuple[Measure, tuple[str, ...]], float] = {}
        for source in list(self._sources):
            for measure, labels, value in source.gauges():
                found[measure, labels] = found.get((measure, labels), 0) + value
        return found

    def _complain(self, exporter: object) -> None:
        if id(exporter) not in self._failed:
            self._failed.add(id(exporter))
            _log.exception("telemetry: %s fails; this is said once", type(exporter).__name__)


hub = Hub()
"""The one of this process."""
