"""Prometheus: the measures in a registry of prometheus-client. Needs the extra ``natsjobs[prometheus]``.

Owns one collector, which enters the registry with all names or, when one of them is taken, with none. Gauges are asked
for when somebody scrapes, and cost nothing before.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from natsjobs.telemetry.listening import hub
from natsjobs.telemetry.measures import DURATIONS, MEASURES, Measure


class PrometheusExport:
    """An export that goes on until it is closed; a context manager that closes it."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        """From now on; ``None``: the registry of the process."""
        self.registry = prometheus_client.REGISTRY if registry is None else registry
        self._counted = _Counted()
        self.registry.register(self._counted)
        self._registered = True
        self.detach = hub.attach(self._counted)
        """Ends counting; what was counted stays in the registry."""

    def text(self) -> tuple[bytes, str]:
        """The whole registry as a scrape gets it, and its content type."""
        return prometheus_client.generate_latest(self.registry), "text/plain; version=0.0.4; charset=utf-8"

    def close(self) -> None:
        """Take the measures out of the registry; idempotent."""
        self.detach()
        if self._registered:
            self._registered = False
            self.registry.unregister(self._counted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Counted:
    """All measures: a sink of the hub, and a collector of Prometheus."""

    def __init__(self) -> None:
        self._made: dict[Measure, Counter | Histogram] = {}
        for measure in MEASURES:
            name, labels = measure.prometheus_name, measure.labels
            if measure.kind == "counter":
                self._made[measure] = Counter(name, measure.meaning, labels, registry=None)
            elif measure.kind == "histogram":
                self._made[measure] = Histogram(name, measure.meaning, labels, registry=None, buckets=DURATIONS)

    def add(self, measure: Measure, value: float, labels: tuple[str, ...]) -> None:
        """Called by the hub."""
        made = self._made[measure]
        child = made.labels(*labels) if labels else made
        if isinstance(child, Counter):
            child.inc(value)
        else:
            child.observe(value)

    def describe(self) -> Iterable[Metric]:
        """Every name, without asking anybody: registering must not collect."""
        return self._families({})

    def collect(self) -> Iterable[Metric]:
        """Everything now."""
        return self._families(hub.gauges())

    def _families(self, gauges: dict[tuple[Measure, tuple[str, ...]], float]) -> Iterable[Metric]:
        for measure in MEASURES:
            if (made := self._made.get(measure)) is not None:
                yield from made.collect()
                continue
            family = GaugeMetricFamily(measure.prometheus_name, measure.meaning, labels=measure.labels)
            if not measure.labels:
                family.add_metric([], gauges.get((measure, ()), 0))
            for (other, labels), value in gauges.items():
                if other is measure and labels:
                    family.add_metric(labels, value)
            yield family
