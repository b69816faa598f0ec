"""Work on logs that are there: written while their jobs ran, at the pace of a model, before any reader came.

Nobody reads them while they are written, unless a work says so: whoever replays gets what was written without the help
of a reader.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from functools import partial

from natsjobs.cli.bench.live import SIZE, stored_bytes
from natsjobs.cli.bench.producing import filling
from natsjobs.cli.bench.servers import Process
from natsjobs.cli.bench.stage import Figures, Measure, Stage
from natsjobs.config import Timing

_TIMES = 20
_BEFORE_END = 20
_FASTER = 20
"""A log of 100,000 events takes 2,000 s at 50 events a second. It is written this much faster, with lingers that are
as much shorter. The other logs are written at the true pace."""
_FASTER_SETTINGS = {name: getattr(Timing(), name) / _FASTER for name in ("linger", "linger_unwatched")}


async def record(
    stage: Stage, producer: Process, ids: Sequence[str], events: int, rate: float, watcher: Process | None = None
) -> None:
    """Jobs that still run, with their logs written at a pace.

    ``watcher``: a process that follows each of them from its first event to its last, and then no more.
    """
    await producer.ask("start", ids=ids)
    pace = rate if stage.contender.groups else 0
    write = partial(producer.ask, "emit", ids=ids, events=[[filling(SIZE)]], repeat=events, rate=pace)
    if watcher is None:
        await write()
        return
    await watcher.ask("attach", ids=ids)
    await watcher.ask("expect", events=events * len(ids))
    await asyncio.gather(write(), watcher.ask("seen"))
    await watcher.ask("leave")


def replay_short(*, watched: bool) -> Measure:
    """Logs of 2,000 events, written at 50 events a second, each read from its start by one reader; and their size."""

    async def measure(stage: Stage) -> Figures:
        events, ids = stage.scaled(2_000, 10), stage.ids(stage.scaled(_TIMES, 3))
        producer, *watchers = await stage.processes(2 if watched else 1)
        empty = await stored_bytes(stage, producer)
        await record(stage, producer, ids, events, 50, *watchers)
        sizes = {"stored": await stored_bytes(stage, producer) - empty}
        (reader,) = await stage.processes(1)
        figures = await replayed(stage, reader, ids, events)
        await producer.ask("finish", ids=ids)
        sizes["stored after"] = await stored_bytes(stage, producer) - empty
        return figures | {name: size / events / len(ids) * 1000 for name, size in sizes.items()}

    return measure


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
    (fast,), (plain,) = await stage.processes(1, **_FASTER_SETTINGS), await stage.processes(1)
    long, short = stage.ids(2)
    await asyncio.gather(record(stage, fast, [long], events, 50 * _FASTER), record(stage, plain, [short], few, 50))
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
        ids = stage.ids(min(jobs, many))
        (producer,) = await stage.processes(1)
        await record(stage, producer, ids, each, rate)
        (reader,) = await stage.processes(1)
        done = await reader.ask("replay", ids=[ids[k % len(ids)] for k in range(many)], count=each)
        return {"p50": done["p50"] * 1e3, "p99": done["p99"] * 1e3, "reader": done["cpu"] / many / each * 1e6}

    return measure
