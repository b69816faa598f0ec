"""Work of jobs that merely are there: the memory that they take at their owner, and finding those of one user."""

from __future__ import annotations

import asyncio

from natsjobs.cli.bench.stage import Figures, Measure, Stage

_JOBS_OF_A_USER = 10


async def idle(stage: Stage) -> Figures:
    """Memory of an owner, per running job without events."""
    (producer,) = await stage.processes(1)
    jobs = stage.scaled(2000, 100)
    await producer.ask("start", ids=stage.ids(100))
    before = (await producer.ask("memory"))["bytes"]
    await producer.ask("start", ids=stage.ids(jobs))
    return {"kB": ((await producer.ask("memory"))["bytes"] - before) / jobs / 1000}


def active(users: int) -> Measure:
    """Running jobs of one user, who has ten, among so many users; their owners are two processes."""

    async def measure(stage: Stage) -> Figures:
        *owners, reader = await stage.processes(3)
        names = stage.ids(stage.scaled(users, 10))
        halves = [names[: len(names) // 2], names[len(names) // 2 :]]
        await asyncio.gather(
            *(
                owner.ask("start", ids=stage.ids(_JOBS_OF_A_USER * len(half)), users=half)
                for owner, half in zip(owners, halves, strict=True)
            )
        )
        asked = [names[number % len(names)] for number in range(stage.scaled(200, 20))]
        done = await reader.ask("active", users=asked, expected=_JOBS_OF_A_USER)
        return {"p50": done["p50"] * 1e3, "p99": done["p99"] * 1e3}

    return measure
