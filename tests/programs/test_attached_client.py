"""The client of ``attached_client`` over three turns that end in three ways, on another replica than the runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from attached_client import Conversation, Turn, pull, push

import natsjobs

THREE = [Turn("hello you", "done"), Turn("hm", "error"), Turn("well ", "aborted")]


async def three_turns(jobs: natsjobs.JobManager) -> None:
    """One that completes, one that fails, one that is aborted: all under one stream id."""
    async with jobs.start("c1", user_id="alice") as run:
        await run.emit({"token": "hello "})
        await run.emit({"token": "you"})
    with pytest.raises(ValueError, match="overloaded"):
        await _overloaded(jobs)
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(_stop(jobs, told))
        async with jobs.start("c1", user_id="alice") as run:
            await run.emit({"token": "well "})
            told.set_result(run.generation)
            await asyncio.Event().wait()  # only the abort ends this
    assert run.aborted


async def _overloaded(jobs: natsjobs.JobManager) -> None:
    async with jobs.start("c1", user_id="alice") as run:
        await run.emit({"token": "hm"})
        raise ValueError("overloaded")


async def _stop(jobs: natsjobs.JobManager, told: asyncio.Future[str]) -> None:
    result = await jobs.abort("c1", generation=await told)
    assert result.success


@asynccontextmanager
async def in_background(jobs: natsjobs.JobManager, shown: Conversation) -> AsyncGenerator[None, None]:
    task = asyncio.create_task(pull(jobs, "c1", shown))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_following_reader_sees_three_turns_from_before_the_first(
    replicas: list[natsjobs.JobManager],
) -> None:
    """Attached before there is a job, never re-attached: every event and every end of all turns, once, in order."""
    runs, viewers = replicas
    shown = Conversation()
    async with in_background(viewers, shown):
        await three_turns(runs)
        async with asyncio.timeout(30):
            await shown.until_ended(3)
    assert shown.turns == THREE


async def test_handlers_see_three_turns_until_they_are_detached(
    replicas: list[natsjobs.JobManager],
) -> None:
    """``transport.subscribe`` before the first turn; after ``unsubscribe`` a fourth turn calls nothing."""
    runs, viewers = replicas
    shown = Conversation()
    subscription = await push(viewers.transport, "c1", shown)
    assert viewers.transport.get_subscriber_count("c1") == 1
    await three_turns(runs)
    async with asyncio.timeout(30):
        await shown.until_ended(3)
    await subscription.unsubscribe()
    async with runs.start("c1", user_id="alice") as run:
        await run.emit({"token": "more"})
    async with viewers.subscribe("c1") as events:  # the fourth turn is over on this replica too
        assert [event.type.value async for event in events] == ["event", "done"]
    assert shown.turns == THREE
    assert viewers.transport.get_subscriber_count("c1") == 0


async def test_a_client_that_was_away_between_two_turns_gets_the_rest_of_the_first_one_first(
    replicas: list[natsjobs.JobManager],
) -> None:
    """Gone in the middle of turn one, back in the middle of turn two with the old cursor: nothing is missing."""
    runs, viewers = replicas
    shown = Conversation()
    async with runs.start("c1", user_id="alice") as run:
        await run.emit({"token": "hello "})
        async with in_background(viewers, shown), asyncio.timeout(30):
            await shown.until_text("hello ")
        await run.emit({"token": "you"})
    async with runs.start("c1", user_id="alice") as run:
        await run.emit({"token": "second "})
        async with in_background(viewers, shown):
            async with asyncio.timeout(30):
                await shown.until_text("second ")
            await run.emit({"token": "turn"})
            await run.complete()
            async with asyncio.timeout(30):
                await shown.until_ended(2)
    assert shown.turns == [Turn("hello you", "done"), Turn("second turn", "done")]
