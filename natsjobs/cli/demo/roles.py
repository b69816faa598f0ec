"""The demo's other processes: ``python -m natsjobs.cli.demo.roles worker|viewer``. One role is one replica.

They take commands and give reports as JSON lines over pipes, and end when their standard input does, so none outlives
the demo. They report what they did and what they got, and judge nothing: that is the ledger's business.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

import natsjobs
from natsjobs import JobManager
from natsjobs.cli.demo import source
from natsjobs.cli.lines import STDIN, lines
from natsjobs.cli.login import Login
from natsjobs.errors import NatsJobsError
from natsjobs.models import to_dict
from natsjobs.tasks import Tasks

_LINE_LIMIT = 1_048_576
_FLUSH_EVERY = 8
_ATTACH_WAIT = 10.0
_LEAVE = 2.0


def report(kind: str, **fields: Any) -> None:
    """One line for the demo's main process, which reads all the time: this does not wait for long."""
    sys.stdout.buffer.write(msgspec.json.encode({"is": kind, **fields}) + b"\n")
    sys.stdout.buffer.flush()


async def produce(jobs: JobManager, events: list[Any], stream_id: str, interval: float, *, endless: bool) -> None:
    """Run one generation: the events at a steady pace, each reported before it is emitted, acknowledgements after."""
    loop = asyncio.get_running_loop()
    emitted = 0
    async with jobs.start(stream_id, user_id="demo", model="demo") as run:
        report("started", id=stream_id, generation=run.generation)
        begin = loop.time()
        for event in itertools.cycle(events) if endless else events:
            await asyncio.sleep(max(0.0, begin + emitted * interval - loop.time()))
            report("emit", id=stream_id, value=event)
            await run.emit(event)
            emitted += 1
            if emitted % _FLUSH_EVERY == 0:
                acknowledged = emitted
                await run.flush()
                report("stored", id=stream_id, count=acknowledged)
        await run.complete({"events": emitted})
        report("stored", id=stream_id, count=emitted)
    report("left", id=stream_id, status=run.status.value, aborted=run.aborted)


async def view(jobs: JobManager, stream_id: str, browser: str, after: str | None) -> None:
    """Follow one job for one browser and report all it gets."""
    async with jobs.subscribe(stream_id, after=after, wait=_ATTACH_WAIT) as events:
        report("attached", id=stream_id, browser=browser)
        async for event in events:
            report(
                "end" if event.is_terminal else "event",
                id=stream_id,
                browser=browser,
                index=event.index,
                type=event.type.value,
                reason=event.end_reason.value if event.end_reason else None,
                generation=event.generation,
                cursor=event.cursor,
                value=msgspec.Raw(event.raw),
            )


async def abort(jobs: JobManager, stream_id: str) -> None:
    """Stop a job that another process runs."""
    report("aborted", id=stream_id, result=to_dict(await jobs.abort(stream_id)))


async def active(jobs: JobManager, stream_id: str) -> None:
    """Whether the job is still listed as active for its user."""
    report("active", id=stream_id, active=stream_id in await jobs.active("demo"))


async def obey(jobs: JobManager, events: list[Any], command: dict[str, Any]) -> None:
    """Carry out one command; what keeps it from that is a report too."""
    stream_id = command["id"]
    try:
        match command["do"]:
            case "produce":
                await produce(jobs, events, stream_id, command["interval"], endless=command["endless"])
            case "view":
                await view(jobs, stream_id, command["browser"], command["after"])
            case "abort":
                await abort(jobs, stream_id)
            case _:
                await active(jobs, stream_id)
    except NatsJobsError as exc:
        report("failed", id=stream_id, what=command["do"], error=str(exc))


async def act(options: argparse.Namespace) -> None:
    """Connect, then obey until standard input ends."""
    events = source.load(options.input) if options.role == "worker" else []
    tasks = Tasks()
    async with natsjobs.connect(**Login().options(None)) as jobs:
        report("ready", id="")
        try:
            async with aclosing(lines(STDIN, _LINE_LIMIT)) as commands:
                async for _, line in commands:
                    tasks.spawn(obey(jobs, events, msgspec.json.decode(line)), name="demo command")
        finally:
            # The demo has ended, and perhaps its server too: nobody waits for what NATS does not answer any more.
            asyncio.get_running_loop().call_later(_LEAVE, os._exit, 1)
            await tasks.close()


def main() -> int:
    """Run one role."""
    parser = argparse.ArgumentParser(prog="natsjobs.cli.demo.roles")
    parser.add_argument("role", choices=["worker", "viewer"])
    parser.add_argument("--input", type=Path)
    try:
        asyncio.run(act(parser.parse_args()))
    except NatsJobsError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
