"""What was emitted, what arrived, and whether the two agree. Pure: it is fed with reports and asked for a verdict.

Nothing is taken on trust: the worker's list of emitted values and each viewer's list of received ones are compared
event by event, index and value. Owns neither processes nor clocks; times are given to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


def canonical(value: Any) -> str:
    """A JSON value as text, equal exactly for equal values (in Python ``1``, ``1.0`` and ``True`` are equal)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one viewer got, against what was emitted. ``lost`` counts what was promised and never came."""

    received: int
    lost: int
    doubled: int
    reordered: int
    wrong: int

    @property
    def holds(self) -> bool:
        """Whether it got every event exactly once, in order, unchanged."""
        return not (self.lost or self.doubled or self.reordered or self.wrong)


def compare(emitted: Sequence[str], received: Iterable[tuple[int, str]], *, promised: int) -> Comparison:
    """Lay what arrived beside what was emitted.

    Args:
        emitted: The values the producer emitted, in order.
        received: Index and value of what arrived, in order of arrival.
        promised: How many events must have arrived: all up to the end, and at least all that were acknowledged.
    """
    seen: set[int] = set()
    doubled = reordered = wrong = count = 0
    highest = -1
    for index, value in received:
        count += 1
        if index in seen:
            doubled += 1
        elif index < highest:
            reordered += 1
        seen.add(index)
        highest = max(highest, index)
        if not 0 <= index < len(emitted) or emitted[index] != value:
            wrong += 1
    lost = sum(index not in seen for index in range(promised))
    return Comparison(count, lost, doubled, reordered, wrong)


@dataclass(slots=True)
class View:
    """What one browser got of one job, over all replicas it was connected to."""

    received: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    text: list[str] = field(default_factory=list[str])
    generations: set[str] = field(default_factory=set[str])
    cursor: str | None = None
    end_type: str | None = None
    end_reason: str | None = None
    end_index: int | None = None
    ended_at: float | None = None
    ends: int = 0


@dataclass(slots=True)
class Record:
    """One job: what its worker says, and what each browser got."""

    stream_id: str
    title: str
    end_type: str
    end_reason: str | None = None
    generation: str | None = None
    emitted: list[str] = field(default_factory=list[str])
    stored: int = 0
    left: dict[str, Any] | None = None
    left_at: float | None = None
    abort: dict[str, Any] | None = None
    abort_at: float | None = None
    views: dict[str, View] = field(default_factory=dict[str, View])
    text: str = ""

    def view(self, browser: str) -> View:
        """The view of a browser, made when it is first asked for."""
        return self.views.setdefault(browser, View())

    def take(self, report: dict[str, Any], now: float, text: str = "") -> None:
        """One report of a worker or a viewer about this job. ``text``: what a person sees of its value."""
        match report["is"]:
            case "started":
                self.generation = report["generation"]
            case "emit":
                self.emitted.append(canonical(report["value"]))
            case "stored":
                self.stored = report["count"]
            case "left":
                self.left, self.left_at = report, now
            case "aborted":
                self.abort, self.abort_at = report["result"], now
            case "event":
                view = self.view(report["browser"])
                view.received.append((report["index"], canonical(report["value"])))
                view.text.append(text)
                view.generations.add(report["generation"])
                view.cursor = report["cursor"]
            case "end":
                view = self.view(report["browser"])
                view.end_type, view.end_reason = report["type"], report["reason"]
                view.end_index, view.ended_at = report["index"], now
                view.cursor = report["cursor"]
                view.ends += 1
            case _:
                pass

    def comparisons(self) -> dict[str, Comparison]:
        """Per browser. Promised is what any browser's end says, and whatever was acknowledged to the worker."""
        ends = [view.end_index for view in self.views.values() if view.end_index is not None]
        promised = max([self.stored, *ends])
        if self.end_type == "done":
            promised = max(promised, len(self.emitted))
        return {name: compare(self.emitted, view.received, promised=promised) for name, view in self.views.items()}

    def complaints(self) -> list[str]:
        """Every promise that did not hold, in words; empty when all did."""
        found: list[str] = []
        for browser, result in self.comparisons().items():
            view = self.views[browser]
            if not result.holds:
                found.append(
                    f"{browser}: {result.lost} events lost, {result.doubled} doubled, "
                    f"{result.reordered} out of order, {result.wrong} changed"
                )
            if view.ends != 1:
                found.append(f"{browser}: {view.ends} terminal records instead of one")
            elif (view.end_type, view.end_reason) != (self.end_type, self.end_reason):
                found.append(f"{browser}: ended with {view.end_type} ({view.end_reason}), not {self.end_type}")
            elif view.end_index != len({index for index, _ in view.received}):
                found.append(f"{browser}: the end says {view.end_index} events, {len(view.received)} arrived")
            if view.generations - {self.generation}:
                found.append(f"{browser}: events of another generation")
        if len({view.end_index for view in self.views.values()}) > 1:
            found.append("the browsers saw different ends")
        if not self.views:
            found.append("nobody was watching")
        if not self.emitted:
            found.append("nothing was emitted")
        return found


@dataclass(frozen=True, slots=True)
class Measure:
    """A time that was measured and what it may be at most, in seconds."""

    name: str
    seconds: float | None
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it happened, in time."""
        return self.seconds is not None and self.seconds <= self.limit


@dataclass(slots=True)
class Ledger:
    """All jobs of the demo, the measured times, and what else went wrong."""

    records: dict[str, Record] = field(default_factory=dict[str, Record])
    measures: list[Measure] = field(default_factory=list[Measure])
    failures: list[str] = field(default_factory=list[str])
    finished: bool = False

    def open(self, record: Record) -> Record:
        """Add a job."""
        self.records[record.stream_id] = record
        return record

    def check(self, holds: object, complaint: str) -> None:
        """Note a promise that did not hold."""
        if not holds:
            self.failures.append(complaint)

    def complaints(self) -> list[str]:
        """Everything that did not hold, in words."""
        found = list(self.failures)
        for record in self.records.values():
            found += [f"{record.title}: {complaint}" for complaint in record.complaints()]
        for measure in self.measures:
            if not measure.holds:
                took = "never happened" if measure.seconds is None else f"took {measure.seconds:.2f} s"
                found.append(f"{measure.name}: {took}, the limit is {measure.limit:g} s")
        if not self.finished:
            found.append("the demo did not come to its end")
        return found

    def summary(self, seconds: float) -> dict[str, Any]:
        """The verdict and its figures, for programs."""
        complaints = self.complaints()
        jobs: list[dict[str, Any]] = []
        for record in self.records.values():
            browsers: dict[str, Any] = {}
            for name, result in record.comparisons().items():
                view = record.views[name]
                browsers[name] = {
                    "received": result.received,
                    "lost": result.lost,
                    "doubled": result.doubled,
                    "reordered": result.reordered,
                    "changed": result.wrong,
                    "end": view.end_type,
                    "endReason": view.end_reason,
                }
            jobs.append(
                {
                    "streamId": record.stream_id,
                    "title": record.title,
                    "emitted": len(record.emitted),
                    "acknowledged": record.stored,
                    "browsers": browsers,
                }
            )
        times = [{"name": m.name, "seconds": m.seconds, "limit": m.limit, "ok": m.holds} for m in self.measures]
        return {"ok": not complaints, "complaints": complaints, "seconds": seconds, "jobs": jobs, "times": times}
