"""The interrupt of a run: once, at any await, and nothing of it is left behind the block."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from playing import Played, forever
from waiting import soon

from natsjobs.errors import JobClosedError
from natsjobs.models import EndReason, JobStatus

# -- where it hits ------------------------------------------------------------------------------------------------


async def test_the_interrupt_comes_once(jobs: Any, jobs_b: Any) -> None:
    """Clean-up after it runs to its end, however often it awaits."""
    steps: list[str] = []

    async def body(run: Any) -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            assert run.aborted
            steps.append("interrupted")
            raise
        finally:
            for _ in range(20):
                await asyncio.sleep(0.005)
            await run.record_usage({"input_tokens": 1})
            steps.append("cleaned up")

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert steps == ["interrupted", "cleaned up"]


async def test_the_interrupt_hits_a_finally_too(jobs: Any, jobs_b: Any) -> None:
    """A body that has done its work and hangs in its clean-up can still be stopped."""
    cleaning = asyncio.Event()

    async def body(run: Any) -> None:
        try:
            pass
        finally:
            cleaning.set()
            await forever()

    played = Played(jobs, body)
    await soon(cleaning.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    assert played.run.aborted


async def test_what_is_shielded_finishes(jobs: Any, jobs_b: Any) -> None:
    """asyncio.shield keeps a save alive that the interrupt meets."""
    saving, go, saved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def save() -> None:
        saving.set()
        await go.wait()
        saved.set()

    saves: list[asyncio.Future[None]] = []

    async def body(run: Any) -> None:
        try:
            pass
        finally:
            saves.append(asyncio.ensure_future(save()))
            await asyncio.shield(saves[0])

    played = Played(jobs, body)
    await soon(saving.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    go.set()
    await soon(saves[0])
    assert saved.is_set()


async def test_an_abort_by_the_body_itself_comes_after_the_call(jobs: Any) -> None:
    """It gets the result, and is interrupted at its next await."""
    results: list[Any] = []

    async def body(run: Any) -> None:
        await run.record_usage({"input_tokens": 7})
        results.append(await jobs.abort("c", final_event="mine"))
        results.append("before the next await")
        await forever()

    assert await (await Played(jobs, body).entered()).left() is None
    assert results[0].success
    assert [entry.input_tokens for entry in results[0].collected_usage] == [7]
    assert results[1:] == ["before the next await"]


async def test_an_interrupt_after_the_last_await_does_not_leak(jobs: Any) -> None:
    """It was asked for and not raised when the body ended: it is gone behind the block."""

    async def block() -> Any:
        async with jobs.start("c", user_id="u") as run:
            await jobs.abort("c")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return run

    assert (await soon(asyncio.ensure_future(block()))).aborted


async def test_an_interrupt_after_the_last_await_does_not_hide_an_exception(jobs: Any) -> None:
    """The body's own exception goes on."""

    async def body(run: Any) -> None:
        await jobs.abort("c")
        raise ValueError("mine")

    played = Played(jobs, body)
    assert isinstance(await played.left(), ValueError)
    assert played.run.aborted


async def test_a_body_that_swallows_it_meets_the_end_at_its_next_call(jobs: Any, jobs_b: Any) -> None:
    """The call raises JobClosedError, which the block swallows like the interrupt."""
    met: list[JobClosedError] = []

    async def body(run: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        try:
            await run.emit("too late")
        except JobClosedError as exc:
            met.append(exc)
            raise

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert await played.left() is None
    assert (met[0].status, met[0].end_reason) == (JobStatus.ABORTED, EndReason.ABORT)


@pytest.mark.b_writes
async def test_a_body_that_swallows_it_and_returns_is_still_told(jobs: Any, jobs_b: Any) -> None:
    """A replaced run cannot leave as if it had completed."""

    async def body(run: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()

    played = await Played(jobs, body).entered()
    async with jobs_b.start("c", user_id="u"):
        left = await played.left()
    assert isinstance(left, JobClosedError)
    assert left.end_reason is EndReason.REPLACED


async def test_another_exception_in_the_cleanup_goes_on(jobs: Any, jobs_b: Any) -> None:
    """Only the interrupt is swallowed; the job is aborted all the same."""

    async def body(run: Any) -> None:
        try:
            await forever()
        finally:
            raise ValueError("clean-up failed")

    played = await Played(jobs, body).entered()
    await jobs_b.abort("c")
    assert isinstance(await played.left(), ValueError)
    assert played.run.status is JobStatus.ABORTED


# -- groups and child tasks ---------------------------------------------------------------------------------------


async def test_child_tasks_that_emit_get_the_end(jobs: Any, jobs_b: Any) -> None:
    """They are not interrupted; their next call raises."""
    inside = asyncio.Event()
    ended: list[BaseException] = []

    async def child(run: Any) -> None:
        try:
            while True:
                await run.emit("tick")
                inside.set()
                await asyncio.sleep(0.005)
        except JobClosedError as exc:
            ended.append(exc)

    children: list[asyncio.Future[None]] = []

    async def body(run: Any) -> None:
        children.append(asyncio.ensure_future(child(run)))
        await forever()

    played = Played(jobs, body)
    await soon(inside.wait())
    await jobs_b.abort("c")
    assert await played.left() is None
    await soon(children[0])
    assert isinstance(ended[0], JobClosedError)


@pytest.mark.parametrize("mixed", [False, True])
async def test_a_group_of_nothing_but_the_end_is_swallowed(jobs: Any, jobs_b: Any, *, mixed: bool) -> None:
    """A TaskGroup whose tasks fail with this run's end is like the end itself; with anything else it goes on."""

    async def child(run: Any) -> None:
        try:
            await forever()
        finally:
            await run.emit("last words")

    async def failing(run: Any) -> None:
        try:
            await forever()
        finally:
            raise ValueError("mine")

    async def body(run: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(run))
            group.create_task(failing(run) if mixed else child(run))
            await forever()

    played = await Played(jobs, body).entered()
    await asyncio.sleep(0)
    await jobs_b.abort("c")
    left = await played.left()
    if mixed:
        assert isinstance(left, ExceptionGroup)
        assert {type(exc) for exc in left.exceptions} == {JobClosedError, ValueError}
    else:
        assert left is None
    assert played.run.aborted


@pytest.mark.b_writes
async def test_a_group_in_a_replaced_run_becomes_the_end(jobs: Any, jobs_b: Any) -> None:
    """Outside the block there is one JobClosedError, not a group of them."""

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
    async with jobs_b.start("c", user_id="u"):
        assert isinstance(await played.left(), JobClosedError)
