"""Our side: the library as people use it, with its defaults."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import natsjobs
from natsjobs import JobManager, JobRun
from natsjobs.cli.bench.bare import stream_bytes
from natsjobs.cli.bench.sides import Followed
from natsjobs.config import Config, Timing
from natsjobs.tasks import Tasks


class OurRun:
    """A job of this library; its block stands in a task of its own, as a request handler's would."""

    def __init__(self, tasks: Tasks, jobs: JobManager, stream_id: str, user: str) -> None:
        """Use ``started``."""
        self._done = asyncio.Event()
        self._run: asyncio.Future[JobRun] = asyncio.get_running_loop().create_future()
        self._task = tasks.spawn(self._block(jobs, stream_id, user), f"bench {stream_id}")

    async def _block(self, jobs: JobManager, stream_id: str, user: str) -> None:
        async with jobs.start(stream_id, user_id=user) as run:
            self._run.set_result(run)
            await self._done.wait()

    async def started(self) -> OurRun:
        """When the job exists."""
        run = await self._run
        self.emit, self.flush = run.emit, run.flush  # not wrapped: a call more would be measured
        return self

    async def finish(self) -> None:
        """Leave the block: flushed, terminal record stored."""
        self._done.set()
        await self._task


class Ours:
    """One process of an application on NATS."""

    def __init__(self, url: str, manager: AbstractAsyncContextManager[JobManager], jobs: JobManager) -> None:
        """Use ``open``."""
        self._url, self._manager, self._jobs = url, manager, jobs
        self._tasks = Tasks()

    @classmethod
    async def open(cls, url: str, settings: dict[str, Any]) -> Ours:
        """Connect. ``settings``: ``replicas`` and fields of ``Timing``; what is missing has its default."""
        timing = Timing(**{name: settings[name] for name in Timing.__struct_fields__ if name in settings})
        manager = natsjobs.connect(url.split(","), config=Config(timing=timing, replicas=settings.get("replicas", 1)))
        return cls(url, manager, await manager.__aenter__())

    async def start(self, stream_id: str, user: str) -> OurRun:
        """A job whose block is open."""
        return await OurRun(self._tasks, self._jobs, stream_id, user).started()

    def follow(self, stream_id: str, after: str | None = None) -> AbstractAsyncContextManager[Followed, None]:
        """A reader; it may come before the job."""
        return self._jobs.subscribe(stream_id, after=after, wait=30)

    async def active(self, user: str) -> list[str]:
        """From the index of the user."""
        return await self._jobs.active(user)

    async def stored(self) -> int:
        """What JetStream says of the stream that holds all logs: messages with their subjects, headers and framing."""
        return await stream_bytes(self._url, "natsjobs_events")

    async def close(self) -> None:
        """Leave ``connect``; jobs that still run end with that."""
        await self._tasks.close()
        await self._manager.__aexit__(None, None, None)
