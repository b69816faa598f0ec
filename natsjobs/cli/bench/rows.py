"""The rows of the table, by name: the figure of ours, what it is compared with, and what is to be reached."""

from __future__ import annotations

from dataclasses import replace

from natsjobs.cli.bench.catalog import Reach, Row, Source
from natsjobs.cli.bench.stage import (
    BARE,
    BARE_JETSTREAM,
    OURS,
    OURS_LINGER_0,
    OURS_R3,
    OURS_R3_LINGER_0,
    OURS_UVLOOP,
    PEER,
    PEER_UVLOOP,
    Contender,
)


def _row(
    name: str,
    what: str,
    work: str,
    column: str,
    reach: str = "",
    *,
    ours: Contender = OURS,
    other: Contender | Source | None = PEER,
) -> Row:
    """``reach``: of the ratio, as ``≥ 20``; with a unit behind it of our figure, as ``≤ 20 kB``."""
    against = Source(work, other, column) if isinstance(other, Contender) else other
    sign, value, *unit = reach.split() if reach else ("", "0")
    wanted = Reach("≥" if sign == "≥" else "≤", float(value), " ".join(unit)) if reach else None
    return Row(name, what, Source(work, ours, column), against, wanted)


_BURSTS = (
    _row("burst-1", "burst, 1 job", "burst-1", "events/s", "≥ 20"),
    _row("burst-50", "burst, 50 jobs", "burst-50", "events/s", "≥ 10"),
    _row("burst-1000", "burst, 1,000 jobs", "burst-1000", "events/s", "≥ 10"),
)
_PACED = (
    _row("paced-50", "50 jobs at 50 events/s: CPU", "paced-50", "cpu", "≤ 0.45"),
    _row("nolinger-50", "50 jobs at 50 events/s, linger 0: CPU", "paced-50", "cpu", "≤ 0.8", ours=OURS_LINGER_0),
    _row("latency-p50", "50 jobs at 50 events/s, linger 0: p50", "paced-50", "p50", "≤ 1.2", ours=OURS_LINGER_0),
    _row("latency-p99", "50 jobs at 50 events/s, linger 0: p99", "paced-50", "p99", "≤ 1.2", ours=OURS_LINGER_0),
    _row("linger-p99", "50 jobs at 50 events/s, linger 50 ms: p99", "paced-50", "p99", "≤ 60 ms"),
    _row("pause-p99", "first event after a pause, linger 50 ms: p99", "pause", "p99", "≤ 10 ms"),
    _row("pause-p50", "first event after a pause, linger 50 ms: p50", "pause", "p50"),
    _row("paced-500", "500 jobs at 5 events/s (what both sides keep up with): CPU", "paced-500", "cpu", "≤ 0.45"),
    _row("nolinger-500", "500 jobs at 5 events/s, linger 0: CPU", "paced-500", "cpu", "≤ 0.8", ours=OURS_LINGER_0),
    _row("latency-500-p50", "500 jobs at 5 events/s, linger 0: p50", "paced-500", "p50", "≤ 1.2", ours=OURS_LINGER_0),
    _row("latency-500-p99", "500 jobs at 5 events/s, linger 0: p99", "paced-500", "p99", "≤ 1.2", ours=OURS_LINGER_0),
    _row("paced-500-full", "500 jobs at 50 events/s: CPU", "paced-500-full", "cpu", "≤ 0.45"),
    _row(
        "nolinger-500-full",
        "500 jobs at 50 events/s, linger 0: CPU",
        "paced-500-full",
        "cpu",
        "≤ 0.8",
        ours=OURS_LINGER_0,
    ),
    _row(
        "uvloop-50",
        "50 jobs at 50 events/s, both on uvloop: CPU",
        "paced-50",
        "cpu",
        "≤ 0.45",
        ours=OURS_UVLOOP,
        other=PEER_UVLOOP,
    ),
)
_JOBS = (
    _row("first", "first event: start, attach, seen, in one process: p50", "first", "p50", "≤ 1.2"),
    _row("first-waiting", "first event: start, seen by a waiting reader: p50", "first-waiting", "p50", "≤ 1.2"),
    _row("hot-1000", "one job, 1,000 readers in a process: CPU", "hot-1000", "reader", "≤ 0.5"),
)
_LOGS = (
    _row("replay-2000", "replay of 2,000 events, written at 50/s while nobody read", "replay-2000", "events/s", "≥ 2"),
    _row(
        "replay-2000-watched",
        "replay of 2,000 events, written at 50/s while a reader followed",
        "replay-2000-watched",
        "events/s",
        "≥ 2",
        other=Source("replay-2000", PEER, "events/s"),
    ),
    _row(
        "replay-100000",
        "replay of 100,000 events, written at 1,000/s with lingers 20 times shorter",
        "long-log",
        "events/s",
        "≥ 2",
    ),
    _row("resume", "resume 20 events before the end of 100,000", "long-log", "resume", "≤ 1.5"),
    _row(
        "resume-length",
        "resume 20 events before the end: of 100,000, against of 1,000",
        "long-log",
        "resume",
        "≤ 1.2",
        other=Source("long-log", OURS, "resume short"),
    ),
    _row("join-500", "500 readers join one log at once: p99", "join-500", "p99", "≤ 1"),
    _row("join-500-logs", "500 readers join 500 logs at once: p99", "join-500-logs", "p99", "≤ 1"),
    _row("stored", "bytes of 1,000 events, followed by a reader: running", "paced-50", "stored", "≤ 1"),
    _row("stored-after", "bytes of 1,000 events, followed by a reader: completed", "paced-50", "stored after", "≤ 0.6"),
    _row("stored-unwatched", "bytes of 1,000 events, read by nobody: running", "replay-2000", "stored", "≤ 1"),
    _row(
        "stored-unwatched-after",
        "bytes of 1,000 events, read by nobody: completed",
        "replay-2000",
        "stored after",
        "≤ 0.6",
    ),
)
_STANDING = (
    _row("idle", "memory of an owner per idle job", "idle", "kB", "≤ 20 kB", other=None),
    _row("active", "running jobs of a user: 100,000 jobs of 10,000 users", "active", "p50"),
    _row(
        "active-users",
        "running jobs of a user: among 10,000 users, against among 10",
        "active",
        "p50",
        "≤ 1.2",
        other=Source("active-few", OURS, "p50"),
    ),
    _row(
        "crowd-1000",
        "10 jobs emit, 1,000 run, against 10: CPU",
        "crowd-1000",
        "cpu",
        "≤ 1.2",
        other=Source("crowd-10", OURS, "cpu"),
    ),
    _row(
        "crowd-10000",
        "10 jobs emit, 10,000 run, against 10: CPU",
        "crowd-10000",
        "cpu",
        "≤ 1.2",
        other=Source("crowd-10", OURS, "cpu"),
    ),
    _row(
        "spread-1000",
        "1,000 jobs emit in turn, linger 0, against 10: CPU",
        "spread-1000",
        "cpu",
        "≤ 1.2",
        ours=OURS_LINGER_0,
        other=Source("spread-10", OURS_LINGER_0, "cpu"),
    ),
    _row(
        "spread-10000",
        "10,000 jobs emit in turn, linger 0, against 10: CPU",
        "spread-10000",
        "cpu",
        "≤ 1.2",
        ours=OURS_LINGER_0,
        other=Source("spread-10", OURS_LINGER_0, "cpu"),
    ),
)
_CLUSTER = (
    _row(
        "r3-burst",
        "three nodes R3 against one R1: burst, 50 jobs",
        "burst-50",
        "events/s",
        "≥ 0.5",
        ours=OURS_R3,
        other=OURS,
    ),
    _row(
        "r3-latency",
        "three nodes R3 against one R1: p50, 10 jobs at 50 events/s, linger 0",
        "paced-10",
        "p50",
        "≤ 3",
        ours=OURS_R3_LINGER_0,
        other=OURS_LINGER_0,
    ),
)
_TRANSCRIPTS = (
    _row("transcripts", "recorded model streams, burst", "transcripts", "events/s"),
    _row("transcripts-paced", "recorded model streams at 50 events/s: CPU", "transcripts-paced", "cpu"),
)
_LIMITS = (
    _row("limit-pace", "the pace of the paced rows by itself: CPU", "pacing", "producer", other=None),
    _row(
        "limit-emit",
        "emit, linger 0, against nats-py publish: CPU",
        "paced-50",
        "producer",
        ours=OURS_LINGER_0,
        other=BARE,
    ),
    _row(
        "limit-stored",
        "emit, linger 0, against nats-py JetStream publish: CPU",
        "paced-50",
        "producer",
        ours=OURS_LINGER_0,
        other=BARE_JETSTREAM,
    ),
    _row(
        "limit-latency",
        "p50, linger 0, against nats-py publish, which nothing stores",
        "paced-50",
        "p50",
        ours=OURS_LINGER_0,
        other=BARE,
    ),
    _row("limit-burst", "burst, 1 job, against nats-py publish", "burst-1", "emitted/s", other=BARE),
    _row(
        "limit-delivery",
        "delivery, linger 0, against a nats-py subscription: CPU",
        "paced-50",
        "reader",
        ours=OURS_LINGER_0,
        other=BARE,
    ),
    _row(
        "limit-delivery-burst",
        "delivery of a burst, against a nats-py subscription: CPU",
        "burst-1",
        "reader",
        other=BARE,
    ),
)
GROUPS = {
    "Bursts: events as fast as they are taken, each in the hand of a reader in another process": _BURSTS,
    "Events at the pace of models, each job with a reader in another process": _PACED,
    "First events, and many readers of one job": _JOBS,
    "Logs that are there: replays, resumes, many readers at once, size": _LOGS,
    "Jobs that are merely there": _STANDING,
    "A cluster of three, against one node": _CLUSTER,
    "Recorded streams of models (with --transcripts)": _TRANSCRIPTS,
    "How far from nats-py by itself, which stores no job and replays nothing": _LIMITS,
}
"""The rows below what stands above them."""
ROWS = {row.name: replace(row, group=group) for group, rows in GROUPS.items() for row in rows}
