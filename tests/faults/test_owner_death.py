"""Owners that die or stop: viewers are told in time, the jobs leave the lists, and what comes back is fenced."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fault_table import Row
from nodes import Node, Nodes, Space, admin
from owners import owner
from stored import one_generation, stored
from viewers import Viewers
from waiting import check_whole, eventually, read_all

SLACK = 1.0
"""Seconds above the lease that a death may take to be known everywhere."""


@pytest.fixture(params=["one node", "cluster"])
def space(request: pytest.FixtureRequest, long: bool) -> Space:
    """A namespace on one node and on three; short leases in the short form."""
    servers: Node | Nodes = request.getfixturevalue("node" if request.param == "one node" else "nodes")
    made = servers.space
    if not long:
        made.timing = {"lease": 4.0, "renew": 1.0}
    return made


@pytest.mark.timeout(180)
async def test_a_killed_owner_is_known_everywhere_within_its_lease(space: Space, row: Row):
    """Every viewer gets the end, the lists show it failed, the next turn starts, and nothing acknowledged is lost."""
    names = [f"s{n}" for n in range(10)]
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        managers = [await stack.enter_async_context(space.replica()) for _ in range(2)]
        dying = await stack.enter_async_context(owner(space, names))
        viewers = await stack.enter_async_context(Viewers(*managers))
        for number, name in enumerate(names * 2):
            viewers.watch(name, on=number // len(names))
        await eventually(lambda: all(viewer.got for viewer in viewers.all))
        await asyncio.sleep(space.config.timing.renew)  # the lease has just been renewed, or is about to be: both count
        dying.signal(signal.SIGKILL)
        killed = time.monotonic()
        row.fault("SIGKILL owner")
        await viewers.ended(within=space.lease + 20)
        row.detected += [round(viewer.ended_at - killed, 2) for viewer in viewers.all]
        await dying.end()
        dying.count(row)
        logs = await one_generation(nc, space)
        viewers.count(row, {name: len(log.numbers) for name, log in logs.items()})
        for name, log in logs.items():
            assert log.whole
            assert len(log.numbers) >= dying.jobs[name].acked
        assert {(viewer.end.type, viewer.end.end_reason) for viewer in viewers.all} == {("error", "owner_lost")}
        assert max(row.detected) <= space.lease + SLACK
        row.whole()
        listed = {job.stream_id: job for job in await managers[1].list_jobs(user_id="alice")}
        assert {(listed[name].status, listed[name].end_reason) for name in names} == {("error", "owner_lost")}
        assert await managers[0].active("alice") == []
        async with managers[0].start("s0", user_id="alice", if_running="reject") as run:
            await run.emit("the next turn")
        check_whole(await read_all(managers[1].subscribe, "s0"), ["the next turn"])


@pytest.mark.timeout(180)
async def test_an_owner_that_was_stopped_past_its_lease_is_fenced_and_told(space: Space, row: Row):
    """It goes on as if nothing had happened: nothing of it is stored or seen, and its next emit says how it ended."""
    names = [f"s{n}" for n in range(5)]
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        manager = await stack.enter_async_context(space.replica())
        paused = await stack.enter_async_context(owner(space, names, every=0.02))
        viewers = await stack.enter_async_context(Viewers(manager))
        for name in names:
            viewers.watch(name)
        await eventually(lambda: all(viewer.got for viewer in viewers.all))
        paused.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        row.fault("SIGSTOP owner")
        await viewers.ended(within=space.lease + 20)
        row.detected += [round(viewer.ended_at - stopped, 2) for viewer in viewers.all]
        assert max(row.detected) <= space.lease + SLACK
        ends = await ended(nc, space)
        async with manager.start("s0", user_id="alice") as run:  # the next turn, before the old owner is back
            await run.emit("the next turn")
            paused.signal(signal.SIGCONT)
            row.fault("SIGCONT owner")
            await paused.until(lambda owned: owned.ended)
            for owned in paused.jobs.values():
                assert (owned.ended["status"], owned.ended["reason"]) == ("error", "owner_lost")
                assert (owned.refused["status"], owned.refused["reason"]) == ("error", "owner_lost")
        check_whole(await read_all(manager.subscribe, "s0"), ["the next turn"])
        paused.count(row)
        assert await ended(nc, space) == ends
        viewers.count(row, {name: len(numbers) for name, (numbers, _) in ends.items()})
        assert {(viewer.end.type, viewer.end.end_reason) for viewer in viewers.all} == {("error", "owner_lost")}
        row.whole()


async def ended(nc: Any, space: Space) -> dict[str, tuple[list[int], list[dict[str, Any]]]]:
    """The first generation of every job, as it is stored; each has its one end, and nothing behind it."""
    found = {}
    for name, generations in (await stored(nc, space)).items():
        first = generations[min(generations)]
        assert first.whole
        found[name] = (first.numbers, first.ends)
    return found
