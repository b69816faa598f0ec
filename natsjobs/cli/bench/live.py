"""Work while jobs run: jobs in one process, their readers in another, from the first event to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from natsjobs.cli.bench.producing import filling
from natsjobs.cli.bench.servers import Process
from natsjobs.cli.bench.stage import OURS, PEER, Figures, Measure, Stage

_CROWD = 500
SIZE = 150
"""Bytes of an event, encoded."""


async def live(
    stage: Stage, jobs: int, events: Sequence[Sequence[Any]], repeat: int, rate: float, *, stored: bool = False
) -> Figures:
    """Events into jobs at a pace, or as fast as they are taken; every job has one reader."""
    stored = stored and stage.contender in {OURS, PEER}  # it waits, and no row asks the others
    producer, reader = await stage.processes(2)
    jobs = stage.scaled(jobs, min(jobs, 50))
    ids, counts = stage.ids(jobs), [len(one) * repeat for one in events]
    total = sum(counts[k % len(counts)] for k in range(jobs))
    empty = await stored_bytes(stage, producer) if stored else 0
    await producer.ask("start", ids=ids)
    await reader.ask("attach", ids=ids)
    await reader.ask("expect", events=total)
    before = stage.server.cpu
    made, read = await asyncio.gather(
        producer.ask("emit", ids=ids, events=events, repeat=repeat, rate=rate), reader.ask("seen")
    )
    server = stage.server.cpu - before
    figures = per_event(made, read, server, total)
    if rate:
        figures["pace"] = max(counts) / rate / (read["last"] - made["begin"]) * 1e9
    figures |= await _resident(producer, reader)
    if stored:
        figures["stored"] = (await stored_bytes(stage, producer) - empty) / total * 1000
    await asyncio.gather(producer.ask("finish", ids=ids), reader.ask("end", counts=counts))
    if stored:
        figures["stored after"] = (await stored_bytes(stage, producer) - empty) / total * 1000
    return figures


def per_event(made: dict[str, Any], read: dict[str, Any], server: float, total: int) -> Figures:
    """The columns of a work in which events were emitted and seen."""
    return {
        "events/s": total / (read["last"] - made["begin"]) * 1e9,
        "emitted/s": total / (made["end"] - made["begin"]) * 1e9,
        "cpu": (made["cpu"] + read["cpu"]) / total * 1e6,
        "producer": made["cpu"] / total * 1e6,
        "reader": read["cpu"] / total * 1e6,
        "server": server / total * 1e6,
        "p50": read["p50"] / 1e6,
        "p99": read["p99"] / 1e6,
    }


async def stored_bytes(stage: Stage, process: Process) -> int:
    """Bytes of all logs, when nothing changes any more."""
    return int((await process.ask("stored", still=stage.still))["bytes"])


async def _resident(producer: Process, reader: Process) -> Figures:
    there, here = await asyncio.gather(producer.ask("memory"), reader.ask("memory"))
    return {"producer MB": there["bytes"] / 1e6, "reader MB": here["bytes"] / 1e6}


def burst(jobs: int, events: int) -> Measure:
    """As fast as the producer is let."""

    async def measure(stage: Stage) -> Figures:
        return await live(stage, jobs, [[filling(SIZE)]], stage.scaled(events), 0)

    return measure


def paced(jobs: int, rate: float, seconds: float, *, stored: bool = False) -> Measure:
    """At the pace of models."""

    async def measure(stage: Stage) -> Figures:
        events = stage.scaled(int(rate * seconds))
        return await live(stage, jobs, [[filling(SIZE)]], events, rate, stored=stored)

    return measure


def recorded_streams(rate: float, copies: int) -> Measure:
    """Recorded streams of real models, each in so many jobs, with their events as they are."""

    async def measure(stage: Stage) -> Figures:
        streams = [list(one)[: stage.scaled(len(one), 5)] for one in stage.transcripts]
        return await live(stage, copies * len(streams), streams, 1, rate)

    return measure


async def first_event(stage: Stage) -> Figures:
    """Jobs one after the other: started, attached to, first event emitted, seen; all in one process."""
    (process,) = await stage.processes(1)
    done = await process.ask("first_event", ids=stage.ids(stage.scaled(100)), filled=filling(SIZE))
    return {"p50": done["p50"] * 1e3, "p99": done["p99"] * 1e3}


async def first_event_awaited(stage: Stage) -> Figures:
    """Jobs one after the other, for each of which a reader in another process waits already."""
    producer, reader = await stage.processes(2)
    ids = stage.ids(stage.scaled(100))
    await reader.ask("attach_early", ids=ids)
    await reader.ask("expect", events=len(ids))
    begun = producer.ask("begin_each", ids=ids, filled=filling(SIZE), pause=0.02)
    read = (await asyncio.gather(begun, reader.ask("seen")))[1]
    await asyncio.gather(producer.ask("finish", ids=ids), reader.ask("end", counts=[1]))
    return {"p50": read["p50"] / 1e6, "p99": read["p99"] / 1e6}


async def hot(stage: Stage) -> Figures:
    """One job at 50 events a second, a thousand readers in one process."""
    producer, reader = await stage.processes(2)
    ids, copies, events = stage.ids(1), stage.scaled(1000), stage.scaled(200)
    await producer.ask("start", ids=ids)
    await reader.ask("attach", ids=ids, copies=copies)
    await reader.ask("expect", events=events * copies)
    before = stage.server.cpu
    made, read = await asyncio.gather(
        producer.ask("emit", ids=ids, events=[[filling(SIZE)]], repeat=events, rate=50), reader.ask("seen")
    )
    figures = per_event(made, read, stage.server.cpu - before, events * copies)
    figures["pace"] = figures["events/s"] / (50 * copies)
    figures |= await _resident(producer, reader)
    await asyncio.gather(producer.ask("finish", ids=ids), reader.ask("end", counts=[events]))
    return figures


def crowd(jobs: int, emitting: int | None) -> Measure:
    """So many running jobs with a reader each. ``emitting``: so many of them emit; ``None``: all, in turn.

    500 events a second in total. Every job has had one event before: the first of a job is another thing.
    """

    async def measure(stage: Stage) -> Figures:
        producer, reader = await stage.processes(2)
        ids, filled = stage.ids(stage.scaled(jobs, 10)), filling(SIZE)
        chosen = ids if emitting is None else ids[:emitting]
        each = max(1, stage.scaled(6_000) // len(chosen))
        await producer.ask("start", ids=ids)
        await reader.ask("attach", ids=ids)
        await reader.ask("expect", events=len(ids))
        await producer.ask("emit_in_turn", ids=ids, filled=filled, each=1, rate=0)
        await reader.ask("seen")
        total = each * len(chosen)
        await reader.ask("expect", events=total)
        before = stage.server.cpu
        made, read = await asyncio.gather(
            producer.ask("emit_in_turn", ids=chosen, filled=filled, each=each, rate=_CROWD, first=1),
            reader.ask("seen"),
        )
        figures = per_event(made, read, stage.server.cpu - before, total)
        figures["pace"] = figures["events/s"] / _CROWD
        return figures | await _resident(producer, reader)

    return measure


async def pacing(stage: Stage) -> Figures:
    """What the pace of the paced works costs by itself: their timers, without anything emitted."""
    (process,) = await stage.processes(1)
    done = await process.ask("pace", jobs=50, events=stage.scaled(300), rate=50)
    return {"producer": done["cpu"] / 50 / stage.scaled(300) * 1e6}
