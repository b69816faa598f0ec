"""The interrupt of a run beside cancellations, timeouts and other runs: nobody's is mistaken for another's."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from playing import Played, forever
from waiting import eventually, soon

from natsjobs.errors import JobClosedError
from natsjobs.models import EndReason, JobStatus

# -- somebody else wants the task to stop, too --------------------------------------------------------------------


async def test_a_cancellation_at_the_same_tick_goes_on(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """The abort ends the job, the cancellation ends the task."""
    played = await Played(jobs, forever).entered()
    await transport.on_abort("c", played.task.cancel, generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)
    assert (await jobs.get("c")).status is JobStatus.ABORTED


async def test_a_cancellation_before_the_abort_goes_on(jobs: Any, jobs_b: Any) -> None:
    """The body is in its clean-up after a cancellation when somebody aborts: it stays cancelled."""
    cleaning = asyncio.Event()

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            cleaning.set()
            await forever()

    played = await Played(jobs, body).entered()
    played.task.cancel()
    await soon(cleaning.wait())
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)
    assert played.run.aborted


async def test_a_group_does_not_hide_a_cancellation(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """A TaskGroup drops the cancellation for its tasks' errors; when those are ours, it still goes on."""

    async def child(run: Any) -> None:
        try:
            await forever()
        finally:
            await run.emit("last words")

    async def body(run: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(run))
            await forever()

    played = await Played(jobs, body).entered()
    await asyncio.sleep(0)
    await transport.on_abort("c", played.task.cancel, generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(requests=1), asyncio.CancelledError)


async def test_a_timeout_at_the_same_tick_is_a_timeout(jobs: Any, jobs_b: Any, transport: Any) -> None:
    """asyncio.timeout around the block fired: its TimeoutError is raised although the run was aborted."""
    limit = asyncio.timeout(None)
    played = await Played(jobs, forever, around=limit).entered()
    await transport.on_abort("c", lambda: limit.reschedule(0), generation=played.run.generation)
    await jobs_b.abort("c")
    assert isinstance(await played.left(), TimeoutError)
    assert limit.expired()
    assert played.run.aborted


async def test_a_timeout_that_did_not_fire_stays_out_of_it(jobs: Any, jobs_b: Any) -> None:
    """An aborted run inside a timeout with time left is left quietly, and the timeout goes on."""
    limit = asyncio.timeout(60)
    played = await Played(jobs, forever, around=limit).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert not limit.expired()


async def test_a_timeout_in_the_body_does_not_take_the_interrupt(jobs: Any, jobs_b: Any) -> None:
    """asyncio.timeout inside the block gives no TimeoutError for an abort."""

    async def body(run: Any) -> None:
        async with asyncio.timeout(60):
            await forever()

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None


async def test_timeouts_work_in_the_cleanup_after_an_interrupt(jobs: Any, jobs_b: Any) -> None:
    """The request that was counted for the interrupt does not confuse them."""
    timed_out: list[bool] = []

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            try:
                async with asyncio.timeout(0.01):
                    await forever()
            except TimeoutError:
                timed_out.append(True)

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert timed_out == [True]


# -- nested blocks ------------------------------------------------------------------------------------------------


async def test_an_abort_of_the_outer_run_leaves_both_blocks(jobs: Any, jobs_b: Any) -> None:
    """The inner run is cancelled from outside; the outer block swallows its own interrupt."""
    inner: list[Any] = []

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inner.append(second)
            await forever()

    played = Played(jobs, body, "outer")
    await eventually(lambda: inner)
    await jobs_b.abort("outer")
    assert await played.left() is None
    assert played.run.aborted
    assert not inner[0].aborted
    assert (await jobs.get("inner")).end_reason is EndReason.CANCELLED


async def test_an_abort_of_the_inner_run_leaves_the_outer_alone(jobs: Any, jobs_b: Any) -> None:
    """The outer body goes on behind the inner block."""
    inside = asyncio.Event()

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inside.set()
            await forever()
        assert second.aborted
        await run.emit("going on")

    played = Played(jobs, body, "outer")
    await soon(inside.wait())
    await jobs_b.abort("inner")
    assert await played.left() is None
    assert played.run.status is JobStatus.COMPLETE


async def test_aborts_of_both_runs_at_the_same_tick_leave_both_blocks(
    jobs: Any, jobs_b: Any, transport: Any, transport_b: Any
) -> None:
    """Each block takes back its own request."""
    inner: list[Any] = []

    async def body(run: Any) -> None:
        async with jobs.start("inner", user_id="u") as second:
            inner.append(second)
            await forever()

    played = Played(jobs, body, "outer")
    await eventually(lambda: inner)
    await asyncio.gather(jobs_b.abort("outer"), jobs_b.abort("inner"))
    assert await played.left() is None
    assert played.run.aborted
    assert (await jobs.get("inner")).status.is_terminal


async def test_a_nested_start_of_the_same_id_replaces_the_outer_run(jobs: Any) -> None:
    """The inner run does its work undisturbed; then the outer body is interrupted and told."""
    reached: list[str] = []

    async def body(run: Any) -> None:
        async with jobs.start("c", user_id="u") as second:
            await eventually(lambda: run.status.is_terminal)
            await second.emit("second")
            reached.append("inner")
        assert second.status is JobStatus.COMPLETE
        await forever()

    played = Played(jobs, body)
    left = await played.left()
    assert isinstance(left, JobClosedError)
    assert (left.generation, left.end_reason) == (played.run.generation, EndReason.REPLACED)
    assert reached == ["inner"]
    assert (await jobs.get("c")).status is JobStatus.COMPLETE


# -- races --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_abort_that_races_the_end_has_one_outcome(jobs: Any, jobs_b: Any, *, cancelled: bool) -> None:
    """However the steps interleave: run, record, abort and task agree, and no request is left behind."""

    async def steps(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    for trial in range(60):
        dice = random.Random(trial)
        work, explicit = dice.randrange(12), dice.random() < 0.5

        async def body(run: Any, work: int = work, *, explicit: bool = explicit) -> None:
            await run.emit(1)
            await steps(work)
            if explicit:
                await run.complete("mine")

        stream_id = f"c{trial}"
        played = await Played(jobs, body, stream_id).entered()
        aborting = asyncio.ensure_future(jobs_b.abort(stream_id, final_event="theirs"))
        await steps(dice.randrange(12))
        asked = cancelled and played.task.cancel()
        left = await played.left(requests=int(asked))
        result, job = await soon(aborting), await jobs_b.get(stream_id)
        assert asked == isinstance(left, asyncio.CancelledError)
        assert asked or left is None
        assert result.success == (job.status is JobStatus.ABORTED)
        assert played.run.status == job.status
        assert played.run.aborted == result.success
