"""JobManager: opening and closing, spawned work, drain, and readers that are closed with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest
from gates import gated
from playing import forever, nothing
from waiting import eventually, read_all, soon, values

from natsjobs.errors import JobNotFoundError, JobRunningError, NotOpenError
from natsjobs.models import EndReason, JobStatus


async def _all_calls(jobs: Any) -> None:
    async def enter(block: Any) -> None:
        async with block:
            pytest.fail("entered")

    for call in (
        enter(jobs.start("c", user_id="u")),
        enter(jobs.subscribe("c")),
        jobs.spawn("c", forever, user_id="u"),
        jobs.drain(),
        jobs.abort("c"),
        jobs.claim_usage("c"),
        jobs.resume_state("c"),
        jobs.get("c"),
        jobs.list_jobs(),
        jobs.active("u"),
        jobs.count_subscribers("c"),
        jobs.count_events("c"),
    ):
        with pytest.raises(NotOpenError, match="async with"):
            await call


# -- opening and closing ------------------------------------------------------------------------------------------


async def test_a_manager_that_is_not_open_says_how_to_open_it(backend: Any) -> None:
    """Every call, before it is entered and after it was left."""
    replica = await backend.replica(opened=False)
    await _all_calls(replica.manager)
    async with replica.manager as jobs:
        assert await jobs.get("c") is None
    await _all_calls(replica.manager)
    await replica.manager.__aexit__(None, None, None)


async def test_a_manager_is_entered_once(jobs: Any) -> None:
    """Its runs and readers have one life."""
    with pytest.raises(NotOpenError, match="once"):
        await jobs.__aenter__()


async def test_leaving_the_manager_destroys_neither_part(replica: Any, backend: Any) -> None:
    """Another manager on the same parts goes on."""
    async with gated(replica, "get_job") as (second, gate):
        gate.open.set()
        async with second.start("c", user_id="u"):
            pass
    assert (await replica.manager.get("c")).status is JobStatus.COMPLETE


async def test_a_manager_is_entered_and_left_in_different_tasks(backend: Any) -> None:
    """As frameworks do it."""
    replica = await backend.replica(opened=False)
    await asyncio.ensure_future(replica.manager.__aenter__())
    await replica.manager.spawn("c", forever, user_id="u")
    await asyncio.ensure_future(replica.manager.__aexit__(None, None, None))
    assert (await replica.store.get_job("c")).end_reason is EndReason.SHUTDOWN


async def test_a_cancelled_close_still_closes(replica: Any) -> None:
    """The runs end, and the cancellation goes on."""
    async with gated(replica, "end_job") as (jobs, gate):
        await jobs.spawn("c", forever, user_id="u")
        closing = asyncio.ensure_future(jobs.__aexit__(None, None, None))
        await soon(gate.reached.wait())
        closing.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(closing)
        assert (await replica.store.get_job("c")).end_reason is EndReason.SHUTDOWN


# -- spawn --------------------------------------------------------------------------------------------------------


async def test_spawned_work_goes_on_without_its_caller(jobs: Any, jobs_b: Any) -> None:
    """spawn returns when the job exists; the work completes it."""
    go = asyncio.Event()

    async def work(run: Any) -> str:
        await go.wait()
        await run.emit("late")
        return "ignored"

    job = await jobs.spawn("c", work, user_id="u", conversation_id="k", model="m")
    assert (job.status, job.conversation_id, job.model) == (JobStatus.RUNNING, "k", "m")
    assert (await jobs_b.get("c")).generation == job.generation
    go.set()
    assert values(await read_all(jobs_b.subscribe, "c")) == ["late"]
    await soon(jobs.drain())
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


async def test_an_exception_of_spawned_work_is_recorded_and_logged(jobs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And it cancels nobody."""

    async def work(run: Any) -> None:
        raise ValueError("too hot")

    await jobs.spawn("c", work, user_id="u")
    assert await soon(jobs.drain()) == 0
    await eventually(lambda: "too hot" in caplog.text)
    assert (await jobs.get("c")).error == "too hot"


@pytest.mark.b_writes
async def test_what_ends_spawned_work_from_outside_is_no_error(
    jobs: Any, jobs_b: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An abort and the next turn are daily business."""
    await jobs.spawn("a", forever, user_id="u")
    await jobs.spawn("b", forever, user_id="u")
    await jobs_b.abort("a")
    await jobs_b.spawn("b", nothing, user_id="u")
    await soon(jobs.drain())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_job_that_cannot_be_created_is_the_callers_error(jobs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Raised by spawn, not logged as a failure of the background."""
    await jobs.spawn("c", forever, user_id="u")
    with pytest.raises(JobRunningError):
        await jobs.spawn("c", forever, user_id="u", if_running="reject")
    with pytest.raises(ValueError, match="stream_id"):
        await jobs.spawn("", forever, user_id="u")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_caller_cancelled_in_spawn_leaves_no_running_job(replica: Any) -> None:
    """Nobody would know of it."""
    async with gated(replica, "create_job") as (jobs, gate):
        spawning = asyncio.ensure_future(jobs.spawn("c", forever, user_id="u"))
        await soon(gate.reached.wait())
        spawning.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(spawning)
        assert (await jobs.get("c")).end_reason is EndReason.CANCELLED


# -- drain --------------------------------------------------------------------------------------------------------


async def test_drain_waits_for_open_runs_and_takes_no_new_ones(jobs: Any) -> None:
    """Blocks and spawned work; reading still works."""
    go = asyncio.Event()

    async def work(run: Any) -> None:
        await go.wait()

    async def block() -> None:
        async with jobs.start("b", user_id="u"):
            entered.set()
            await go.wait()

    entered = asyncio.Event()
    await jobs.spawn("a", work, user_id="u")
    blocked = asyncio.ensure_future(block())
    await soon(entered.wait())
    draining = asyncio.ensure_future(jobs.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(NotOpenError, match="draining"):
        await jobs.spawn("c", work, user_id="u")
    with pytest.raises(NotOpenError, match="draining"):
        async with jobs.start("c", user_id="u"):
            pytest.fail("entered")
    assert await jobs.get("c") is None
    assert not draining.done()
    go.set()
    assert await soon(draining) == 0
    await soon(blocked)
    assert {job.status for job in await jobs.list_jobs()} == {JobStatus.COMPLETE}


async def test_drain_inside_a_run_does_not_wait_for_itself(jobs: Any) -> None:
    """The run that calls it goes on."""
    async with jobs.start("c", user_id="u") as run:
        assert await soon(jobs.drain()) == 0
        await run.emit("still here")
    assert run.status is JobStatus.COMPLETE


async def test_drain_waits_until_the_interrupted_bodies_have_cleaned_up(jobs: Any) -> None:
    """Their last usage is recorded while the store is there."""

    async def work(run: Any) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.05)
            await run.record_usage({"input_tokens": 5})

    job = await jobs.spawn("c", work, user_id="u")
    assert await soon(jobs.drain(0)) == 1
    claimed = await jobs.claim_usage("c", generation=job.generation)
    assert [entry.input_tokens for entry in claimed] == [5]


async def test_a_run_that_is_being_started_is_drained_too(replica: Any) -> None:
    """Created after the drain ran out: it ends at once and is not entered."""
    async with gated(replica, "create_job") as (jobs, gate):
        spawning = asyncio.ensure_future(jobs.spawn("c", forever, user_id="u"))
        await soon(gate.reached.wait())
        draining = asyncio.ensure_future(jobs.drain(0))
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await soon(draining) == 1
        with pytest.raises(NotOpenError):
            await soon(spawning)
        assert (await jobs.get("c")).end_reason is EndReason.SHUTDOWN


async def test_a_body_that_ignores_its_interrupt_does_not_hold_up_the_close(backend: Any) -> None:
    """The job has ended; the block is told when the body is done at last."""
    replica = await backend.replica(backend.config(timing={"abort": 0.1}), opened=False)
    go = asyncio.Event()
    entered = asyncio.Event()

    async def stubborn(jobs: Any) -> None:
        async with jobs.start("c", user_id="u"):
            entered.set()
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()

    async with replica.manager as jobs:
        task = asyncio.ensure_future(stubborn(jobs))
        await soon(entered.wait())
    assert not task.done()
    assert (await replica.store.get_job("c")).end_reason is EndReason.SHUTDOWN
    go.set()
    with pytest.raises(NotOpenError):
        await soon(task)


# -- readers ------------------------------------------------------------------------------------------------------


@pytest.mark.b_writes
async def test_closing_the_manager_closes_its_readers(backend: Any, jobs_b: Any) -> None:
    """Who waits for the next event gets NotOpenError; the job elsewhere goes on."""
    replica = await backend.replica(opened=False, role="gateway")
    async with jobs_b.start("c", user_id="u") as run:
        await run.emit(1)
        seen: list[Any] = []

        async def read(jobs: Any) -> int:
            try:
                async with jobs.subscribe("c") as events:
                    async for event in events:
                        seen.append(event.data)  # noqa: PERF401 - seen while it is being read
            except NotOpenError:
                task = asyncio.current_task()
                assert task is not None
                return task.cancelling()
            return -1

        async with replica.manager as jobs:
            reading = asyncio.ensure_future(read(jobs))
            await eventually(lambda: seen)
        assert await soon(reading) == 0
        assert seen == [1]
        await run.emit(2)
    assert run.status is JobStatus.COMPLETE


async def test_closing_the_manager_ends_the_wait_for_a_job(backend: Any) -> None:
    """A reader that waits for a job that is not there yet does not outlive its manager."""
    replica = await backend.replica(opened=False)
    async with replica.manager as jobs:
        waiting = asyncio.ensure_future(read_all(jobs.subscribe, "nobody", wait=60))
        await eventually(lambda: f"{backend.subjects.changes_prefix}job.nobody" in replica.interests())
    with pytest.raises(NotOpenError):
        await soon(waiting)


@pytest.mark.b_writes
async def test_a_reader_that_is_only_held_is_released_too(backend: Any, jobs_b: Any) -> None:
    """Its next call raises, and leaving it later is fine."""
    replica = await backend.replica(opened=False)
    async with jobs_b.start("c", user_id="u") as run:
        await run.emit(1)
        async with replica.manager as jobs:
            block = jobs.subscribe("c")
            events = await block.__aenter__()
            event = await anext(events)
        with pytest.raises(NotOpenError, match="subscribe again"):
            await anext(events)
        assert events.cursor == event.cursor
        await block.__aexit__(None, None, None)


async def test_a_cancelled_read_loses_nothing(jobs: Any) -> None:
    """A time-out around __anext__ is fine: the reader goes on."""
    async with jobs.start("c", user_id="u") as run, jobs.subscribe("c") as events:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(events)
        await run.emit(1)
        assert (await soon(anext(events))).data == 1
        assert events.job.stream_id == "c"


async def test_a_reader_that_was_left_is_closed(jobs: Any) -> None:
    """It says how to go on."""
    async with jobs.start("c", user_id="u"):
        async with jobs.subscribe("c") as events:
            pass
        with pytest.raises(NotOpenError):
            await anext(events)


async def test_the_errors_of_entering_a_reader_are_raised(jobs: Any) -> None:
    """Unknown ids, on entering."""
    with pytest.raises(JobNotFoundError):
        async with jobs.subscribe("nobody"):
            pytest.fail("entered")
