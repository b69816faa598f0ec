"""The timelines A5 to A7: what a log accepts, from whom, and how readers find what the live path lost.

A7 with a reader's NATS node that is cut off for minutes needs network namespaces and is not here.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from jetstream_kit import cluster
from timeline_kit import NEVER, DeafProxy, HookedReplica, Timelines, lost_acknowledgement, spying
from waiting import check_whole, eventually, read_all, soon, take

from natsjobs import EndReason, HistoryLostError, JobClosedError, UnavailableError


class Writer:
    """Emits ``[name, 0]``, ``[name, 1]``, … in small groups."""

    def __init__(self, replica: HookedReplica, name: str, generation: str) -> None:
        self.replica, self.name, self.generation = replica, name, generation
        self.sent = 0

    async def write(self, count: int | None = None, *, until: asyncio.Event | None = None) -> None:
        """So many, or until an event is set; all are stored when this returns."""
        while self.sent != count and not (until is not None and until.is_set()):
            await self.replica.transport.emit_chunk("s", [self.name, self.sent], generation=self.generation)
            self.sent += 1
            if self.sent % 5 == 0:
                await self.replica.transport.flush("s", generation=self.generation)
        await self.replica.transport.flush("s", generation=self.generation)


def check_written(events: list[Any], *writers: Writer) -> None:
    """Every event of every writer once and in its order, without a hole in the indexes; then the end."""
    *body, end = events
    assert [event.index for event in body] == list(range(sum(writer.sent for writer in writers)))
    for writer in writers:
        theirs = [event.data[1] for event in body if event.data[0] == writer.name]
        assert theirs == list(range(writer.sent))
    assert (end.type, end.index) == ("done", len(body))


# -- A5: undecided and refused appends ----------------------------------------------------------------------------


async def test_a5_two_writers_at_full_speed_lose_and_double_nothing(many: Timelines):
    """They take the same index again and again; only the writer token tells whose event it is."""
    owner, other = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    a, b = Writer(owner, "a", job.generation), Writer(other, "b", job.generation)
    await asyncio.gather(a.write(500), b.write(500))
    await owner.transport.emit_done("s", "end", generation=job.generation)
    check_written(await read_all(other.manager.subscribe, "s"), a, b)


async def test_a5_an_append_whose_acknowledgement_was_lost_is_stored_once(many: Timelines):
    """Also when another writer's event is on top of it before the first one looks."""
    owner, other = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    a, b = Writer(owner, "a", job.generation), Writer(other, "b", job.generation)
    lost = 0

    async def lose(subject, body, go):
        nonlocal lost
        seq = await go()
        if json.loads(body)["type"] == "events":
            lost += 1
            if lost % 2:
                await b.write(b.sent + 1)
            raise lost_acknowledgement()
        return seq

    owner.link.events.around_append = lose
    await a.write(60)
    owner.link.events.around_append = None
    await owner.transport.emit_done("s", "end", generation=job.generation)
    assert lost >= 10
    check_written(await read_all(other.manager.subscribe, "s"), a, b)


async def test_a5_a_group_is_not_made_anew_before_it_is_decided(many: Timelines):
    """The first try lands after the writer had given up and more events were queued: none of those is taken for it."""
    owner = await many.add(config=many.config(timing={"give_up": 0.3}))
    job = await owner.store.create_job("s", "alice")
    generation = job.generation
    under_way: list[Any] = []

    async def cut(subject, body, go):
        under_way.append(go)
        raise lost_acknowledgement()

    async def heal(subject, body, go):
        if under_way:
            late, under_way[:] = under_way[0], []
            await late()
        return await go()

    owner.link.events.around_append = cut
    for event in ("first", "second"):
        await owner.transport.emit_chunk("s", event, generation=generation)
    with pytest.raises(UnavailableError):
        await owner.transport.flush("s", generation=generation)
    owner.link.events.around_append = heal
    for event in ("third", "fourth", "fifth"):
        await owner.transport.emit_chunk("s", event, generation=generation)
    await owner.transport.flush("s", generation=generation)
    assert not under_way
    await owner.transport.emit_done("s", "end", generation=generation)
    check_whole(await read_all(owner.manager.subscribe, "s"), ["first", "second", "third", "fourth", "fifth"])


async def test_a5_connections_that_break_under_a_writer_lose_and_double_nothing(many: Timelines):
    """What was in flight has landed, and its acknowledgement is lost with the connection."""
    async with DeafProxy(int(many.url.rpartition(":")[2])) as wire:
        owner, viewer = await many.add(url=wire.url), await many.add()
        job = await owner.store.create_job("s", "alice")
        writer, stop = Writer(owner, "a", job.generation), asyncio.Event()
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            reading = group.create_task(read_all(viewer.manager.subscribe, "s"))
            writing = group.create_task(writer.write(until=stop))
            for _ in range(10):
                enough = writer.sent + 50
                await eventually(lambda enough=enough: writer.sent > enough)
                wire.deaf = True
                for _ in range(3):  # by then an append is there
                    await many.api(f"STREAM.INFO.{many.subjects.events_stream}")
                wire.drop()
                wire.deaf = False
            stop.set()
            await writing
            await owner.transport.emit_done("s", "end", generation=job.generation)
        check_written(reading.result(), writer)
        await owner.close()  # while there is still a wire


async def test_a5_a_log_that_is_gone_closes_its_writer(many: Timelines):
    """Refused with number 0: nobody may take that for "start again"."""
    owner = await many.add()
    job = await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "an event")
    scope = many.subjects.scope("s", job.generation)
    assert (await many.api(f"STREAM.PURGE.{many.subjects.events_stream}", {"filter": scope}))["purged"] == 2
    with pytest.raises(JobClosedError):
        await owner.store.append_chunk("s", "another", generation=job.generation)
    assert await many.log("s", job.generation) == []


async def test_a5_a7_racing_writers_on_three_nodes_lose_nothing_while_leaders_step_down(tmp_path: Path):
    """Refusals without a number, appends that land late, live messages that nobody ever sends: all in one run."""
    async with cluster(tmp_path) as (servers, space):
        await space.link.close()
        await space.nc.close()
        async with Timelines("nats", servers["n1"].url) as many:
            config = many.config(replicas=3, timing={"request": 5.0, "give_up": 30.0})
            owner, other, viewer = [await many.add(url=one.url, config=config) for one in servers.values()]
            job = await owner.store.create_job("s", "alice")
            a, b = Writer(owner, "a", job.generation), Writer(other, "b", job.generation)
            stop = asyncio.Event()
            async with asyncio.timeout(80), asyncio.TaskGroup() as group:
                reading = group.create_task(read_all(viewer.manager.subscribe, "s", within=80))
                writing = [group.create_task(writer.write(until=stop)) for writer in (a, b)]
                for _ in range(4):
                    enough = (a.sent + 50, b.sent + 50)
                    await eventually(lambda enough=enough: a.sent > enough[0] and b.sent > enough[1])
                    await step_down(many)
                stop.set()
                await asyncio.wait(writing)
                await owner.transport.emit_done("s", "end", generation=job.generation)
            check_written(reading.result(), a, b)


async def step_down(many: Timelines) -> None:
    """Another node leads the events stream when this returns."""
    stream = many.subjects.events_stream

    async def leader() -> str:
        with suppress(nats.errors.Error):  # nobody answers while they elect
            return (await many.api(f"STREAM.INFO.{stream}")).get("cluster", {}).get("leader", "")
        return ""

    before = await eventually(leader)
    await many.api(f"STREAM.LEADER.STEPDOWN.{stream}")

    async def elected() -> bool:
        return await leader() not in {"", before}

    await eventually(elected)


# -- A6: zombies and orphans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "ended and retired", "purged by hand"])
async def test_a6_nothing_is_accepted_by_a_removed_log(many: Timelines, how: str):
    """The model takes its time to the first token, and the job is removed meanwhile."""
    worker = await many.add()
    other = await many.add(config=many.config(timing={"renew": 0.2}, retention={"finished": 0.1}))
    job = await worker.store.create_job("s", "alice")

    async def kinds() -> list[str]:
        return [message["type"] for message in await many.log("s", job.generation)]

    assert await kinds() == ["open"]
    if how == "deleted":
        assert await other.store.delete_job("s")
    elif how == "ended and retired":
        await other.store.end_job("s", generation=job.generation, status="aborted")

        async def retired() -> bool:
            return await kinds() == ["gone", "gone"]

        await eventually(retired)
    else:
        scope = many.subjects.scope("s", job.generation)
        await many.api(f"STREAM.PURGE.{many.subjects.events_stream}", {"filter": scope})
    left = await kinds()
    assert "open" not in left
    with pytest.raises(JobClosedError):
        await worker.store.append_chunk("s", "the first token", generation=job.generation)
    assert await kinds() == left
    assert ("s", job.generation) not in worker.store.replica.runs.owned


async def test_a6_a_create_that_died_between_log_and_record_leaves_an_orphan_that_is_swept(many: Timelines):
    """The log comes first, so the sweep can see what is left; a young one may still get its record."""
    creator, sweeper = await many.add(), await many.add()
    eager = await many.add(config=many.config(retention={"orphan": 0.5}, timing={"sweep": NEVER}))
    reached = asyncio.Event()

    async def die(subject, body, go):
        if subject == many.subjects.record("job", "s"):
            reached.set()
            await asyncio.Event().wait()
        return await go()

    creator.link.records.around_append = die
    creating = asyncio.ensure_future(creator.store.create_job("s", "alice"))
    await soon(reached.wait())
    [(_, generation)] = creator.store.replica.runs.owned
    await creator.kill()
    creating.cancel()
    await sweeper.store.cleanup()
    assert [message["type"] for message in await many.log("s", generation)] == ["open"]

    async def swept() -> bool:
        await eager.store.cleanup()
        return [message["type"] for message in await many.log("s", generation)] == ["gone"]

    await eventually(swept)
    await eager.store.create_job("s", "alice")  # and nothing is in the way of the next one


async def test_a6_a_replace_ends_the_old_log_opens_the_new_one_then_changes_the_record(many: Timelines):
    """In this order a crash in between leaves nothing that nobody refers to; the old run is stopped."""
    old_owner, new_owner = await many.add(), await many.add()
    started = asyncio.Event()

    async def run_on() -> None:
        async with asyncio.timeout(20), old_owner.manager.start("s", user_id="alice"):
            started.set()
            await asyncio.Event().wait()

    running = asyncio.ensure_future(run_on())
    await soon(started.wait())
    second = await new_owner.store.create_job("s", "alice")
    with pytest.raises(JobClosedError) as caught:
        await running
    assert caught.value.end_reason is EndReason.REPLACED
    *_, end = await many.log("s", caught.value.generation)
    opened, *_ = await many.log("s", second.generation)
    record = await many.newest("job", "s")
    assert (end["type"], opened["type"], record["generation"]) == ("aborted", "open", second.generation)
    assert end["time"] < opened["time"] < record["time"]


# -- A7: the live path loses messages -----------------------------------------------------------------------------


async def test_a7_events_and_an_end_that_were_lost_live_are_found_by_the_quiet_look(many: Timelines):
    """The connection never broke and nothing later reveals the gap."""
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    async with viewer.manager.subscribe("s") as events:
        await owner.store.append_chunk("s", 0)
        got = await take(events, 1)
        await viewer.stop_hearing(many.subjects.live_prefix)
        for number in range(1, 100):
            await owner.transport.emit_chunk("s", number)
        await owner.transport.emit_done("s", "end", generation=job.generation)
        check_whole(got + await take(events, 100), list(range(100)))


async def test_a7_many_quiet_followers_look_by_one_question(many: Timelines):
    """One look in ten is at the leader; and whoever has lost something live, or an end, has it by the next one."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": 0.1}))
    names = [f"s{number}" for number in range(20)]
    jobs = {name: await owner.store.create_job(name, "alice") for name in names}
    scopes, log = {many.subjects.scope(name, jobs[name].generation) for name in names}, many.subjects.events_stream
    async with AsyncExitStack() as open_readers:
        entering = [open_readers.enter_async_context(viewer.manager.subscribe(name)) for name in names]
        readers = dict(zip(names, await asyncio.gather(*entering), strict=True))
        asking = spying(await many.admin(), f"$JS.API.DIRECT.GET.{log}", f"$JS.API.STREAM.MSG.GET.{log}")
        asked = await open_readers.enter_async_context(asking)
        looks = dict.fromkeys(scopes, "")

        def all_looked() -> bool:
            for query in map(json.loads, [asked.pop(0).data for _ in range(len(asked))]):
                for scope in scopes.intersection(query.get("multi_last", ()) if "seq" in query else ()):
                    looks[scope] += "t"
                for scope in scopes & {query.get("next_by_subj"), query.get("last_by_subj")}:
                    looks[scope] += "A"
            return all(made.count("At") >= 2 for made in looks.values())

        await eventually(all_looked)
        between = sorted(len(made.strip("t").strip("A").partition("A")[0]) for made in looks.values())
        assert 7 <= between[len(between) // 2] <= 9, between  # whoever happens to look by himself asks the leader, too
        await viewer.stop_hearing(many.subjects.live_prefix)
        await owner.store.append_chunk("s4", "lost")
        await owner.transport.emit_done("s7", "end", generation=jobs["s7"].generation)
        assert [event.data for event in await take(readers["s4"], 1)] == ["lost"]
        assert [event.data for event in await take(readers["s7"], 1)] == ["end"]


async def test_a7_after_a_reconnect_many_look_by_one_question(many: Timelines):
    """At once, and what was lost before is there."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    names = [f"s{number}" for number in range(20)]
    jobs = [await owner.store.create_job(name, "alice") for name in names]
    scopes = {many.subjects.scope(job.stream_id, job.generation) for job in jobs}
    log = many.subjects.events_stream
    async with AsyncExitStack() as open_readers:
        readers = {name: await open_readers.enter_async_context(viewer.manager.subscribe(name)) for name in names}
        asking = spying(await many.admin(), f"$JS.API.DIRECT.GET.{log}", f"$JS.API.STREAM.MSG.GET.{log}")
        asked = await open_readers.enter_async_context(asking)

        def looked() -> set[str]:
            queries = [json.loads(msg.data) for msg in asked]
            return {one for query in queries for one in (query.get("next_by_subj"), *query.get("multi_last", ()))}

        await eventually(lambda: scopes <= looked())  # soon after the attach; the next one would be an hour later
        await viewer.stop_hearing(many.subjects.live_prefix)
        await owner.store.append_chunk("s4", "lost")
        asked.clear()
        await viewer.drop_connection()
        assert [event.data for event in await take(readers["s4"], 1)] == ["lost"]

        def alone() -> set[str]:
            queries = [json.loads(msg.data) for msg in asked]
            return scopes & {query.get("next_by_subj", query.get("last_by_subj")) for query in queries}

        await eventually(alone)  # what the spy hears comes over another connection
        assert alone() == {many.subjects.scope("s4", jobs[4].generation)}
        assert max(len(json.loads(msg.data).get("multi_last", ())) for msg in asked) == 20


async def test_a7_an_attach_looks_once_more_shortly_after(many: Timelines):
    """An event that came between the reading of the tail and the first live message, and no other ever comes."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    job = await owner.store.create_job("s", "alice")
    scope = many.subjects.scope("s", job.generation)

    async def miss(subject_filter: str) -> None:
        if subject_filter == scope:
            viewer.link.events.after_last = None
            await viewer.stop_hearing(many.subjects.live_prefix)
            await owner.store.append_chunk("s", "between")

    viewer.link.events.after_last = miss
    async with viewer.manager.subscribe("s") as events:
        assert [event.data for event in await take(events, 1)] == ["between"]


async def test_a7_a_quiet_look_asks_for_what_comes_next_and_ever_less_often(many: Timelines):
    """From ``look`` seconds on doubling to five times that; for the newest message, maybe large, every fifth."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": 0.2}))
    await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "x" * 500_000)
    subject = f"$JS.API.STREAM.MSG.GET.{many.subjects.events_stream}"
    times: list[float] = []
    large = 0
    async with viewer.manager.subscribe("s") as events:
        await take(events, 1)
        [newest] = (await many.log("s", events.job.generation))[-1:]
        async with spying(await many.admin(), subject) as asked:
            while len(times) < 6:
                await eventually(lambda: asked)
                query = json.loads(asked.pop(0).data)
                large += "last_by_subj" in query
                assert "last_by_subj" in query or query["seq"] == newest["seq"] + 1
                times.append(asyncio.get_running_loop().time())
    assert large <= 2
    assert times[-1] - times[-2] >= 0.8


async def test_a7_a_silent_owner_hears_of_its_abort_without_the_live_path(many: Timelines):
    """It looks at its own log, or a model that says nothing would never be stopped."""
    owner, other = await many.add(), await many.add()
    async with asyncio.timeout(20), owner.manager.start("s", user_id="alice") as run:
        await owner.stop_hearing(many.subjects.live_prefix)
        await other.store.end_job(
            "s", generation=run.generation, status="aborted", end_reason=EndReason.ABORT, final_event="stopped"
        )
        await asyncio.Event().wait()
    assert run.aborted


async def test_a7_an_end_that_landed_without_an_acknowledgement_wakes_the_readers(many: Timelines):
    """Nobody may ever publish it live; a reader between two looks hears of it at once."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    job = await owner.store.create_job("s", "alice")

    async def lose(subject, body, go):
        seq = await go()
        if subject.endswith(".end"):
            raise lost_acknowledgement()
        return seq

    looks = f"$JS.API.STREAM.MSG.GET.{many.subjects.events_stream}"
    async with spying(await many.admin(), looks) as asked, viewer.manager.subscribe("s") as events:
        await eventually(lambda: any(b"next_by_subj" in msg.data for msg in asked))  # the look after the attach
        await viewer.stop_hearing(many.subjects.live_prefix)
        owner.link.events.around_append = lose
        await owner.transport.emit_done("s", "end", generation=job.generation)
        [end] = await take(events, 1)
    assert (end.type, end.data) == ("done", "end")
    assert [message["type"] for message in await many.log("s", job.generation)] == ["open", "done"]


async def test_a7_a_reader_is_told_when_its_log_vanishes_in_silence(many: Timelines):
    """Nothing comes live and the look finds nothing: it proves that what it has read is still there."""
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "an event")
    async with viewer.manager.subscribe("s") as events:
        await take(events, 1)
        scope = many.subjects.scope("s", job.generation)
        await many.api(f"STREAM.PURGE.{many.subjects.events_stream}", {"filter": scope})
        with pytest.raises(HistoryLostError):
            await soon(anext(events))
