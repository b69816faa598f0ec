"""NATS is away, for short and for long, in the middle of everything: nobody has to do anything, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from fault_table import Row
from nodes import Node, admin
from owners import owner
from verdict import nothing_lost
from viewers import Viewers
from waiting import eventually

QUEUE = 32
EVERY = 0.05


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [3, 30])
async def test_an_outage_stops_nobody_and_costs_nothing(node: Node, row: Row, seed: int, long: bool, seconds: int):
    """Owners and viewers go on by themselves, queues stay within their bound, and no living owner is declared dead.

    The leases of the long outage are shorter than it, and there are two processes of owners, two replicas of viewers
    and one that only judges. In the short form it lasts 8 seconds.
    """
    rng = random.Random(seed)
    space = node.space
    space.limits = {"queue_events": QUEUE}
    if seconds > 10:
        space.timing = {"lease": 3.0, "renew": 1.0}
    away = seconds if long else min(seconds, 8)
    names = [f"s{n}" for n in range(12)]
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        managers = [await stack.enter_async_context(space.replica()) for _ in range(2)]
        judge = await stack.enter_async_context(space.replica())
        owners = [
            await stack.enter_async_context(owner(space, half, every=EVERY)) for half in (names[::2], names[1::2])
        ]
        viewers = await stack.enter_async_context(Viewers(*managers))
        for number, name in enumerate(names):
            viewers.watch(name, on=number)
            viewers.watch(name, on=number, resumes=rng)
        await eventually(lambda: all(viewer.got for viewer in viewers.all))
        node.kill()
        row.fault(f"NATS away for {away} s")
        await asyncio.sleep(away)
        node.launch()
        await asyncio.gather(*(one.stored(2 * QUEUE) for one in owners))
        assert await judge.store.cleanup() == 0
        for name in rng.sample(names, 4):
            viewers.watch(name)
        await asyncio.gather(*(one.finish() for one in owners))
        await viewers.ended()
        everyone = [owned for one in owners for owned in one.jobs.values()]
        row.notes["backlog"] = max(owned.backlog for owned in everyone)
        row.notes["emit waited"] = max(owned.blocked for owned in everyone)
        await nothing_lost(row, nc, space, owners, viewers)
        # Full, and not fuller: `emit` waited for most of the outage. What was in flight at its start comes on top.
        assert QUEUE <= row.notes["backlog"] <= QUEUE + 1 / EVERY
        assert min(owned.blocked for owned in everyone) > away - QUEUE * EVERY - 2
