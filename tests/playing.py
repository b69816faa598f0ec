"""Runs that play in tasks of their own, so that a test can interrupt them and see how their blocks were left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from waiting import read_all, soon

Body = Callable[[Any], Awaitable[object]]


class Played:
    """A block in a task of its own, with ``body`` inside; how it was left, and what it left behind."""

    def __init__(self, jobs: Any, body: Body, stream_id: str = "c", *, around: Any = None) -> None:
        self.run: Any = None
        self.inside = asyncio.Event()
        self.result: BaseException | None = None
        self.count = 0
        self.task = asyncio.ensure_future(self._play(jobs, body, stream_id, around))

    async def _play(self, jobs: Any, body: Body, stream_id: str, around: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if around is not None:
                async with around:
                    await self._block(jobs, body, stream_id)
            else:
                await self._block(jobs, body, stream_id)
        except BaseException as exc:  # noqa: BLE001 - what the test asks for
            self.result = exc
        self.count = task.cancelling()

    async def _block(self, jobs: Any, body: Body, stream_id: str) -> None:
        async with jobs.start(stream_id, user_id="u") as self.run:
            self.inside.set()
            await body(self.run)

    async def entered(self) -> Played:
        """Wait until the body runs."""
        await soon(self.inside.wait())
        return self

    async def left(self, *, requests: int = 0) -> BaseException | None:
        """Wait until the block was left; what it raised. ``requests``: cancellations by others that count on."""
        await soon(self.task)
        assert self.count == requests
        return self.result


async def forever(run: Any = None) -> None:
    """Wait until interrupted."""
    await asyncio.Event().wait()


async def nothing(run: Any) -> None:
    """A body that returns at once."""


async def end_of(jobs: Any, stream_id: str = "c") -> tuple[Any, ...]:
    """Status and reason in the record, type and data in the log: how a job ended for everybody."""
    job = await jobs.get(stream_id)
    terminal = (await read_all(jobs.subscribe, stream_id))[-1]
    assert terminal.end_reason == job.end_reason
    return job.status, job.end_reason, terminal.type, terminal.data


class Hanging:
    """A task with a run whose body hangs until it is interrupted; how its block was left."""

    def __init__(self, jobs: Any, stream_id: str = "c", **options: Any) -> None:
        self.inside = asyncio.Event()
        self.run: Any = None
        self.left: BaseException | None = None
        self.counts: list[int] = []
        self.task = asyncio.ensure_future(self._hang(jobs, stream_id, options))

    async def _hang(self, jobs: Any, stream_id: str, options: dict[str, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.counts.append(task.cancelling())
        try:
            async with jobs.start(stream_id, user_id="u", **options) as self.run:
                self.inside.set()
                await asyncio.Event().wait()
        except Exception as exc:  # noqa: BLE001 - what the test asks for
            self.left = exc
        self.counts.append(task.cancelling())

    async def entered(self) -> Hanging:
        """Wait until the body runs."""
        await soon(self.inside.wait())
        return self

    async def gone(self) -> BaseException | None:
        """Wait until the block was left without a trace of the interrupt; its exception."""
        await soon(self.task)
        assert self.counts == [0, 0]
        return self.left
