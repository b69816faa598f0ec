"""Three nodes, three replicas, jobs under way, and the stream's leader killed again and again."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack

import pytest
from fault_table import Row
from nodes import Nodes, Space, admin
from owners import Owner, owner
from verdict import nothing_lost
from viewers import Viewers


class Killer:
    """Kills whoever leads the events stream, and starts it again a little later."""

    def __init__(self, nodes: Nodes, space: Space, row: Row, rng: random.Random) -> None:
        self._nodes, self._space, self._row, self._rng = nodes, space, row, rng
        self.leaderless: list[float] = []

    async def strike(self, nc) -> None:
        """One kill, one restart."""
        victim = await self._nodes.led(nc, self._space.subjects.events_stream)
        victim.kill()
        killed = time.monotonic()
        self._row.fault("SIGKILL stream leader")
        await asyncio.sleep(self._rng.uniform(0.2, 1.5))
        victim.launch()
        self._row.fault("node restart")
        for stream in (self._space.subjects.events_stream, self._space.subjects.records_stream):
            await self._nodes.led(nc, stream)
        self.leaderless.append(round(time.monotonic() - killed, 1))


@pytest.mark.timeout(400)
async def test_killed_leaders_lose_double_and_reorder_nothing(nodes: Nodes, row: Row, seed: int, long: bool):
    """Viewers from the start, late ones and resuming ones see every event once, in order, and one end."""
    rng = random.Random(seed)
    space = nodes.space
    names = [f"s{n}" for n in range(100 if long else 30)]
    halves = names[::2], names[1::2]
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        managers = [await stack.enter_async_context(space.replica()) for _ in range(3)]
        owners: list[Owner] = [await stack.enter_async_context(owner(space, half, every=0.25)) for half in halves]
        viewers = await stack.enter_async_context(Viewers(*managers))
        for number, name in enumerate(names):
            viewers.watch(name, on=number)
        for number, name in enumerate(rng.sample(names, len(names) // 3)):
            viewers.watch(name, on=number, resumes=rng)
        killer = Killer(nodes, space, row, rng)
        began, kills = time.monotonic(), 0
        while kills < 3 if not long else time.monotonic() - began < 60:
            await killer.strike(nc)
            kills += 1
            for number, name in enumerate(rng.sample(names, 5)):
                viewers.watch(name, on=number)
            if long:
                await asyncio.sleep(rng.uniform(1.5, 4.0))  # every few seconds, whatever the cluster is doing
            else:
                await asyncio.gather(*(one.stored(2) for one in owners))
        await asyncio.gather(*(one.finish(within=120) for one in owners))
        await viewers.ended(within=120)
        await nodes.heal()
        await nodes.whole(nc, space)
        row.notes["leaderless s"] = killer.leaderless
        await nothing_lost(row, nc, space, owners, viewers)
