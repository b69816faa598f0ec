"""A process that owns jobs: ``worker.py WORK``, one JSON object. Says on standard output what happens, a line each.

It emits ``[number, moment, padding]`` at a steady pace, for every job at the same time. Lines go to the pipe in one
write each, so whoever reads it knows after a SIGKILL exactly what had been acknowledged. Standard input takes
``finish`` (complete all jobs) and ``busy SECONDS`` (hold up the whole process, as a computation would).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

import natsjobs
from natsjobs import Config, JobClosedError, JobManager, JobRun, NatsJobsError
from natsjobs.config import Limits, Timing

finish = asyncio.Event()


def say(**line: Any) -> None:
    """One line, at once."""
    os.write(1, json.dumps(line).encode() + b"\n")


class Counted:
    """What one job has emitted and heard."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.emitted = self.acked = 0
        self.blocked = 0.0
        self.more = asyncio.Event()

    def say(self, what: str, **more: Any) -> None:
        """A line about this job."""
        facts = {"emitted": self.emitted, "acked": self.acked, "blocked": round(self.blocked, 3)}
        say(**{"is": what, "job": self.stream_id, "at": time.monotonic(), **facts, **more})

    async def acknowledge(self, run: JobRun, *, once: bool) -> None:
        """Flush what is new, again and again, or only the first."""
        while not (once and self.acked):
            await self.more.wait()
            self.more.clear()
            target, began = self.emitted, time.monotonic()
            try:
                await run.flush()
            except JobClosedError:
                return
            except NatsJobsError as error:
                self.say("trouble", error=repr(error))
                self.more.set()
                continue
            backlog = self.emitted - self.acked
            self.acked = target
            self.say("acked", backlog=backlog, waited=round(time.monotonic() - began, 3))


async def emit(run: JobRun, counted: Counted, every: float, padding: str, *, flush: bool) -> None:
    """One event after the other until told to finish."""
    while not finish.is_set():
        began = time.monotonic()
        await run.emit([counted.emitted, began, padding])
        counted.emitted += 1
        counted.blocked = max(counted.blocked, time.monotonic() - began)
        counted.more.set()
        if not flush:
            counted.say("emitted")
        try:
            async with asyncio.timeout(every):
                await finish.wait()
        except TimeoutError:
            pass
    await run.flush()
    counted.acked = counted.emitted
    await run.complete("fine")


async def own(jobs: JobManager, stream_id: str, work: dict[str, Any]) -> None:
    """One job from its start to its end, whoever ends it."""
    counted = Counted(stream_id)
    try:
        async with jobs.start(stream_id, user_id=work["user"]) as run:
            counted.say("running", generation=run.generation)
            acknowledging = asyncio.create_task(counted.acknowledge(run, once=not work["flush"]))
            try:
                await emit(run, counted, work["every"], "x" * work["padding"], flush=work["flush"])
            except asyncio.CancelledError:
                try:  # a body that does not stop at once
                    await run.emit("after the end")
                except JobClosedError as error:
                    counted.say("refused", status=error.status, reason=error.end_reason)
                raise
            finally:
                acknowledging.cancel()
        counted.say("ended", status=run.status, reason="abort" if run.aborted else None)
    except JobClosedError as error:
        counted.say("ended", status=error.status, reason=error.end_reason)
    except NatsJobsError as error:
        counted.say("ended", status=None, reason=repr(error))


async def obey() -> None:
    """What standard input says."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "finish":
            finish.set()
        elif line[0] == "busy":
            say(**{"is": "busy"})
            time.sleep(float(line[1]))


async def main(work: dict[str, Any]) -> None:
    """Own all jobs of the work."""
    space = work["space"]
    config = Config(
        namespace=space["namespace"],
        replicas=space["replicas"],
        timing=Timing(**space["timing"]),
        limits=Limits(**space["limits"]),
    )
    obeying = asyncio.create_task(obey())
    async with natsjobs.connect(space["urls"], config=config) as jobs, asyncio.TaskGroup() as group:
        for stream_id in work["jobs"]:
            group.create_task(own(jobs, stream_id, work))
    obeying.cancel()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
