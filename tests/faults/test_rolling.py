"""Every node is restarted in good order, one after the other, under traffic: an upgrade of the servers."""

from __future__ import annotations

import random
import signal
from contextlib import AsyncExitStack

import pytest
from fault_table import Row
from nodes import Nodes, admin
from owners import owner
from verdict import nothing_lost
from viewers import Viewers
from waiting import eventually


@pytest.mark.timeout(400)
async def test_an_orderly_restart_of_every_node_goes_unnoticed(nodes: Nodes, row: Row, seed: int, long: bool):
    """Stopped, or drained as lame ducks first (which takes a second for each client): no event is missed.

    The next node goes when all replicas are current again, as operators do it. Long form: every node in both ways.
    """
    rng = random.Random(seed)
    space = nodes.space
    names = [f"s{n}" for n in range(20)]
    ways = [(node, how) for node in nodes.all.values() for how in (signal.SIGTERM, signal.SIGUSR2)]
    if not long:
        ways = [*ways[0:6:4], ways[3]]  # n1 and n3 stopped, n2 drained
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        managers = [await stack.enter_async_context(space.replica()) for _ in range(2)]
        running = await stack.enter_async_context(owner(space, names, every=0.1))
        viewers = await stack.enter_async_context(Viewers(*managers))
        for number, name in enumerate(names):
            viewers.watch(name, on=number)
        for name in names[::2]:
            viewers.watch(name, resumes=rng)
        await eventually(lambda: all(viewer.got for viewer in viewers.all))
        for node, how in ways:
            node.signal(how)
            row.fault("SIGTERM node" if how is signal.SIGTERM else "lame duck node")
            await node.gone()
            node.launch()
            await node.ready()
            await nodes.whole(nc, space)
            await running.stored(2)
            viewers.watch(rng.choice(names))
        await running.finish()
        await viewers.ended()
        await nothing_lost(row, nc, space, [running], viewers)
        assert row.notes["refused"] == 0
