"""The timelines A1 to A4: who is alive, who is dead, and what is ended for whom.

A1, A2 and A3 with a host, or a whole NATS node, that is cut off silently need network namespaces and are not here;
one connection that is cut silently is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from jetstream_kit import Proxy, server
from timeline_kit import NEVER, Timelines, owner_process, spying
from waiting import eventually, read_all, soon, take

from natsjobs import JobClosedError, UnavailableError

# -- A1: a short outage -------------------------------------------------------------------------------------------


async def test_a1_a_short_outage_kills_no_living_job(tmp_path: Path):
    """The server is away longer than the leases; the judge is back long before the owners; every job goes on."""
    with server(tmp_path) as nats_server:
        async with Timelines("nats", nats_server.url) as many, AsyncExitStack() as runs:
            owners = [await many.add(reconnect_time_wait=2.0) for _ in range(5)]
            judge = await many.add(reconnect_time_wait=0.05)
            running = {}
            for number, owner in enumerate(owners):
                running[f"s{number}"] = await runs.enter_async_context(owner.manager.start(f"s{number}", user_id="u"))
            ids = {owner.store.replica_id for owner in owners}
            await eventually(lambda: judge.store.replica.liveness._known >= ids)
            nats_server.stop()
            # The outage is the subject: all leases (2 s) lapse, and the owners, who try every 2 s, have just tried.
            await asyncio.sleep(4.1)
            nats_server.start()
            await eventually(lambda: judge.nc.is_connected)
            assert not any(owner.nc.is_connected for owner in owners)
            async with spying(await many.admin(), f"{many.namespace}.owner.>") as asked:
                await eventually(lambda: all(owner.nc.is_connected for owner in owners))
                await judge.store.cleanup()
                # Whoever was suspected has been judged when the suspicion is gone.
                await eventually(lambda: not judge.store.replica.liveness._judged)
                await eventually(lambda: {msg.subject.rpartition(".")[2] for msg in asked} >= ids)
            for stream_id, run in running.items():
                await run.emit("still here")
                await run.complete("fine")
                *_, last = await read_all(judge.manager.subscribe, stream_id)
                assert (last.type, last.data) == ("done", "fine")
            assert judge.store.replica.liveness.reaped == 0


async def test_a1_a_lease_is_renewed_first_thing_after_a_reconnect(many: Timelines):
    """Not at the next turn of the clock, which is minutes away."""
    config = many.config(timing={"lease": 600.0, "renew": 300.0})
    owner = await many.add(config=config)
    async with spying(await many.admin(), f"{many.namespace}.kv.owner.{owner.store.replica_id}") as renewals:
        await owner.drop_connection()
        await eventually(lambda: renewals)


# -- A2: no proof of death ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "killed beside a spy", "killed beside a stream that answers"])
async def test_a2_a_dead_owner_is_reaped_although_its_pings_are_not_refused(many: Timelines, how: str):
    """A stopped process, a spy and a stream that captures the subject all keep "no responders" from coming."""
    admin = await many.admin()
    replica = await many.add()
    capturing = f"{many.namespace}_capture"
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(owner_process(many.url, many.namespace, "s"))
        if how == "killed beside a spy":
            await stack.enter_async_context(spying(admin, f"{many.namespace}.>"))
        if how == "killed beside a stream that answers":
            made = {"name": capturing, "subjects": [f"{many.namespace}.owner.>"], "storage": "memory"}
            assert "error" not in await many.api(f"STREAM.CREATE.{capturing}", made)
            stack.push_async_callback(many.api, f"STREAM.DELETE.{capturing}")
        owner.signal(signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        *_, last = await read_all(replica.manager.subscribe, "s")
        assert (last.type, last.end_reason) == ("error", "owner_lost")
        job = await many.ended("s", by=replica)
        assert (job.status, job.end_reason) == ("error", "owner_lost")
        if how == "killed beside a stream that answers":
            assert (await many.api(f"STREAM.INFO.{capturing}"))["state"]["messages"] > 0
        if how == "stopped":
            owner.signal(signal.SIGCONT)
            assert await owner.says("closed") == "owner_lost"
            *_, end = await many.log("s", job.generation)
            assert end["type"] == "error"


async def test_a2_an_owner_whose_connection_is_cut_silently_is_reaped(many: Timelines):
    """The server keeps its interest for minutes and every ping times out; the owner comes back fenced."""
    async with Proxy(int(many.url.rpartition(":")[2])) as wire:
        owner, replica = await many.add(url=wire.url), await many.add()
        job = await owner.store.create_job("s", "alice")
        await eventually(lambda: owner.store.replica_id in replica.store.replica.liveness._known)
        await wire.cut()
        *_, last = await read_all(replica.manager.subscribe, "s")
        assert (last.type, last.end_reason) == ("error", "owner_lost")
        wire.drop()  # only now does the owner notice, and come back
        with pytest.raises(JobClosedError):
            await soon(owner.store.append_chunk("s", "too late", generation=job.generation))
        await owner.close()  # while there is still a wire


# -- A3: nobody sees the marker -----------------------------------------------------------------------------------


async def test_a3_a_death_that_nobody_saw_is_still_reaped(many: Timelines):
    """Everybody was away when the lease lapsed; a replica that starts later has never heard of the owner."""
    owner = await many.add(config=many.config(timing={"request": 1.0}))
    owner_id = owner.store.replica_id
    await owner.store.create_job("s", "alice")
    await owner.kill()

    async def lapsed() -> bool:
        return not await many.has_record("owner", owner_id)

    await eventually(lapsed)
    late = await many.add(config=many.config(timing={"sweep": 10.0}))
    job = await many.ended("s", by=late)
    assert (job.status, job.end_reason) == ("error", "owner_lost")


async def test_a3_a_marker_that_was_lost_is_made_up_for_by_looking(many: Timelines):
    """The republished marker never arrives, and no sweep comes: reading the leases is enough."""
    config = many.config(timing={"sweep": NEVER, "request": 1.0})
    owner, replica = await many.add(config=config), await many.add(config=config)
    await owner.store.create_job("s", "alice")
    await eventually(lambda: owner.store.replica_id in replica.store.replica.liveness._known)
    await replica.stop_hearing(many.subjects.changes_prefix)
    await owner.kill()
    job = await many.ended("s", by=replica)
    assert (job.status, job.end_reason) == ("error", "owner_lost")


async def test_a3_an_owner_that_answered_once_without_a_lease_and_died_later_is_reaped(many: Timelines):
    """A marker comes once; the suspicion stays until the owner is back or its jobs are ended."""
    config = many.config(timing={"sweep": NEVER, "request": 1.0})
    owner, replica = await many.add(config=config), await many.add(config=config)
    owner_id = owner.store.replica_id
    await owner.store.create_job("s", "alice")
    await eventually(lambda: owner_id in replica.store.replica.liveness._known)

    async def no_renewals(subject, body, go):
        if subject == many.subjects.record("owner", owner_id):
            raise UnavailableError("the renewal is lost")
        return await go()

    owner.link.records.around_append = no_renewals
    async with spying(await many.admin(), f"{many.namespace}.owner.{owner_id}") as pings:
        await eventually(lambda: len(pings) >= 2)
        assert not await many.has_record("owner", owner_id)
    assert (await replica.store.get_job("s")).status == "running"
    await owner.kill()
    job = await many.ended("s", by=replica)
    assert (job.status, job.end_reason) == ("error", "owner_lost")


# -- A4: a living owner without the run -----------------------------------------------------------------------------


async def test_a4_a_run_that_is_gone_in_a_living_process_is_ended(many: Timelines):
    """The rest of the process vouches for itself only: "not mine" is death at once, for that run alone."""
    config = many.config(timing={"sweep": NEVER})
    owner, replica = await many.add(config=config), await many.add(config=config)
    lost = await owner.store.create_job("lost", "alice")
    await owner.store.create_job("held", "alice")
    await eventually(lambda: owner.store.replica_id in replica.store.replica.liveness._known)
    owner.store.replica.runs.disown("lost", lost.generation)
    assert await replica.store.cleanup() == 1
    assert (await replica.store.get_job("lost")).end_reason == "owner_lost"
    assert (await replica.store.get_job("held")).status == "running"


async def test_a4_a_restarted_process_does_not_vouch_for_its_predecessor(many: Timelines):
    """Same program, same host, back within the lease: the first one's job is ended, its own goes on."""
    replica = await many.add()
    async with owner_process(many.url, many.namespace, "first") as first:
        before = await replica.store.get_job("first")
        await first.end()
        async with owner_process(many.url, many.namespace, "second"):
            after = await replica.store.get_job("second")
            assert before.owner != after.owner
            job = await many.ended("first", by=replica)
            assert (job.status, job.end_reason) == ("error", "owner_lost")
            assert await replica.store.cleanup() == 0
            async with replica.manager.subscribe("second") as events:
                await take(events, 3)
            assert (await replica.store.get_job("second")).status == "running"


async def test_a4_an_end_that_could_not_be_stored_is_stored_later(tmp_path: Path):
    """NATS is away when the run completes; the process lives on, and so does what it wanted to say."""
    with server(tmp_path) as nats_server:
        async with Timelines("nats", nats_server.url) as many:
            config = many.config(timing={"give_up": 0.5, "sweep": NEVER})
            owner, replica = await many.add(config=config), await many.add(config=config)
            job = await owner.store.create_job("s", "alice")
            await owner.store.append_chunk("s", "an event")
            nats_server.stop()
            with pytest.raises(UnavailableError):
                await owner.store.end_job("s", generation=job.generation, status="complete", final_event="the end")
            nats_server.start()
            *_, last = await read_all(replica.manager.subscribe, "s")
            assert (last.type, last.data) == ("done", "the end")
            assert (await many.ended("s", by=replica)).status == "complete"


async def test_a4_leaving_names_the_ends_that_could_not_be_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Whoever stops a process while NATS is away learns which jobs are left to the others."""
    with server(tmp_path) as nats_server:
        async with Timelines("nats", nats_server.url) as many:
            config = many.config(timing={"give_up": 0.5, "request": 0.5})
            owner = await many.add(config=config)
            await owner.store.create_job("left-behind", "alice")
            nats_server.stop()
            with caplog.at_level(logging.WARNING, logger="natsjobs"):
                await soon(owner.store.destroy())
            said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            nats_server.start()
            await eventually(lambda: owner.nc.is_connected)
            assert any("left-behind" in line and "could not be stored" in line for line in said)


async def test_a4_a_ping_names_the_runs_it_asks_for(many: Timelines):
    """The answer says which of them are not here, and names the replica."""
    owner = await many.add()
    job = await owner.store.create_job("s", "alice")
    known, unknown = ["s", job.generation], ["s", "0" * 19]
    request = json.dumps({"op": "ping", "runs": [known, unknown]}).encode()
    reply = await (await many.admin()).request(many.subjects.owner(owner.store.replica_id), request, timeout=5)
    answer = json.loads(reply.data)
    assert answer["replica"] == owner.store.replica_id
    assert answer["missing"] == [unknown]
