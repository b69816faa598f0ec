"""Aborts when nothing is as it should be: NATS was just restarted, the owner is paused, busy or dead."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import pytest
from fault_table import Row
from nodes import Node, admin
from owners import owner
from stored import one_generation
from viewers import Viewers
from waiting import eventually, soon


@pytest.mark.timeout(120)
@pytest.mark.parametrize("state", ["alive", "alive after a restart of NATS", "paused", "busy", "dead"])
async def test_an_abort_from_another_replica_is_a_fact(node: Node, row: Row, state: str):
    """Afterwards the job is aborted everywhere, with its content, and the owner knows as soon as it can."""
    space = node.space
    space.timing = {"lease": 6.0, "renew": 2.0, "abort": 1.0}
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(admin(space))
        replica_b = await stack.enter_async_context(space.replica())
        running = await stack.enter_async_context(owner(space, ["s"], every=0.02))
        viewers = await stack.enter_async_context(Viewers(replica_b, await stack.enter_async_context(space.replica())))
        for number in range(2):
            viewers.watch("s", on=number)
        await eventually(lambda: all(len(viewer.got) > 5 for viewer in viewers.all))
        row.fault(f"abort, owner {state}")
        if state == "alive after a restart of NATS":
            node.kill()
            node.launch()
            await asyncio.sleep(1)  # the second after the restart is the subject: connections and listeners come back
        elif state == "paused":
            running.signal(signal.SIGSTOP)
        elif state == "busy":
            running.tell("busy 3")
            await eventually(lambda: running.is_busy)
        elif state == "dead":
            running.signal(signal.SIGKILL)
        began = time.monotonic()
        result = await soon(replica_b.abort("s", final_event="stopped"))
        row.notes["abort took"] = round(time.monotonic() - began, 2)
        await viewers.ended()
        row.detected += [round(viewer.ended_at - began, 2) for viewer in viewers.all]
        assert result.success
        assert result.acknowledged == state.startswith("alive")
        assert result.job_data.status == "aborted"
        assert {(viewer.end.type, viewer.end.data) for viewer in viewers.all} == {("aborted", "stopped")}
        assert (await replica_b.get("s")).status == "aborted"
        assert await replica_b.active("alice") == []
        if state == "paused":
            running.signal(signal.SIGCONT)
        if state != "dead":
            await running.until(lambda owned: owned.ended)
            assert running.jobs["s"].ended["status"] == "aborted"
            assert running.jobs["s"].refused["status"] == "aborted"
        await running.end()
        log = (await one_generation(nc, space))["s"]
        assert log.whole
        assert len(log.numbers) >= running.jobs["s"].acked
        running.count(row)
        viewers.count(row, {"s": len(log.numbers)})
        row.whole()
