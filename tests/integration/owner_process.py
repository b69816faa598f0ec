"""A process that owns one job: ``owner_process.py URL NAMESPACE STREAM_ID``. Says what happens to it, line by line."""

from __future__ import annotations

import asyncio
import sys

import natsjobs
from natsjobs import Config
from natsjobs.config import Timing


async def main(url: str, namespace: str, stream_id: str) -> None:
    """Emit a number every 50 ms until somebody ends the run."""
    timing = Timing(lease=3.0, renew=1.0, request=3.0, abort=1.0, give_up=6.0, look=0.3, sweep=3600.0)
    config = Config(namespace=namespace, timing=timing)
    async with natsjobs.connect(url, config=config) as jobs:
        try:
            async with jobs.start(stream_id, user_id="alice") as run:
                number = 0
                while True:
                    await run.emit(number)
                    await run.flush()
                    if number == 0:
                        print("running", flush=True)
                    number += 1
                    await asyncio.sleep(0.05)
        except natsjobs.JobClosedError as error:
            print("closed", error.end_reason, flush=True)


asyncio.run(main(*sys.argv[1:]))
