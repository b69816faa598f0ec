"""What is measured: the works, what each of their figures is, and what a row of the table is made of.

A work is a measuring run; several rows may show figures of one run, so no run is made twice. A row compares one figure
with another one: of the peer, of another contender, or of another work. ``rows`` is the list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from natsjobs.cli.bench import live, logs, standing
from natsjobs.cli.bench.stage import Contender, Measure


@dataclass(frozen=True)
class Column:
    """A figure that works have: its unit, which way is better, and what exactly it is."""

    unit: str
    better: Literal["more", "less"]
    meaning: str


COLUMNS = {
    "events/s": Column(
        "events/s", "more", "events, by the time from the first emit until the last is in a reader's hand"
    ),
    "emitted/s": Column("events/s", "more", "events, by the time from the first emit until all are stored"),
    "cpu": Column("µs/event", "less", "CPU time of producer and reader together, per event"),
    "producer": Column("µs/event", "less", "CPU time of the producing process, per event, until all are stored"),
    "reader": Column("µs/event", "less", "CPU time of the reading process, per event that a reader got"),
    "server": Column("µs/event", "less", "CPU time of all server processes, per event"),
    "pace": Column("of the pace", "more", "how long the work takes at the pace that it asks for, by how long it took"),
    "p50": Column("ms", "less", "half of all events or calls took no longer than this"),
    "p99": Column("ms", "less", "99 of 100 events or calls took no longer than this"),
    "resume": Column("ms", "less", "from attaching at a cursor until the 20th event, median of 20, long log"),
    "resume short": Column("ms", "less", "the same, at the end of a log of 1,000 events"),
    "kB": Column("kB/job", "less", "growth of the owner's resident memory, by the number of jobs"),
    "stored": Column(
        "bytes", "less", "growth of what the server says that the logs take, per 1,000 events; all jobs run"
    ),
    "stored after": Column("bytes", "less", "the same when all jobs have ended and nothing is tidied up any more"),
    "producer MB": Column("MB", "less", "resident memory of the producing process after the last event"),
    "reader MB": Column("MB", "less", "resident memory of the reading process after the last event"),
}


@dataclass(frozen=True)
class Work:
    """A measuring run. ``rounds``: how often by default; ``seconds``: about how long one contender takes, once."""

    name: str
    measure: Measure
    rounds: int
    seconds: float
    transcripts: bool = False


@dataclass(frozen=True)
class Source:
    """Where a figure comes from."""

    work: str
    contender: Contender
    column: str


@dataclass(frozen=True)
class Reach:
    """What is to be reached: of the ratio, or of our figure when there is a ``unit``."""

    sign: Literal["≥", "≤"]
    value: float
    unit: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table. ``group``: what stands above it and its like."""

    name: str
    what: str
    ours: Source
    other: Source | None
    reach: Reach | None = None
    group: str = ""


WORKS = {
    work.name: work
    for work in (
        Work("burst-1", live.burst(1, 20_000), 3, 4),
        Work("burst-50", live.burst(50, 1_000), 3, 6),
        Work("burst-1000", live.burst(1_000, 50), 3, 9),
        # For the cluster: three servers and two clients have more to do at 50 jobs than two cores can.
        Work("paced-10", live.paced(10, 50, 5), 2, 8),
        Work("paced-50", live.paced(50, 50, 5, stored=True), 3, 7),
        Work("paced-500", live.paced(500, 5, 5), 2, 7),
        Work("paced-500-full", live.paced(500, 50, 1), 2, 7),
        Work("pacing", live.pacing, 2, 6),
        Work("pause", live.paced(20, 2, 5), 2, 6),
        Work("transcripts", live.recorded_streams(0, 10), 3, 6, transcripts=True),
        Work("transcripts-paced", live.recorded_streams(50, 5), 2, 10, transcripts=True),
        Work("first", live.first_event, 5, 1),
        Work("first-waiting", live.first_event_awaited, 3, 5),
        Work("hot-1000", live.hot, 2, 6),
        Work("replay-2000", logs.replay_short(watched=False), 1, 30),
        Work("replay-2000-watched", logs.replay_short(watched=True), 1, 50),
        Work("long-log", logs.long_log, 1, 80),
        Work("join-500", logs.joining(1, 500, 50, 500), 2, 8),
        Work("join-500-logs", logs.joining(500, 50, 5, 500), 2, 10),
        Work("idle", standing.idle, 3, 4),
        Work("active-few", standing.active(10), 1, 4),
        Work("active", standing.active(10_000), 1, 110),
        Work("crowd-10", live.crowd(10, 10), 2, 13),
        Work("crowd-1000", live.crowd(1_000, 10), 2, 16),
        Work("crowd-10000", live.crowd(10_000, 10), 1, 40),
        Work("spread-10", live.crowd(10, None), 2, 13),
        Work("spread-1000", live.crowd(1_000, None), 2, 16),
        Work("spread-10000", live.crowd(10_000, None), 1, 50),
    )
}
