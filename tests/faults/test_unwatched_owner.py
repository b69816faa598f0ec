"""Owners that nobody watches hold events back for longer: what that costs when they die, and what it never costs."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest
from fault_table import Row
from nodes import Node, Space, admin
from owners import Owner, owner
from stored import one_generation
from waiting import eventually

from natsjobs import JobManager

HELD = 30
"""Events that no owner holds back while it is watched: at this pace its linger is over after three."""


@pytest.fixture
def space(node: Node) -> Space:
    """A namespace where events that nobody watches stay with their owner, for all of the test."""
    made = node.space
    made.timing = {"lease": 4.0, "renew": 1.0, "linger_unwatched": 60.0}
    return made


async def holds(held: Owner, manager: JobManager, name: str = "s0") -> None:
    """Wait until the owner holds back what only an unwatched one does."""

    async def many() -> bool:
        stored = await manager.count_events(name)
        return held.jobs[name].emitted - stored >= HELD

    await eventually(many, within=60)


@pytest.mark.timeout(180)
async def test_a_killed_owner_that_nobody_watched_loses_what_it_held_back_and_no_more(space: Space, row: Row):
    """The log is whole up to there, and its job ends as any other of a dead owner."""
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        manager = await stack.enter_async_context(space.replica())
        dying = await stack.enter_async_context(owner(space, ["s0"], every=0.02, flush=False))
        await holds(dying, manager)
        before = await manager.count_events("s0")
        dying.signal(signal.SIGKILL)
        row.fault("SIGKILL unwatched owner")

        async def ended() -> bool:
            job = await manager.get("s0")
            return job is not None and job.status.is_terminal

        await eventually(ended, within=space.lease + 20)
        job = await manager.get("s0")
        assert job is not None
        assert (job.status, job.end_reason) == ("error", "owner_lost")
        await dying.end()
        dying.count(row)
        (log,) = (await one_generation(nc, space)).values()
        assert log.whole
        assert dying.jobs["s0"].acked <= before <= len(log.numbers) <= dying.jobs["s0"].emitted
        row.notes["never stored"] = dying.jobs["s0"].emitted - len(log.numbers)


@pytest.mark.timeout(180)
async def test_who_joins_an_owner_that_holds_events_back_has_them_at_once(space: Space, row: Row):
    """Readers from the start and from a cursor, again and again, while nobody else watches."""
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(space.replica())
        holding = await stack.enter_async_context(owner(space, ["s0"], every=0.02, flush=False))
        cursor, next_number = None, 0
        for _ in range(3):
            await holds(holding, manager)
            emitted = holding.jobs["s0"].emitted
            row.fault("join")
            async with asyncio.timeout(30), manager.subscribe("s0", after=cursor) as events:
                async for event in events:
                    assert event.data[0] == next_number
                    next_number, cursor = next_number + 1, event.cursor
                    if next_number >= emitted:
                        break
        row.emitted, row.seen = next_number, next_number
