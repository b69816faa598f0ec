"""A worker: takes job requests from a NATS queue group, and leaves nothing half done when it is told to stop.

Run as many as you like: ``NATS_URL=… python queue_worker.py``. A request is a message on ``chat.requests``::

    {"chat": "c1", "user": "alice", "count": 100}

and is answered at once with ``{"generation": …}``; the answer itself is read with ``JobManager.subscribe`` anywhere.
On SIGTERM (a rolling update, a node that is drained) it takes no more requests, gives the open runs ``GRACE``
seconds, and ends the rest with a terminal record that says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import msgspec
import nats
from nats.aio.msg import Msg

import natsjobs

SUBJECT = "chat.requests"
QUEUE = "chat-workers"


class Request(msgspec.Struct, frozen=True):
    chat: str
    user: str
    count: int


class Accepted(msgspec.Struct, frozen=True):
    generation: str
    worker: int


async def model(count: int) -> AsyncIterator[str]:
    """Counts, one number every few milliseconds."""
    for i in range(count):
        await asyncio.sleep(0.005)
        yield f"{i} "


async def answer(run: natsjobs.JobRun, request: Request) -> None:
    async for token in model(request.count):
        await run.emit({"token": token})


async def work(jobs: natsjobs.JobManager, message: Msg) -> None:
    request = msgspec.json.decode(message.data, type=Request)
    job = await jobs.spawn(request.chat, lambda run: answer(run, request), user_id=request.user)
    await message.respond(msgspec.json.encode(Accepted(generation=job.generation, worker=os.getpid())))


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    grace = float(os.environ.get("GRACE", "25"))

    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))  # pyright: ignore[reportUnknownMemberType]
    async with natsjobs.connect(nc=nc) as jobs:

        async def take(message: Msg) -> None:
            await work(jobs, message)

        requests = await nc.subscribe(SUBJECT, queue=QUEUE, cb=take)  # pyright: ignore[reportUnknownMemberType]
        await stop.wait()
        await requests.drain()
        ended = await jobs.drain(grace)
        print(f"{ended} runs were cut short", flush=True)
    await nc.drain()


if __name__ == "__main__":
    asyncio.run(main())
