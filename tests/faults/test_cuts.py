"""One process's connection is cut, in both directions or in one, in the middle of everything."""

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
from wires import BOTH, DOWN, UP, Wire

CUTS = {"both ways": BOTH, "what it sends": {UP}, "what it hears": {DOWN}}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("victim", ["owner", "viewer"])
async def test_a_cut_connection_costs_nothing(node: Node, row: Row, seed: int, long: bool, victim: str, cut: str):
    """Held up for a while; lost silently, then dropped; dropped at once. The other replicas notice nothing of it."""
    rng = random.Random(seed)
    space = node.space
    ways, away = CUTS[cut], 3.0 if long else 1.0
    names = [f"s{n}" for n in range(5)]
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        wire = await stack.enter_async_context(Wire(node.port))
        by_wire = space.by(wire.url)
        managers = [
            await stack.enter_async_context((by_wire if victim == "viewer" else space).replica()),
            await stack.enter_async_context(space.replica()),
        ]
        running = await stack.enter_async_context(owner(by_wire if victim == "owner" else space, names, every=0.02))
        viewers = await stack.enter_async_context(Viewers(*managers))
        for name in names:
            viewers.watch(name, on=0)
            viewers.watch(name, on=1)
            viewers.watch(name, resumes=rng)
        await eventually(lambda: all(viewer.got for viewer in viewers.all))
        for _ in range(5 if long else 1):
            wire.hold(*ways)
            await asyncio.sleep(away)
            wire.heal()
            row.fault(f"{victim} held, {cut}")
            await running.stored(5)
            wire.lose(*ways)
            await asyncio.sleep(away)
            wire.drop()
            wire.heal()
            row.fault(f"{victim} lost, {cut}")
            await running.stored(5)
            wire.drop()
            row.fault(f"{victim} dropped")
            await running.stored(5)
        await running.finish()
        await viewers.ended()
        await nothing_lost(row, nc, space, [running], viewers)
