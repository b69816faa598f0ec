"""Work on logs that are there: written while their jobs ran, at the pace of a model, before any reader came."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from natsjobs.cli.bench.live import SIZE
from natsjobs.cli.bench.producing import filling
from natsjobs.cli.bench.servers import Process
from natsjobs.cli.bench.stage import Figures, Measure, Stage
from natsjobs.config import Timing

_TIMES = 20
_BEFORE_END = 20
_FASTER = 20
"""A log of 100,000 events takes 2,000 s at 50 events a second. It is written this much faster, with a linger that is as
much shorter. Timers count in milliseconds, so a message holds somewhat more events then than at the true pace, at which
the logs of 2,000 events are written."""
_LINGER = Timing().linger


async def record(stage: Stage, jobs: int, events: int, rate: float, **settings: float) -> list[str]:
    """Jobs that still run, with their logs written at a pace."""
    (producer,) = await stage.processes(1, **settings)
    ids = stage.ids(jobs)
    await producer.ask("start", ids=ids)
    await producer.ask(
        "emit", ids=ids, events=[[filling(SIZE)]], repeat=events, rate=rate if stage.contender.groups else 0
    )
    return ids


async def replay_short(stage: Stage) -> Figures:
    """Logs of 2,000 events, written at 50 events a second, each read from its start by one reader."""
    events = stage.scaled(2_000, 10)
    ids = await record(stage, stage.scaled(_TIMES, 3), events, 50)
    (reader,) = await stage.processes(1)
    return await replayed(stage, reader, ids, events)


async def replayed(stage: Stage, reader: Process, ids: Sequence[str], events: int) -> Figures:
    """One log after the other, each from attaching to the last event."""
    before = stage.server.cpu
    done = [await reader.ask("replay", ids=[one], count=events) for one in ids]
    return {
        "events/s": events / statistics.median(one["p50"] for one in done),
        "reader": sum(one["cpu"] for one in done) / events / len(ids) * 1e6,
        "server": (stage.server.cpu - before) / events / len(ids) * 1e6,
        "reader MB": (await reader.ask("memory"))["bytes"] / 1e6,
    }


async def long_log(stage: Stage) -> Figures:
    """A log of 100,000 events: read from its start, and resumed 20 events before its end; so is one of 1,000."""
    events, few = stage.scaled(100_000, 100), stage.scaled(1_000, 50)
    (long,) = await record(stage, 1, events, 50 * _FASTER, linger=_LINGER / _FASTER)
    (short,) = await record(stage, 1, few, 50 * _FASTER, linger=_LINGER / _FASTER)
    (reader,) = await stage.processes(1)
    figures = await replayed(stage, reader, [long] * 3, events)
    ways = [(one, count, await _place(reader, one, count)) for one, count in ((long, events), (short, few))]
    times: dict[str, list[float]] = {long: [], short: []}
    for _ in range(stage.scaled(_TIMES, 3)):
        for one, count, after in ways:
            done = await reader.ask("replay", ids=[one], count=_BEFORE_END, after=after, first=count - _BEFORE_END)
            times[one].append(done["p50"] * 1e3)
    return figures | {"resume": statistics.median(times[long]), "resume short": statistics.median(times[short])}


async def _place(reader: Process, stream_id: str, count: int) -> str:
    found = await reader.ask("cursor", stream_id=stream_id, place=count - _BEFORE_END - 1)
    return str(found["cursor"])


def joining(jobs: int, events: int, rate: float, readers: int) -> Measure:
    """Readers in one process that come at once, spread over logs of running jobs, each from the start."""

    async def measure(stage: Stage) -> Figures:
        many, each = stage.scaled(readers, 5), stage.scaled(events, 5)
        ids = await record(stage, min(jobs, many), each, rate)
        (reader,) = await stage.processes(1)
        done = await reader.ask("replay", ids=[ids[k % len(ids)] for k in range(many)], count=each)
        return {"p50": done["p50"] * 1e3, "p99": done["p99"] * 1e3, "reader": done["cpu"] / many / each * 1e6}

    return measure
