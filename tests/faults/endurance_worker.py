"""A replica that works for a long time: ``endurance_worker.py SCENARIO URL NAMESPACE AMOUNT``.

It measures itself after its warm-up and several times from there on, each time when nothing is going on: one JSON line
per measure on standard output. Nothing here judges the figures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Any

import natsjobs
from natsjobs import Config
from natsjobs.config import Retention, Timing

PHASES = 5
WAVES = 2
"""Of the jobs, in the short form: after each of them everything has to expire, which takes seconds."""
TIMING = Timing(lease=3.0, renew=1.0, abort=1.0, sweep=1.5, look=0.5)
RETENTION = Retention(running=9.0, finished=1.0, log=10.0, orphan=1.0, tombstone=1.0)
"""Of the jobs: everything expires within seconds, so that what is left afterwards is a leak."""


def resident() -> int:
    """Memory of this process, kB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def held(jobs: Any) -> dict[str, int]:
    """Sizes of everything that grows with jobs, viewers and replicas, wherever it is; what is empty is left out."""
    replica, transport = jobs.store.replica, jobs.transport
    wire = replica.context.link._wire
    parts = {
        "runs": replica.runs, "ends": replica.runs.ends, "aborts": replica.aborts, "content": replica.content,
        "ledger": replica.ledger, "liveness": replica.liveness, "upkeep": replica.upkeep, "context": replica.context,
        "transport": transport, "tails": transport._tails, "presence": transport._presence, "manager": jobs,
        "wire": wire, "inbox": wire._inbox, "tap": wire._tap,
    }  # fmt: skip
    return {
        f"{name}.{field}": len(value)
        for name, part in parts.items()
        for field, value in vars(part).items()
        if isinstance(value, Sized) and not isinstance(value, str | bytes) and len(value)
    }


def measure(jobs: Any, **more: Any) -> None:
    """One line of figures."""
    gc.collect()
    replica = jobs.store.replica
    sizes = held(jobs)
    print(
        json.dumps(
            {
                "rss_kb": resident(),
                "objects": len(gc.get_objects()),
                "kinds": Counter(type(one).__name__ for one in gc.get_objects()).most_common(60),
                "tasks": len(asyncio.all_tasks()),
                "subscriptions": sorted(sub.subject for sub in replica.context.link.nc._subs.values()),
                "held": sizes,
                **more,
            }
        ),
        flush=True,
    )


async def settle(jobs: Any) -> None:
    """Wait until what has expired is forgotten, as far as it ever is."""
    runs = jobs.store.replica.runs
    deadline = time.monotonic() + 60
    while (list(runs._writers) or runs.over or runs.retired) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    await asyncio.sleep(TIMING.lease + 0.3)
    await jobs.count_subscribers("nobody")


async def one_job(jobs: natsjobs.JobManager, number: int) -> int:
    """A job of ten events; some have viewers here, of every kind. How many events were seen."""
    name = f"job-{number}"
    registrations: list[Any] = []
    subscription: Any = None
    reading: asyncio.Task[int] | None = None
    handled: list[Any] = []
    async with jobs.start(name, user_id=f"user-{number % 50}") as run:
        if number % 5 == 0:
            reading = asyncio.create_task(read(jobs, name))
            subscription = await jobs.transport.subscribe(name, on_chunk=handled.append)
            registrations = [
                await jobs.transport.on_all_subscribers_left(name, lambda: None),
                await jobs.transport.on_abort(name, lambda: None),
                await jobs.transport.on_end(name, lambda _: None),
            ]
        jobs.store.set_content_parts(name, [{"type": "text", "text": "x"}])
        for event in range(10):
            await run.emit({"number": event, "text": "some words of an answer"})
        if number % 10 == 3:
            await jobs.abort(name)
    if reading is None:
        return 0
    seen = await reading
    await jobs.count_subscribers(name)
    await subscription.unsubscribe()
    for registration in registrations:
        await registration.dispose()
    return seen


async def read(jobs: natsjobs.JobManager, name: str) -> int:
    """A viewer from start to end; how many events it got."""
    async with jobs.subscribe(name) as events:
        return sum([not event.is_terminal async for event in events])


async def many_jobs(jobs: natsjobs.JobManager, amount: int) -> None:
    """``amount`` jobs, twenty at a time."""
    gate = asyncio.Semaphore(20)

    async def gated(number: int) -> int:
        async with gate:
            return await one_job(jobs, number)

    waves = WAVES if amount < 5_000 else PHASES
    part = amount // waves
    for phase in range(waves):
        seen = await asyncio.gather(*(gated(phase * part + number) for number in range(part)))
        await settle(jobs)
        measure(jobs, done=(phase + 1) * part, seen=sum(seen))


async def one_long_run(jobs: natsjobs.JobManager, amount: int) -> None:
    """One run without a viewer."""
    text = "some words of an answer that nobody reads while it is being written, " * 3
    async with jobs.start("unattended", user_id="alice") as run:
        for number in range(amount):
            await run.emit({"number": number, "text": text})
            if (number + 1) % (amount // PHASES) == 0:
                await run.flush()
                measure(jobs, done=number + 1)


async def come_and_go(jobs: natsjobs.JobManager, amount: int) -> None:
    """Viewers of one running job that attach, read a little, and leave."""

    async def reader() -> None:
        async with jobs.subscribe("hot") as events:
            await anext(events)

    async def handlers() -> None:
        subscription = await jobs.transport.subscribe("hot", on_chunk=lambda _: None)
        await subscription.unsubscribe()

    async def waiting() -> None:
        try:
            async with jobs.subscribe(f"nobody-{time.monotonic_ns()}", wait=0.001):
                pass
        except natsjobs.JobNotFoundError:
            pass

    async with jobs.start("hot", user_id="alice") as run:
        await run.emit("first")
        await run.flush()
        for phase in range(PHASES):
            for _ in range(amount // PHASES // 20):
                calls = [reader() for _ in range(10)] + [handlers() for _ in range(5)] + [waiting() for _ in range(5)]
                await asyncio.gather(*calls)
                await run.update()
            measure(jobs, done=(phase + 1) * (amount // PHASES))


SCENARIOS = {"jobs": many_jobs, "run": one_long_run, "viewers": come_and_go}


async def main(scenario: str, url: str, namespace: str, amount: str) -> None:
    """Run one scenario; when its input ends, leave."""
    retention = RETENTION if scenario == "jobs" else Retention()
    config = Config(namespace=namespace, timing=TIMING, retention=retention)
    async with natsjobs.connect(url, config=config) as jobs:
        await SCENARIOS[scenario](jobs, int(amount))
        print(json.dumps({"finished": True}), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


asyncio.run(main(*sys.argv[1:]))
