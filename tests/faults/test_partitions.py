"""Silent cuts around clients: an owner, a viewer, a client's own node vanish without a closed socket, or are far away.

Timelines A2 and A7 of the design corrections, partitions that isolate the owner or its viewers, and a bad network. The
cuts around stream leaders are in ``test_partitions_leader.py``.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import netns_kit
import pytest
from netns import Rough
from netns_kit import Place, Program, cluster, place
from waiting import eventually

nodes = netns_kit.nodes


async def lose(here: Place, victim: Program, rest: list[Program], together: tuple[str, ...], row: Any) -> None:
    """Own five jobs, vanish, be ended; ``together`` are the hosts that vanish at once."""
    lease, streams = here.timing["lease"], [f"job-{number}" for number in range(5)]
    made = {stream: await victim.tell("own", stream=stream, every=0.05) for stream in streams}
    for viewer in rest:
        for stream in streams:
            await viewer.tell("view", stream=stream)
    await asyncio.gather(*(victim.says("stored", stream, count=10) for stream in streams))
    name = (await victim.tell("connection"))["replica"]

    here.net.isolate(*together)
    cut = time.monotonic()
    row.fault(f"silent cut of {' and '.join(together)}")
    ends = await asyncio.gather(*(viewer.end_of(stream) for viewer in rest for stream in streams))
    row.detected = [end["at"] - cut for end in ends]
    assert await rest[0].tell("ask_owner", replica=name) == "silence", "the server has dropped the interest already"
    assert {(end["type"], end["reason"]) for end in ends} == {("error", "owner_lost")}
    assert max(row.detected) <= lease + 1

    here.net.heal()
    row.emitted = row.acknowledged = 0
    for stream in streams:
        over = await victim.says("over", stream, within=60)
        assert (over["how"], over["reason"]) == ("JobClosedError", "owner_lost")
        acknowledged = victim.said("stored", stream)[-1]["number"]
        row.emitted += over["emitted"]
        row.acknowledged += acknowledged
        stored = await here.stored(rest[0], stream, made[stream])
        assert stored[:acknowledged] == list(range(acknowledged))
        for viewer in rest:
            row.viewer(stored, viewer.seen(stream))
            row.stalled(viewer.stall(stream))
    row.whole()


@pytest.mark.parametrize("vanishes", ["machine", "machine and its node"])
async def test_jobs_of_an_owner_that_vanishes_silently_end_within_the_lease(nodes, tmp_path, row, long, vanishes):
    """A2: the server holds its interest for a long time yet, so the pings meet silence and not "no responders"."""
    lease = 10.0 if long else 3.0
    async with place(nodes, tmp_path, lease=lease, renew=lease * 0.3, request=2.0) as here:
        alone = vanishes == "machine"
        victim, *rest = await asyncio.gather(
            here.replica("c4", *(["node3", "node1", "node2"] if alone else ["node3"])),
            here.replica("c2", "node1", "node2"),
            here.replica("c3", "node2", "node1"),
        )
        await here.lead(rest[0], "node1")
        await lose(here, victim, rest, ("c4",) if alone else ("node3", "c4"), row)


async def test_with_the_servers_defaults_a_vanished_owner_is_found_just_as_soon(tmp_path, row, long):
    """A2: with its default pings the server holds the interest for minutes; with ours, for half a minute at most."""
    with cluster(tmp_path, "c1", "c2", settings="") as defaults:
        async with place(defaults, tmp_path, lease=3.0, renew=0.9, request=2.0) as here:
            victim, other = await asyncio.gather(here.replica("c1", "node1"), here.replica("c2", "node2"))
            await here.lead(other, "node2")
            await lose(here, victim, [other], ("c1",), row)
            if long:
                here.net.isolate("c1")
                name = (await victim.tell("connection"))["replica"]
                await asyncio.sleep(45)  # nothing to wait for: what is looked for does not happen
                assert await other.tell("ask_owner", replica=name) == "silence"


async def test_viewers_of_a_vanished_replica_stop_counting(nodes, tmp_path, row):
    """A2, B1: silence is not zero at once, and it is zero after a lease of it; back again, they count again."""
    async with place(nodes, tmp_path, lease=3.0, renew=0.9, request=2.0) as here:
        owner, viewer = await asyncio.gather(here.replica("c1", "node1", "node2"), here.replica("c2", "node3"))
        await here.lead(owner, "node1")
        await owner.tell("own", stream="s", every=0.1)
        await viewer.tell("view", stream="s")
        await owner.tell("when_left", stream="s")
        assert await owner.tell("count", stream="s") == 1

        here.net.isolate("c2")
        cut = time.monotonic()
        row.fault("silent cut of the viewer's machine")
        left = (await owner.says("all left", within=20))["at"] - cut
        row.detected = [left]
        assert 3.0 <= left <= 9.0
        assert await owner.tell("count", stream="s") == 0

        here.net.heal()
        await eventually(lambda: owner.tell("count", stream="s"), within=30)
        await owner.tell("finish", stream="s")
        over = await owner.says("over", "s")
        await viewer.end_of("s")
        row.emitted = over["emitted"]
        row.viewer([*range(over["emitted"]), "done"], viewer.seen("s"))
        row.whole()


@pytest.mark.timeout(400)
async def test_a_reader_whose_node_was_cut_off_gets_everything_once_and_ends(nodes, tmp_path, row, long):
    """A7: nothing comes and nothing breaks, the terminal record is never sent to it, and no reconnect tells."""
    async with place(nodes, tmp_path, lease=10.0, renew=3.0) as here:
        owner, reader = await asyncio.gather(
            here.replica("c1", "node1", "node2"), here.replica("c2", "node3", given=True)
        )
        await here.lead(owner, "node1")
        generation = await owner.tell("own", stream="s", every=0.05)
        await reader.tell("view", stream="s")
        await reader.says("seen", "s", count=10)

        here.net.isolate("node3", "c2")
        cut = time.monotonic()
        row.fault("silent cut of the reader's node, s", 110 if long else 12)
        await asyncio.sleep(2)  # so that events are missed too
        await owner.tell("finish", stream="s")
        over = await owner.says("over", "s")
        await asyncio.sleep(cut + (110 if long else 12) - time.monotonic())  # the cut's length is the test
        assert "done" not in reader.seen("s")
        here.net.heal()
        healed = time.monotonic()
        end = await reader.end_of("s", within=60)
        row.notes["after_the_heal_s"] = round(end["at"] - healed, 2)
        await reader.says("left", "s")
        assert (await reader.tell("connection"))["reconnects"] == 0
        sent = [*range(over["emitted"]), "done"]
        assert await here.stored(owner, "s", generation) == sent
        row.emitted = over["emitted"]
        row.viewer(sent, reader.seen("s"))
        row.whole()


async def test_an_owner_that_was_isolated_for_less_than_a_lease_goes_on(nodes, tmp_path, row):
    """The partition isolates the owner and not the viewers: it ends soon enough, and nobody is declared dead."""
    async with place(nodes, tmp_path, lease=10.0, renew=1.0) as here:
        owner, viewer = await asyncio.gather(here.replica("c1"), here.replica("c2", "node2", "node3"))
        await here.lead(viewer, "node2")
        generation = await owner.tell("own", stream="s", every=0.02)
        await viewer.tell("view", stream="s")
        await viewer.says("seen", "s", count=20)
        here.net.isolate("c1")
        row.fault("silent cut of the owner, 3 s")
        await asyncio.sleep(3)  # the cut's length is the test
        before = len(viewer.seen("s"))
        here.net.heal()
        await viewer.says("seen", "s", count=before + 50)
        await owner.tell("finish", stream="s")
        over = await owner.says("over", "s")
        await viewer.end_of("s")
        sent = [*range(over["emitted"]), "done"]
        assert (over["how"], await here.stored(viewer, "s", generation)) == ("complete", sent)
        row.emitted = over["emitted"]
        row.viewer(sent, viewer.seen("s"))
        row.stalled(viewer.stall("s"))
        row.whole()


@pytest.mark.timeout(400)
async def test_viewers_that_were_isolated_catch_up_and_the_owner_never_notices(nodes, tmp_path, row, long):
    """The reverse: viewers on a node of their own, longer than a lease; the owner is not held up by them."""
    async with place(nodes, tmp_path, lease=3.0, renew=0.9) as here:
        owner, *viewers = await asyncio.gather(
            here.replica("c1", "node1", "node2"), here.replica("c2", "node3"), here.replica("c3", "node3")
        )
        await here.lead(owner, "node1")
        await owner.tell("own", stream="s", every=0.02)
        for viewer in viewers:
            await viewer.tell("view", stream="s")
            await viewer.says("seen", "s", count=20)
        here.net.isolate("node3", "c2", "c3")
        row.fault("silent cut of all viewers and their node, s", 30 if long else 4)
        await asyncio.sleep(30 if long else 4)  # the cut's length is the test
        here.net.heal()
        healed = time.monotonic()
        await asyncio.gather(*(viewer.says("seen", "s", count=len(viewer.seen("s")) + 50) for viewer in viewers))
        row.notes["after_the_heal_s"] = round(time.monotonic() - healed, 2)
        await owner.tell("finish", stream="s")
        over = await owner.says("over", "s")
        assert over["how"] == "complete"
        row.emitted = over["emitted"]
        row.notes["longest_append_s"] = round(max(one["took"] for one in owner.said("stored", "s")), 2)
        for viewer in viewers:
            await viewer.end_of("s")
            row.viewer([*range(over["emitted"]), "done"], viewer.seen("s"))
            row.stalled(viewer.stall("s"))
        row.whole()


@pytest.mark.timeout(400)
async def test_a_lossy_slow_and_asymmetric_network_loses_nothing(nodes, tmp_path, row, seed, long):
    """A soak: owner and viewer each over a line that loses up to 30 % one way and lets packets overtake each other."""
    far = nodes.add_rough("far", Rough(loss_to=0.30, loss_from=0.05, delay=0.05, jitter=0.2, seed=seed))
    away = nodes.add_rough("away", Rough(loss_to=0.05, loss_from=0.20, delay=0.1, jitter=0.1, seed=seed + 1))
    async with place(nodes, tmp_path, lease=30.0, renew=2.0, request=15.0) as here:
        near, owner, viewer = await asyncio.gather(
            here.replica("c1", "node1"), here.replica(away, "node2", "node1"), here.replica(far, "node3", "node1")
        )
        row.fault("30 % loss, 50-250 ms; 20 % loss, 100-200 ms")
        count = 1500 if long else 80
        for program, stream in ((owner, "s"), (near, "t")):
            await program.tell("own", stream=stream, every=0.05, count=count, flush=False, within=60)
            for other in (near, viewer):
                await other.tell("view", stream=stream, within=60)
        row.emitted = 0
        for program, stream in ((owner, "s"), (near, "t")):
            over = await program.says("over", stream, within=300)
            assert over["how"] == "complete"
            row.emitted += over["emitted"]
            for other in (near, viewer):
                await other.end_of(stream, within=60)
                row.viewer([*range(count), "done"], other.seen(stream))
                row.stalled(other.stall(stream))
        row.whole()
