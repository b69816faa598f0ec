"""Silent cuts around nodes: a stream's leader, or the node of a client, loses the others while its clients stay.

Timelines A5 (ii), B3 and B4 of the design corrections. The cuts around clients are in ``test_partitions.py``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import netns_kit
import pytest
from netns_kit import Place, Program, ToldError, place
from waiting import eventually

nodes = netns_kit.nodes


async def whole(here: Place, by: Program, viewers: list[Program], stream: str, generation: str, row: Any) -> list[Any]:
    """Every viewer saw what is in the log, once and in order, to its one end; that."""
    stored = await here.stored(by, stream, generation)
    *events, end = stored
    assert events == list(range(len(events))), f"the log of {stream}: {stored}"
    assert end in {"done", "error", "aborted"}, f"the log of {stream}: {stored}"
    for viewer in viewers:
        await viewer.end_of(stream, within=60)
        row.viewer(stored, viewer.seen(stream))
        row.stalled(viewer.stall(stream))
    return stored


@pytest.mark.timeout(400)
async def test_an_append_that_lands_after_the_heal_is_neither_lost_nor_doubled(nodes, tmp_path, row, long):
    """A5 (ii): the leader is cut off with an append in flight; its writer repeats it, and the first try lands."""
    async with place(nodes, tmp_path, lease=20.0, renew=2.0, request=1.0) as here:
        owner, viewer = await asyncio.gather(here.replica("c4", "node3"), here.replica("c1", "node1", request=3.0))
        row.emitted = 0
        for number in range(8 if long else 1):
            stream = f"job-{number}"
            await here.lead(viewer, "node3")
            generation = await owner.tell("own", stream=stream, every=0.02, flush=False)
            await viewer.tell("view", stream=stream)
            await viewer.says("seen", stream, count=20)
            nodes.net.isolate("node3", "c4")
            row.fault("silent cut of the leader, 2 s")
            await asyncio.sleep(2)  # the cut's length is the test
            before = len(viewer.seen(stream))
            nodes.net.heal()
            await viewer.says("seen", stream, count=before + 100)
            await owner.tell("finish", stream=stream)
            over = await owner.says("over", stream)
            assert over["how"] == "complete"
            assert await whole(here, viewer, [viewer], stream, generation, row) == [*range(over["emitted"]), "done"]
            assert viewer.stall(stream) > 1.0, "no append was in flight long enough to be repeated"
            row.emitted += over["emitted"]
        row.whole()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("leader", ["node1", "node3"], ids=["a follower", "the leader"])
async def test_a_client_on_an_isolated_node_moves_to_another_and_its_runs_survive(nodes, tmp_path, row, long, leader):
    """B4: its own connection never breaks; after 5 s without one answer of a stream it goes elsewhere, once.

    Or without one stored append: for up to 20 s the isolated leader answers reads.
    """
    async with place(nodes, tmp_path) as here:
        client, other = await asyncio.gather(
            here.replica("c1", "node3", "node1", "node2"), here.replica("c2", "node1", "node2")
        )
        await here.lead(other, leader)
        generation = await client.tell("own", stream="s", every=0.05)
        for viewer in (client, other):
            await viewer.tell("view", stream="s")
        await other.says("seen", "s", count=20)
        assert (await client.tell("connection"))["url"] == f"{nodes.net.address('node3')}:4222"

        nodes.net.cut("node3", ["node1", "node2"])
        cut = time.monotonic()
        row.fault("silent cut of the client's node")

        async def moved() -> bool:
            return (await client.tell("connection"))["reconnects"] > 0

        await eventually(moved, within=20)
        row.detected = [time.monotonic() - cut]
        assert 4.5 <= row.detected[0] <= 9.0
        await other.says("seen", "s", count=len(other.seen("s")) + 50)
        assert (await client.tell("connection"))["reconnects"] == 1
        await client.tell("finish", stream="s")
        over = await client.says("over", "s")
        sent = [*range(over["emitted"]), "done"]
        assert await whole(here, other, [client, other], "s", generation, row) == sent
        row.emitted = over["emitted"]
        if long:
            await moves_seldom(here, client, row)
        row.whole()


async def moves_seldom(here: Place, client: Program, row: Any) -> None:
    """No node has the others: the client goes from one to the next, and not more often than every 10 s."""
    here.net.heal()
    before = (await client.tell("connection"))["reconnects"]
    for one, another in (("node1", "node2"), ("node2", "node3"), ("node1", "node3")):
        here.net.cut(one, another)
    row.fault("silent cut of every node from the others")
    await asyncio.sleep(40)  # how often it moves meanwhile is the test
    moves = (await client.tell("connection"))["reconnects"] - before
    row.notes["moves_in_40_s"] = moves
    assert 2 <= moves <= 4


@pytest.mark.timeout(400)
async def test_nothing_is_decided_on_the_stale_reads_of_a_leader_that_was_cut_off(nodes, tmp_path, row, long):
    """B3: the old leader answers its side with old values; no reap, no second end, no job that "does not exist"."""
    async with place(nodes, tmp_path, lease=6.0, renew=1.5) as here:
        few, owner, viewer = await asyncio.gather(
            here.replica("c4", "node3"), here.replica("c1", "node1", "node2"), here.replica("c2", "node2", "node1")
        )
        await here.lead(viewer, "node3")
        made = {stream: await owner.tell("own", stream=stream, every=0.05) for stream in ("goes-on", "ends", "aborted")}
        made["minority"] = await few.tell("own", stream="minority", every=0.05)
        for stream in made:
            for program in (few, viewer):
                await program.tell("view", stream=stream)
                await program.says("seen", stream, count=10)

        nodes.net.isolate("node3", "c4")
        cut = time.monotonic()
        row.fault("silent cut of the leader, s", 40 if long else 14)
        looks = asyncio.create_task(look(few, "goes-on", cut + (40 if long else 14)))
        stored = len(owner.said("stored", "goes-on"))
        goes_on = await owner.says("stored", "goes-on", count=stored + 2)
        row.stalled(goes_on["at"] - cut)
        await owner.tell("finish", stream="ends")
        assert (await owner.says("over", "ends"))["how"] == "complete"
        aborts = asyncio.create_task(outcome(few.tell("abort", stream="aborted", within=60)))
        assert (await viewer.tell("abort", stream="aborted"))["success"]
        row.detected = [(await viewer.end_of("minority"))["at"] - cut]
        assert (await viewer.end_of("minority"))["reason"] == "owner_lost"
        made["new"] = await owner.tell("own", stream="new", every=0.05)

        contest = asyncio.create_task(few.tell("own", stream="contested", every=0.05, within=90))
        made["contested"] = await owner.tell("own", stream="contested", every=0.05)

        found = await looks
        row.notes["reads_on_the_stale_side"] = f"{found.count('running')} of {len(found)}"
        assert set(found) <= {"running", "UnavailableError"}
        nodes.net.heal()
        healed = time.monotonic()
        row.notes["abort_on_the_stale_side"] = late = await aborts
        assert late in {"ended", "UnavailableError"}, "aborted twice"
        assert (await few.says("over", "minority", within=60))["reason"] == "owner_lost"
        for stream, status in {"ends": "complete", "aborted": "aborted", "minority": "error", "new": "running"}.items():
            await eventually(lambda stream=stream, status=status: says_of(few, stream, status), within=60)
        row.notes["right_after_the_heal_s"] = round(time.monotonic() - healed, 2)
        await settle(here, contest, owner, few, made["contested"], row)
        for stream in ("goes-on", "new"):
            await owner.tell("finish", stream=stream)
            assert (await owner.says("over", stream))["how"] == "complete"
        row.emitted = 0
        for stream in ("goes-on", "ends", "aborted", "minority"):
            row.emitted += len(await whole(here, viewer, [few, viewer], stream, made[stream], row)) - 1
        row.whole()


async def settle(here: Place, contest: asyncio.Task[str], owner: Program, few: Program, first: str, row: Any) -> None:
    """Both sides of the cut created a job of one id: the later create replaced the earlier job, or was refused."""
    try:
        second = await contest
    except ToldError as error:
        row.notes["create_on_the_stale_side"] = error.kind
        await owner.tell("finish", stream="contested")
        assert (await owner.says("over", "contested"))["how"] == "complete"
        assert (await whole(here, owner, [], "contested", first, row))[-1] == "done"
        return
    row.notes["create_on_the_stale_side"] = "replaced"
    assert (await owner.says("over", "contested"))["reason"] == "replaced"
    await few.tell("finish", stream="contested")
    assert (await few.says("over", "contested"))["how"] == "complete"
    assert (await whole(here, owner, [], "contested", first, row))[-1] == "aborted"
    assert (await whole(here, owner, [], "contested", second, row))[-1] == "done"
    assert (await owner.tell("get", stream="contested"))["generation"] == second


async def look(program: Program, stream: str, until: float) -> list[str]:
    """Ask for a job again and again; what came of it each time."""
    found = []
    while time.monotonic() < until:
        found.append(await outcome(program.tell("get", stream=stream)))
        await asyncio.sleep(0.2)
    return found


async def outcome(call: Any) -> str:
    """What a call gave, in a word."""
    try:
        value = await call
    except ToldError as error:
        return error.kind
    if isinstance(value, dict) and "success" in value:
        return "success" if value["success"] else str(value["reason"])
    return "no such job" if value is None else str(value["status"])


async def says_of(program: Program, stream: str, status: str) -> bool:
    """Whether a replica finds a job with this status."""
    return await outcome(program.tell("get", stream=stream)) == status
