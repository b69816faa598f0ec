"""The timelines A8 to A10: how jobs and logs leave: by a terminal record, in small steps, behind a tombstone."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from datetime import datetime

import pytest
from timeline_kit import NEVER, Timelines, spying
from waiting import check_whole, eventually, read_all, soon, take

from natsjobs import HistoryLostError, JobClosedError
from natsjobs.engine import creation, wire

# -- A8: a running job is ended by a record, never by a TTL -------------------------------------------------------


async def test_a8_a_silent_job_is_ended_by_its_owner(many: Timelines):
    """Viewers and the owner get a terminal record; the TTL of the record is only a backstop."""
    config = many.config(retention={"running": 1.0})
    owner, viewer = await many.add(config=config), await many.add(config=many.config(timing={"sweep": NEVER}))

    async def say_nothing() -> None:
        async with asyncio.timeout(20), owner.manager.start("s", user_id="alice"):
            await asyncio.Event().wait()

    with pytest.raises(JobClosedError) as caught:
        await say_nothing()
    assert caught.value.end_reason == "expired"
    *_, last = await read_all(viewer.manager.subscribe, "s")
    assert (last.type, last.end_reason, last.generation) == ("error", "expired", caught.value.generation)
    job = await many.ended("s", by=viewer)
    assert (job.status, job.end_reason) == ("error", "expired")


async def test_a8_a_silent_job_whose_owner_does_nothing_is_ended_by_a_sweep(many: Timelines):
    """The owner is dead and its lease still stands: the sweep writes the terminal record before the TTL comes."""
    lasting = {"lease": 600.0, "renew": 300.0, "sweep": NEVER}
    owner = await many.add(config=many.config(timing={**lasting, "request": 1.0}, retention={"running": 2.0}))
    viewer = await many.add(config=many.config(timing=lasting, retention={"running": 2.0}))
    job = await owner.store.create_job("s", "alice")
    await owner.kill()
    async with viewer.manager.subscribe("s") as events:

        async def swept() -> bool:
            return await viewer.store.cleanup() > 0

        await eventually(swept)
        [end] = await take(events, 1)
    assert (end.type, end.end_reason) == ("error", "expired")
    assert [message["type"] for message in await many.log("s", job.generation)] == ["open", "error"]


async def test_a8_readers_of_a_job_whose_record_lapsed_are_told(many: Timelines):
    """Nobody swept in time and the record is gone: its log gets a terminal record all the same, and nobody hangs."""
    lasting = {"lease": 600.0, "renew": 300.0, "sweep": NEVER}
    owner = await many.add(config=many.config(timing={**lasting, "request": 1.0}))
    viewer = await many.add(config=many.config(timing=lasting, retention={"orphan": 0.5}))
    await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "an event")
    await owner.kill()
    async with viewer.manager.subscribe("s") as events:
        await take(events, 1)
        await many.shorten_life("job", "s")

        async def lapsed() -> bool:
            return not await many.has_record("job", "s")

        await eventually(lapsed)
        await viewer.store.cleanup()
        (end,) = await take(events, 1)
        assert (end.type, end.end_reason, end.index) == ("error", "expired", 1)


async def test_a8_a_job_with_activity_outlives_the_ttl_of_its_record(many: Timelines):
    """Emitting touches the record at a quarter of the limit; the TTL is never shorter than twice the limit."""
    owner = await many.add(config=many.config(retention={"running": 2.0}))
    await owner.store.create_job("s", "alice")
    records = [await many.newest("job", "s")]
    async with asyncio.timeout(20):
        while len(records) < 3:
            await owner.store.append_chunk("s", "still here")
            newest = await many.newest("job", "s")
            if newest["seq"] != records[-1]["seq"]:
                records.append(newest)
            assert newest["status"] == "running"
    for record in records:
        assert int(re.search(r"Nats-TTL: (\d+)\r\n", record["headers"])[1]) >= 4
    first, *_, last = (datetime.fromisoformat(record["time"][:26] + "Z") for record in records)
    assert (last - first).total_seconds() < 2 * 2.0


async def test_a8_a_sweep_that_comes_between_log_and_record_of_a_create_removes_nothing(many: Timelines):
    """A generation that the record does not name may be about to be named: it stays until it is old."""
    creator, sweeper = await many.add(), await many.add(config=many.config(timing={"sweep": NEVER}))
    old = await creator.store.create_job("s", "alice")
    await creator.transport.emit_done("s", "end", generation=old.generation)

    async def sweep_between(subject, body, go):
        if subject == many.subjects.record("job", "s"):
            creator.link.records.around_append = None
            await sweeper.store.cleanup()
        return await go()

    creator.link.records.around_append = sweep_between
    new = await creator.store.create_job("s", "alice")
    await creator.store.append_chunk("s", "first")
    assert [message["type"] for message in await many.log("s", new.generation)] == ["open", "events"]


async def test_a8_a_late_removal_takes_nothing_of_the_next_generation(many: Timelines):
    """It names the generation, whenever it comes, and a marker names none: only the old log becomes a tombstone."""
    config = many.config(timing={"renew": 0.2, "sweep": NEVER}, retention={"finished": 1.0})
    owner, other = await many.add(config=config), await many.add()
    old = await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "old")
    await owner.transport.emit_done("s", "old end", generation=old.generation)
    new = await other.store.create_job("s", "alice")
    for number in range(3):
        await other.store.append_chunk("s", number)
    late = many.subjects.changes_prefix + many.subjects.record("job", "s").removeprefix(many.subjects.record_prefix)
    await (await many.admin()).publish(late, b"", headers={"Nats-Marker-Reason": "MaxAge"})

    async def removed() -> bool:
        return {message["type"] for message in await many.log("s", old.generation)} == {"gone"}

    await eventually(removed)
    await other.transport.emit_done("s", "new end", generation=new.generation)
    check_whole(await read_all(owner.manager.subscribe, "s"), [0, 1, 2])


# -- A9: pages and removal in small steps -------------------------------------------------------------------------


async def test_a9_no_page_is_longer_than_64_messages_or_half_a_mebibyte(many: Timelines):
    """Whatever is read: a log of many small messages, one of large ones, and lists of jobs."""
    owner, viewer = await many.add(), await many.add()
    small, large = ["x"] * 300, ["y" * 200_000] * 8
    for stream_id, sent in (("small", small), ("large", large)):
        job = await owner.store.create_job(stream_id, "alice")
        for event in sent:
            await owner.store.append_chunk(stream_id, event)
        await owner.transport.emit_done(stream_id, "end", generation=job.generation)
    ours = [f"$JS.API.DIRECT.GET.{stream}" for stream in (many.subjects.events_stream, many.subjects.records_stream)]
    async with spying(await many.admin(), *ours) as asked:
        check_whole(await read_all(viewer.manager.subscribe, "small"), small)
        check_whole(await read_all(viewer.manager.subscribe, "large"), large)
        assert len(await viewer.store.list_jobs()) == 2
        await viewer.store.get_content_parts("large")
        await viewer.store.cleanup()
        enough = 300 / 64 + 8 * 200_000 / 524_288
        await eventually(lambda: sum(many.subjects.events_stream in msg.subject for msg in asked) >= enough)
    for msg in asked:
        page = json.loads(msg.data)
        assert 0 < page["batch"] <= 64
        assert 0 < page["max_bytes"] <= 524_288


async def test_a9_logs_are_removed_one_at_a_time_with_pauses_ten_times_as_long(many: Timelines):
    """Removal holds the stream, so it takes a tenth of the time at most."""
    owner = await many.add(config=many.config(timing={"renew": 0.2, "sweep": NEVER}, retention={"finished": 0.1}))
    removals: dict[str, list[float]] = {}
    at_once = 0

    async def slowly(subject, body, go):
        nonlocal at_once
        if (entry := wire.decode(body)) is None or entry.type != "gone":
            return await go()
        at_once += 1
        assert at_once == 1
        times = removals.setdefault(subject.split(".")[2], [time.monotonic()])
        await asyncio.sleep(0.02)
        seq = await go()
        times.append(time.monotonic())
        at_once -= 1
        return seq

    owner.link.events.around_append = slowly
    for number in range(4):
        job = await owner.store.create_job(f"s{number}", "alice")
        await owner.transport.emit_done(f"s{number}", "end", generation=job.generation)
    await eventually(lambda: len(removals) == 4 and all(len(times) == 3 for times in removals.values()))
    spans = sorted((times[0], times[-1]) for times in removals.values())
    for (began, done), (next_began, _) in itertools.pairwise(spans):
        assert next_began - done >= 9 * (done - began)


# -- A10: removal is a tombstone ----------------------------------------------------------------------------------


async def test_a10_a_delete_ends_the_readers_and_fences_the_owner(many: Timelines):
    """The log is replaced in one step, in its place in the chain: a zombie's number is refused."""
    owner, other = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "an event")
    async with other.manager.subscribe("s") as events:
        await take(events, 1)
        assert await other.store.delete_job("s")
        [end] = await take(events, 1)
    assert (end.type, end.end_reason) == ("aborted", "deleted")
    with pytest.raises(JobClosedError):
        await owner.store.append_chunk("s", "too late", generation=job.generation)
    left = await many.log("s", job.generation)
    assert sorted(message["type"] for message in left) == ["aborted", "gone"]
    assert await many.has_record("job", "s") is False


async def test_a10_a_reader_behind_a_removed_log_gets_a_typed_error(many: Timelines):
    """It has fallen behind what is kept for it, and the rest is gone: never a gap, never silence."""
    owner = await many.add()
    viewer = await many.add(config=many.config(limits={"reader_events": 4}))
    job = await owner.store.create_job("s", "alice")
    for number in range(200):
        await owner.store.append_chunk("s", number)
    async with viewer.manager.subscribe("s") as events:
        got = await take(events, 1)
        await owner.transport.emit_done("s", "end", generation=job.generation)
        assert await owner.store.delete_job("s")

        async def read_on() -> None:
            async for event in events:
                got.append(event)

        with pytest.raises(HistoryLostError):
            await soon(read_on())
    assert [event.data for event in got] == list(range(len(got)))


async def test_a10_an_attached_reader_of_a_silent_log_hears_of_its_tombstone(many: Timelines):
    """A tombstone without an end before it, as a sweep leaves it behind."""
    owner, viewer = await many.add(), await many.add(config=many.config(timing={"look": NEVER}))
    job = await owner.store.create_job("s", "alice")
    await owner.store.append_chunk("s", "an event")
    async with viewer.manager.subscribe("s") as events:
        await take(events, 1)
        await creation.remove_log(owner.store.replica.context, "s", job.generation)
        with pytest.raises(HistoryLostError):
            await soon(anext(events))
    with pytest.raises(JobClosedError):
        await owner.store.append_chunk("s", "a zombie", generation=job.generation)


async def test_a10_a_cleared_log_goes_on_where_it_was(many: Timelines):
    """Whoever was at its end misses nothing, whoever was behind is told, who comes later starts behind it."""
    owner, viewer = await many.add(), await many.add()
    job = await owner.store.create_job("s", "alice")
    for number in range(3):
        await owner.store.append_chunk("s", number)
    async with viewer.manager.subscribe("s") as events:
        got = await take(events, 3)
        await viewer.store.clear_content_state("s")
        await viewer.store.append_chunk("s", 3)
        await owner.store.append_chunk("s", 4)
        await owner.transport.emit_done("s", "end", generation=job.generation)
        check_whole(got + await take(events, 3), [0, 1, 2, 3, 4])
    with pytest.raises(HistoryLostError):
        await read_all(viewer.manager.subscribe, "s", after=got[0].cursor)
    check_whole(await read_all(viewer.manager.subscribe, "s"), [0, 1, 2, 3, 4], first=3)


async def test_a10_a_tombstone_goes_by_itself_and_leaves_nothing(many: Timelines):
    """It carries its own TTL, an hour; when that is over the subject is empty, without a marker."""
    owner = await many.add()
    removed = await owner.store.create_job("an hour", "alice")
    await owner.store.delete_job("an hour")
    [gone] = [message for message in await many.log("an hour", removed.generation) if message["type"] == "gone"]
    assert "Nats-TTL: 3600\r\n" in gone["headers"]
    quick = await many.add(config=many.config(retention={"tombstone": 1.0}))
    job = await quick.store.create_job("a second", "alice")
    await quick.store.delete_job("a second")
    await creation.remove_log(quick.store.replica.context, "a second", job.generation)  # the end, too

    async def empty() -> bool:
        return await many.log("a second", job.generation) == []

    await eventually(empty)


async def test_a10_nothing_is_ever_purged(many: Timelines):
    """Delete, clear, replace, retention and the sweep need no right to purge, nor to delete messages."""
    config = many.config(timing={"renew": 0.2}, retention={"finished": 0.1, "orphan": 0.1})
    owner, other = await many.add(config=config), await many.add(config=config)
    api = "$JS.API.STREAM"
    async with spying(await many.admin(), f"{api}.PURGE.>", f"{api}.MSG.DELETE.>") as asked:
        for stream_id in ("deleted", "replaced", "finished"):
            await owner.store.create_job(stream_id, "alice")
            await owner.store.append_chunk(stream_id, "an event")
            await other.store.clear_content_state(stream_id)
        assert await other.store.delete_job("deleted")
        await other.store.create_job("replaced", "alice")
        finished = await owner.store.get_job("finished")
        await owner.transport.emit_done("finished", "end")

        async def gone() -> bool:
            await other.store.cleanup()
            return {message["type"] for message in await many.log("finished", finished.generation)} == {"gone"}

        await eventually(gone)
        await many.api("STREAM.PURGE.no-such-stream")  # ours, and the last: so the others would have been heard
        await eventually(lambda: asked)
    assert [msg.subject for msg in asked] == [f"{api}.PURGE.no-such-stream"]
