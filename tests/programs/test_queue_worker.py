"""The worker of ``queue_worker``: real processes, a real SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import nats
import nats.errors
from nats.aio.client import Client
from queue_worker import SUBJECT, Accepted, Request

import natsjobs

PROGRAM = Path(__file__).with_name("queue_worker.py")


@asynccontextmanager
async def worker(url: str, config: natsjobs.Config, *, grace: float) -> AsyncGenerator[Process, None]:
    """A worker process, killed at the end if it is still there."""
    env = {**os.environ, "NATS_URL": url, "NATSJOBS_NAMESPACE": config.namespace, "GRACE": str(grace)}
    process = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), env=env, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ask(nc: Client, request: Request) -> Accepted:
    """Ask until a worker has come up; every request is answered by one of them at most."""
    async with asyncio.timeout(30):
        while True:
            try:
                reply = await nc.request(SUBJECT, msgspec.json.encode(request), timeout=10)
                return msgspec.json.decode(reply.data, type=Accepted)
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.02)


async def test_runs_that_outlast_the_grace_end_with_a_record_that_says_so(
    natsjobs_server: str, config: natsjobs.Config
) -> None:
    """SIGTERM in the middle of an endless answer: its viewer gets a terminal record, reason shutdown, at once."""
    nc = await nats.connect(natsjobs_server)  # pyright: ignore[reportUnknownMemberType]
    async with worker(natsjobs_server, config, grace=0.2) as process, natsjobs.connect(nc=nc, config=config) as jobs:
        accepted = await ask(nc, Request(chat="c1", user="alice", count=1_000_000))
        async with jobs.subscribe("c1", generation=accepted.generation) as events:
            first = await anext(events)
            assert first.data == {"token": "0 "}
            process.send_signal(signal.SIGTERM)
            seen = [first, *[event async for event in events]]

        end = seen[-1]
        assert (end.type, end.end_reason) == (natsjobs.EventType.ERROR, natsjobs.EndReason.SHUTDOWN)
        assert [event.data["token"] for event in seen[:-1]] == [f"{i} " for i in range(end.index)]
        out, _ = await process.communicate()
        assert (process.returncode, out) == (0, b"1 runs were cut short\n")
        job = await jobs.get("c1")
        assert job is not None
        assert (job.status, job.end_reason) == (natsjobs.JobStatus.ERROR, natsjobs.EndReason.SHUTDOWN)
        assert await jobs.active("alice") == []
    await nc.close()


async def test_runs_that_end_within_the_grace_are_complete(natsjobs_server: str, config: natsjobs.Config) -> None:
    """SIGTERM in the middle of a short answer: it is finished first, and the worker leaves with status 0."""
    nc = await nats.connect(natsjobs_server)  # pyright: ignore[reportUnknownMemberType]
    async with worker(natsjobs_server, config, grace=60) as process, natsjobs.connect(nc=nc, config=config) as jobs:
        accepted = await ask(nc, Request(chat="c1", user="alice", count=100))
        async with jobs.subscribe("c1", generation=accepted.generation) as events:
            seen = [await anext(events)]
            process.send_signal(signal.SIGTERM)
            seen += [event async for event in events]

        assert [event.data["token"] for event in seen[:-1]] == [f"{i} " for i in range(100)]
        assert seen[-1].type is natsjobs.EventType.DONE
        out, _ = await process.communicate()
        assert (process.returncode, out) == (0, b"0 runs were cut short\n")
    await nc.close()


async def test_a_stopping_worker_takes_no_request_that_another_could_take(
    natsjobs_server: str, config: natsjobs.Config
) -> None:
    """Two workers, one of them told to stop in mid-answer: the next requests all go to the other and complete."""
    nc = await nats.connect(natsjobs_server)  # pyright: ignore[reportUnknownMemberType]
    async with worker(natsjobs_server, config, grace=60) as one, natsjobs.connect(nc=nc, config=config) as jobs:
        accepted = await ask(nc, Request(chat="long", user="alice", count=400))
        assert accepted.worker == one.pid
        async with worker(natsjobs_server, config, grace=60) as two, jobs.subscribe("long") as events:
            while (await ask(nc, Request(chat="probe", user="alice", count=1))).worker != two.pid:
                pass
            one.send_signal(signal.SIGTERM)
            while (await ask(nc, Request(chat="probe", user="alice", count=1))).worker != two.pid:
                pass
            for i in range(5):
                await ask(nc, Request(chat=f"next-{i}", user="alice", count=3))
            assert (await anext(events)).data == {"token": "0 "}
            assert [event async for event in events][-1].type is natsjobs.EventType.DONE
            await one.communicate()
            assert one.returncode == 0
            for i in range(5):
                async with jobs.subscribe(f"next-{i}") as answer:
                    assert [event.type.value async for event in answer] == ["event", "event", "event", "done"]
    await nc.close()
