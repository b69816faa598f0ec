"""A process that reads one job to its end: ``replayer.py URL NAMESPACE STREAM_ID``. Says what that cost, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import natsjobs
from natsjobs import Config


def memory(what: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (most ever) of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(what)


async def main(url: str, namespace: str, stream_id: str) -> None:
    """Read everything and keep nothing."""
    async with natsjobs.connect(url, config=Config(namespace=namespace)) as jobs:
        before, began, count, size, end = memory("VmRSS"), time.monotonic(), 0, 0, ""
        async with jobs.subscribe(stream_id) as events:
            async for event in events:
                if event.is_terminal:
                    end = event.type
                else:
                    assert event.index == count
                    count, size = count + 1, size + len(event.raw)
        took = time.monotonic() - began
    grown = memory("VmHWM") - before
    print(json.dumps({"events": count, "bytes": size, "end": end, "grown": grown, "took": took}))


asyncio.run(main(*sys.argv[1:]))
