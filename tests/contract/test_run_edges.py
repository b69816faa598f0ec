"""Entering and leaving a start block under way: a job is never left running, and an end is never lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gates import gated
from playing import Played, forever, nothing
from waiting import soon

import natsjobs
from natsjobs.errors import UnavailableError
from natsjobs.models import EndReason, JobStatus

# -- entering -----------------------------------------------------------------------------------------------------


async def test_a_start_that_is_cancelled_leaves_no_running_job(replica: Any) -> None:
    """Cancelled while the job is being created: when it exists it ends at once."""
    async with gated(replica, "create_job") as (jobs, gate):
        played = Played(jobs, forever)
        await soon(gate.reached.wait())
        played.task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert isinstance(await played.left(requests=1), asyncio.CancelledError)
        assert not played.inside.is_set()
        job = await jobs.get("c")
    assert (job.status, job.end_reason) == (JobStatus.ERROR, EndReason.CANCELLED)


@pytest.mark.parametrize("method", ["on_abort", "on_end"])
async def test_a_start_that_fails_in_the_middle_leaves_no_running_job(replica: Any, method: str) -> None:
    """The job exists, but the run cannot listen for its end."""
    async with gated(replica, method, part="transport") as (jobs, gate):
        gate.fail(UnavailableError("NATS is away"))
        with pytest.raises(UnavailableError):
            async with jobs.start("c", user_id="u"):
                pytest.fail("entered")
        assert (await jobs.get("c")).status is JobStatus.ERROR
        assert await jobs.active("u") == []


async def test_an_abort_while_the_run_is_being_started_is_not_lost(replica: Any, jobs_b: Any) -> None:
    """It ended between being created and being entered: the body is interrupted at its first await."""
    async with gated(replica, "on_abort", part="transport") as (jobs, gate):
        reached: list[str] = []

        async def body(run: Any) -> None:
            reached.append("entered")
            await forever()

        played = Played(jobs, body)
        await soon(gate.reached.wait())
        assert (await jobs_b.abort("c")).success
        gate.open.set()
        assert await played.left() is None
    assert played.run.aborted
    assert reached == ["entered"]


# -- leaving ------------------------------------------------------------------------------------------------------


async def test_a_cancellation_while_the_end_is_stored_goes_on_and_the_end_is_stored(replica: Any) -> None:
    """Also when it comes several times."""
    async with gated(replica, "end_job") as (jobs, gate):
        played = Played(jobs, nothing)
        await soon(gate.reached.wait())
        for _ in range(3):
            played.task.cancel()
            await asyncio.sleep(0)
        gate.open.set()
        assert isinstance(await played.left(requests=3), asyncio.CancelledError)
        assert (await jobs.get("c")).status is JobStatus.COMPLETE


async def test_a_cancellation_does_not_wait_for_ever_for_the_end(backend: Any) -> None:
    """NATS is away: the task is released after a bounded time, the end is stored when it can be."""
    replica = await backend.replica(backend.config(timing={"request": 0.5}))
    async with gated(replica, "end_job") as (jobs, gate):
        played = await Played(jobs, forever).entered()
        played.task.cancel()
        assert isinstance(await played.left(requests=1), asyncio.CancelledError)
        assert (await jobs.get("c")).status is JobStatus.RUNNING
        gate.open.set()
        await soon(gate.passed.wait())
        assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


async def test_ctrl_c_does_not_wait_for_ever_for_the_end(backend: Any) -> None:
    """Nor does any other exception that is no Exception."""

    class Stop(BaseException):
        pass

    async def body(run: Any) -> None:
        raise Stop

    replica = await backend.replica(backend.config(timing={"request": 0.5}))
    async with gated(replica, "end_job") as (jobs, gate):
        assert isinstance(await Played(jobs, body).left(), Stop)
        gate.open.set()
        await soon(gate.passed.wait())
        assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


async def test_leaving_in_another_task_is_refused_and_ends_the_job(jobs: Any) -> None:
    """The error says why and what to do instead."""
    block = jobs.start("c", user_id="u")
    run = await asyncio.ensure_future(_enter(block))
    with pytest.raises(RuntimeError, match="another task"):
        await block.__aexit__(None, None, None)
    assert run.status is JobStatus.COMPLETE
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


async def _enter(block: Any) -> Any:
    return await block.__aenter__()


async def test_closing_a_generator_around_a_run_ends_the_job(jobs: Any) -> None:
    """GeneratorExit counts as cancelled, and aclose is quiet."""

    async def produce() -> AsyncIterator[int]:
        async with jobs.start("c", user_id="u") as run:
            for n in range(10):
                await run.emit(n)
                yield n

    numbers = produce()
    assert await anext(numbers) == 0
    await numbers.aclose()
    assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


def test_ctrl_c_ends_the_job_and_goes_on() -> None:
    """KeyboardInterrupt comes out of asyncio.run, as it does without a run."""
    seen: list[Any] = []

    async def main() -> None:
        store = natsjobs.MemoryJobStore(natsjobs.Config())
        transport = natsjobs.MemoryEventTransport(store)
        try:
            async with natsjobs.JobManager(store, transport, config=natsjobs.Config()) as jobs:
                try:
                    async with jobs.start("c", user_id="u") as run:
                        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
                        await forever()
                finally:
                    seen.append((run.status, await jobs.get("c")))
        finally:
            await transport.destroy()
            await store.destroy()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    status, job = seen[0]
    assert status is JobStatus.ERROR
    assert job.end_reason is EndReason.CANCELLED


def test_the_end_of_the_loop_ends_the_job() -> None:
    """A run in a task that asyncio.run cancels at its end is stored as cancelled."""
    seen: list[Any] = []

    async def main() -> None:
        store = natsjobs.MemoryJobStore(natsjobs.Config())
        transport = natsjobs.MemoryEventTransport(store)
        inside = asyncio.Event()

        async def serve() -> None:
            async with natsjobs.JobManager(store, transport, config=natsjobs.Config()) as jobs:
                try:
                    async with jobs.start("c", user_id="u"):
                        inside.set()
                        await forever()
                finally:
                    seen.append(await jobs.get("c"))
            await transport.destroy()
            await store.destroy()

        seen.append(asyncio.ensure_future(serve()))
        await inside.wait()

    asyncio.run(main())
    assert seen[0].done()
    assert seen[1].end_reason in {EndReason.CANCELLED, EndReason.SHUTDOWN}
